"""The cycle simulator: cycles, multiplications, memory accesses, energy and memory of a training step.

``model`` holds closed forms, so networks of any size take no time: of fully connected layers at batch 1, under every
learning rule, in ``dense``, of convolutions and batches in ``windowed``. ``stepped`` and ``windowed_stepped`` walk the
same step cycle by cycle and are the witnesses that the closed forms are tested against; ``energy`` and ``memory`` price
what ``model`` counts; ``windowed_bp`` holds what backpropagation and direct feedback alignment would need on the array
for convolutions; ``compare`` puts the rules side by side, ``plots`` draws that.
"""
