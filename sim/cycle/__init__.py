"""The cycle simulator: cycles, multiplications, memory accesses, energy and memory of a training step.

``model`` holds closed forms, so networks of any size take no time, under every learning rule: of fully connected
layers at batch 1 in ``dense``, of convolutions and batches in ``windowed``. ``stepped`` and ``windowed_stepped`` walk
the same step cycle by cycle and are the witnesses that the closed forms are tested against; ``energy`` and ``memory``
price what ``model`` counts; ``compare`` puts the rules side by side, ``plots`` draws that.
"""
