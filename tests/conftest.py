"""pytest settings of the unit tests: Ctrl-C means what it means in a terminal."""

import signal

# A shell without job control starts background jobs with the signal ignored, and Python then leaves it so; tests that
# interrupt a training would wait for nothing.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
