"""Simulation: the benches of the hardware, the cycle simulator and the compiled RTL.

It may import everything (``spec``, ``golden``, ``hdl``); nothing of those imports it.
"""
