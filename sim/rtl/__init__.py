"""The generated Verilog as a training backend: compiled by Verilator, driven from C++, no Python in the cycle loop."""
