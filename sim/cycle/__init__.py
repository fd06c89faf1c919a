"""The cycle simulator: cycles, multiplications, memory accesses, energy and memory of a training step.

``model`` holds closed forms, so networks of any size take no time; ``stepped`` walks the same step cycle by cycle and
is the witness that the closed forms are tested against; ``energy`` and ``memory`` price what ``model`` counts;
``bp`` holds what backpropagation and direct feedback alignment would need on the same array; ``compare`` puts the
rules side by side, ``plots`` draws that.
"""
