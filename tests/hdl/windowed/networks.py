"""What the tests of whole windowed cores share: where parameters are, which samples are a batch."""

from spec import memory_map
from spec.network import NO_LABEL


def batches_of(labels, batch):
    """The labels of each batch."""
    found, waiting = [], []
    for label in labels:
        if label == NO_LABEL:
            found += [waiting] if waiting else []
            found.append([label])
            waiting = []
        else:
            waiting.append(label)
            if len(waiting) == batch:
                found.append(waiting)
                waiting = []
    assert not waiting
    return found


def addresses(machine, program):
    """Bus addresses of every parameter, layer by layer, channel by channel, in each its weights, then its bias."""
    layers = []
    for layer in program.layers:
        taps = layer.kernel_height * layer.kernel_width * (1 if layer.depthwise else layer.in_channels)
        found = []
        for j in range(layer.channels):
            tile, column = divmod(j, machine.cols)
            for t in range(taps):
                row, step = (column, t) if layer.depthwise else (t % machine.rows, t // machine.rows)
                word = layer.w_base + tile * layer.steps + step
                found.append(memory_map.weight_address(machine, row, column, word))
            found.append(memory_map.bias_address(machine, layer.b_base + tile, column))
        layers.append(found)
    return layers
