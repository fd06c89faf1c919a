"""Entrain's description of itself: what the golden model, the hardware and the simulators share.

Machines, networks and technologies are YAML files read into frozen, validated dataclasses; number
formats, the layer program, the address map, the basis, the random sequence and the latencies are
Python constants. Nothing here computes a training step, and nothing here imports the other
packages: ``golden`` and ``hdl`` each import ``spec``, never each other.
"""
