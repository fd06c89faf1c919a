"""Networks for the tests of the whole dense core, and where the bus has their parameters."""

from spec import memory_map
from spec.network import FullyConnected, Network, Recipe


def network(*sizes, basis="square"):
    return Network(
        name="test", input_shape=(sizes[0],), classes=sizes[-1], basis=basis,
        layers=tuple(FullyConnected(size) for size in sizes[1:]),
        recipe=Recipe(hidden_rate_shift=4, output_rate_shift=4),
    )  # fmt: skip


def addresses(machine, program):
    """Bus addresses of every parameter, layer by layer."""
    layers = []
    for layer in program.layers:
        weights = [
            memory_map.weight_address(
                machine, i % machine.rows, j % machine.cols,
                layer.w_base + j // machine.cols * layer.row_tiles + i // machine.rows,
            )
            for j in range(layer.n_out) for i in range(layer.n_in)
        ]  # fmt: skip
        biases = [memory_map.bias_address(machine, layer.b_base + j) for j in range(layer.n_out)]
        layers.append(weights + biases)
    return layers
