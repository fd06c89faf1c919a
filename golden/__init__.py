"""The golden model: what the hardware must do, written without the hardware.

`data` reads data sets, `rules` and `float_model` hold the learning rules in float64 equations,
`train` runs a training on any backend, `checkpoint` keeps it. Nothing is imported here: a reader of
one module pays for that alone.
"""
