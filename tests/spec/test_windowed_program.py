"""The program of convolutions and batches: descriptors, where everything is in the memories, what does not fit."""

from __future__ import annotations

import dataclasses
import random
import re
from itertools import product

import pytest

from spec import windowed_timing as timing
from spec.errors import SpecError
from spec.geometry import LayerGeometry
from spec.machine import Machine, load_machine
from spec.network import Convolution, FullyConnected, Network, Recipe, load_network
from spec.program import decode, encode
from spec.windowed import windowed_layers
from spec.windowed_program import (
    MAX_WINDOW,
    WINDOWED_FIELDS,
    WINDOWED_STRIDE,
    WINDOWED_WORDS,
    WindowedDescriptor,
    compile_windowed,
    position_interval,
)

ROOM = Machine(
    name="room", rows=8, cols=8, weight_depth=1 << 16, activation_depth=1 << 16, max_neurons=65535,
    max_fan_in=65535, bias_depth=1 << 16, max_layers=64, delta_bits=18, fraction_bits=20, result_fifo_depth=1 << 16,
    gradient_bits=60, max_batch=128, max_side=255, slope_depth=1 << 20, signal_depth=1 << 16,
)  # fmt: skip
DEPTHS = ("weight_depth", "activation_depth", "max_neurons", "max_fan_in", "bias_depth", "max_layers",
          "result_fifo_depth", "max_batch", "max_side", "slope_depth", "signal_depth")  # fmt: skip
SMALLEST = {name: 1 for name in DEPTHS} | {
    "weight_depth": 5, "activation_depth": 4, "max_neurons": 2, "bias_depth": 2, "result_fifo_depth": 4
}  # fmt: skip


def network(*layers: Convolution | FullyConnected, shape: tuple[int, ...] = (8, 8, 2), batch: int = 2) -> Network:
    """The layers and an output layer."""
    return Network("n", shape, 3, "square", (*layers, FullyConnected(3)), Recipe(6, 7, batch=batch))


def random_network(rng: random.Random) -> Network:
    """Any that is small enough to walk: convolutions of every kind, then fully connected layers."""
    while True:
        shape = (rng.randint(1, 9), rng.randint(1, 9), rng.choice([1, 2, 3, 7, 8]))
        layers: list[Convolution | FullyConnected] = []
        channels = shape[2]
        for _ in range(rng.randint(0, 3)):
            kernel = rng.randint(1, 5), rng.randint(1, 5)
            depthwise = rng.random() < 0.3
            channels = channels if depthwise else rng.randint(1, 9)
            layers.append(
                Convolution(
                    channels,
                    kernel,
                    (rng.randint(1, 4), rng.randint(1, 4)),
                    stride=rng.randint(1, 2),
                    padding=rng.randrange(min(kernel)),
                    pool=rng.choice(["none", "max", "latent"]),
                    depthwise=depthwise,
                )
            )
        layers += [FullyConnected(rng.randint(1, 20)) for _ in range(rng.randint(0, 2))]
        try:
            found = network(*layers, shape=shape, batch=rng.randint(1, 3))
        except SpecError:
            continue
        if found.windowed and found.macs < 20_000:
            return found


def random_machine(rng: random.Random) -> Machine:
    """Of any shape that maps can be read by, with room for everything."""
    rows = rng.choice([1, 2, 4, 8, 16, 32])
    return dataclasses.replace(ROOM, rows=rows, cols=rng.randint(1, rows))


def test_fields_do_not_overlap() -> None:
    """Each bit of a descriptor belongs to at most one field, within 32 bits; every word has one."""
    seen = set()
    for field in WINDOWED_FIELDS.values():
        assert field.lsb + field.width <= 32
        bits = {(field.word, field.lsb + bit) for bit in range(field.width)}
        assert not bits & seen
        seen |= bits
    assert {word for word, _ in seen} == set(range(WINDOWED_WORDS))
    assert WINDOWED_STRIDE >= WINDOWED_WORDS > WINDOWED_STRIDE // 2
    assert WINDOWED_STRIDE & (WINDOWED_STRIDE - 1) == 0


def test_encode_round_trip() -> None:
    """Random and extreme values come back from the words, each bit in its field's place."""
    rng = random.Random(1)
    for trial in range(200):
        values = {name: rng.randint(field.low, field.high) for name, field in WINDOWED_FIELDS.items()}
        if trial < 2:
            values = {name: (field.low, field.high)[trial] for name, field in WINDOWED_FIELDS.items()}
        descriptor = WindowedDescriptor(**values)
        words = encode(descriptor)
        assert len(words) == WINDOWED_WORDS and all(0 <= word < 1 << 32 for word in words)
        assert decode(words, WindowedDescriptor) == descriptor
        for name, field in WINDOWED_FIELDS.items():
            assert words[field.word] >> field.lsb & ((1 << field.width) - 1) == values[name] % (1 << field.width)


def test_descriptor_refuses_what_a_field_cannot_hold() -> None:
    """One past either end of each field."""
    base = {name: max(0, field.low) for name, field in WINDOWED_FIELDS.items()}
    for name, field in WINDOWED_FIELDS.items():
        for value in (field.low - 1, field.high + 1):
            with pytest.raises(SpecError, match=f"^descriptor.{name}: must be an integer"):
                WindowedDescriptor(**{**base, name: value})


def test_conv_tiny_by_hand() -> None:
    """Every number of conv-tiny on 2x2, from the description."""
    program = compile_windowed(load_network("conv-tiny"), load_machine("conv-tiny"))
    # Rows of 12 elements, 12 = 3·2 modulo 2: no gap; 72 elements are 36 words, in 4 slots.
    assert dataclasses.astuple(program)[1:] == (72, 12, 0, 36, 4, 2)
    one, two, three, four = program.layers
    shapes = {
        "kernel_height": (3, 3, 1, 1), "kernel_width": (3, 3, 1, 1), "stride": (1, 2, 1, 1),
        "padding": (1, 1, 0, 0), "depthwise": (0, 0, 0, 0), "in_channels": (2, 3, 8, 5),
        "input_height": (6, 3, 1, 1), "input_width": (6, 3, 1, 1), "height": (6, 2, 1, 1), "width": (6, 2, 1, 1),
        "window_height": (4, 1, 1, 1), "window_width": (4, 2, 1, 1), "max_pool": (1, 0, 0, 0),
        "pool_latent": (0, 1, 0, 0), "is_output": (0, 0, 0, 1), "train": (1, 1, 1, 1),
        "positions": (36, 4, 1, 1), "windows": (4, 2, 1, 1), "latents": (12, 8, 5, 3), "channels": (3, 4, 5, 3),
        "col_tiles": (2, 2, 3, 2), "steps": (9, 14, 4, 3), "interval": (9, 14, 4, 3), "last_channels": (1, 2, 1, 1),
        "slope_stride": (72, 8, 3, 2), "signal_stride": (8, 4, 3, 2),
        # Layer 2 reads 3x3x3: a row of 9 elements, 9 = 3·3 modulo 2; 27 elements are 14 words.
        "pitch": (12, 9, 8, 5), "excess": (3, 0, 0, 0),
        "x_base": (0, 144, 172, 144), "x_stride": (36, 14, 4, 3), "a_base": (144, 172, 144, 0),
        "a_stride": (14, 4, 3, 0), "a_pitch": (9, 4, 5, 0), "next_channels": (3, 4, 5, 0),
        "w_base": (0, 18, 46, 58), "b_base": (0, 2, 4, 7), "coarse": (0, 0, 1, 1), "in_frac": (7, 4, 5, 4),
        "latent_shift": (2, 0, 0, 0), "act_shift": (17, 14, 15, 9), "score_shift": (1, 1, 1, 9),
        "rate_shift": (6, 1, 2, 5), "left_max": (10, 10, 10, 10),
        # 2 taps on: a pixel of layer 1; 2 channels of layer 2, with the carry counted by the hardware.
        "step_ky": (0, 0, 0, 0), "step_kx": (1, 0, 0, 0), "step_ci": (0, 2, 2, 2),
        # 16, 26, 6, 4 taps back: -3·6 + 2, -3·9 + 1, -1·8 + 2, -1·5 + 1.
        "rewind_ky": (61, 61, 63, 63), "rewind_kx": (1, 0, 0, 0), "rewind_ci": (0, 1, 2, 1),
    }  # fmt: skip
    assert set(shapes) == set(WINDOWED_FIELDS)
    for name, values in shapes.items():
        assert tuple(getattr(layer, name) for layer in program.layers) == values, name
    frozen = compile_windowed(load_network("conv-tiny"), load_machine("conv-tiny"), train_hidden=False)
    assert [layer.train for layer in frozen.layers] == [0, 0, 0, 1]


def test_smallconv_takes_what_the_description_says() -> None:
    """Inputs of 388 words, maps of 1024 and 512 at batch 16; 4 steps for 27 taps; 5680 weights a PE."""
    program = compile_windowed(load_network("smallconv-cifar10"), load_machine("smallconv"))
    assert dataclasses.astuple(program)[1:] == (3072, 96, 1, 388, 32, 16)
    assert [layer.steps for layer in program.layers] == [4, 36, 72, 64, 64]
    assert [layer.a_base for layer in program.layers] == [32 * 388, 32 * 388 + 16 * 1024, 32 * 388, 28800, 0]
    assert [layer.a_stride for layer in program.layers] == [1024, 512, 64, 64, 0]
    last = program.layers[-1]
    assert last.w_base + last.steps * last.col_tiles == 5680


def test_depthwise_fields() -> None:
    """A step is one tap of many channels; the row of the map is that of all its channels."""
    net = network(Convolution(5, (3, 3), (1, 1), padding=1, depthwise=True), shape=(4, 4, 5))
    one, _ = compile_windowed(net, dataclasses.replace(ROOM, rows=8, cols=4)).layers
    assert (one.depthwise, one.steps, one.col_tiles, one.last_channels, one.in_channels) == (1, 9, 2, 1, 5)
    assert (one.pitch, one.excess) == (23, 1)
    assert (one.step_ky, one.step_kx, one.step_ci) == (0, 1, 0)
    assert (one.rewind_ky, one.rewind_kx, one.rewind_ci) == (64 - 3, 1, 0)


def test_window_of_the_whole_map() -> None:
    """Made even for max-pooling it would exceed an odd map; the hardware's window ends with the map."""
    net = network(Convolution(2, (1, 1), (1, 1), pool="max"), shape=(255, 4, 1))
    one, _ = compile_windowed(net, ROOM).layers
    assert net.geometry[0].window == (256, 4)
    assert (one.height, one.window_height, one.window_width) == (255, 255, 4)


class Memory:
    """Elements of the banks, each with what it holds: (layer that reads it, sample, number in the map)."""

    def __init__(self, machine: Machine):
        self.rows, self.size = machine.rows, machine.activation_depth * machine.rows
        self.holds: dict[int, tuple[int, int, int]] = {}

    def write(self, element: int, what: tuple[int, int, int], live: set[int]) -> None:
        """Nothing that is still read is written, nor the same element twice by one layer."""
        assert 0 <= element < self.size
        assert element not in self.holds or self.holds[element][0] not in live | {what[0]}
        self.holds[element] = what


def digits(layer: WindowedDescriptor, rows: int) -> list[list[tuple[int, int, int]]]:
    """Each step's taps, a row each, counted as rows count: by ones at first, then by the step's digits."""
    width, depth = layer.kernel_width, 1 if layer.depthwise else layer.in_channels

    def add(tap: tuple[int, int, int], amount: tuple[int, int, int]) -> tuple[int, int, int]:
        carry, ci = divmod(tap[2] + amount[2], depth)
        carry, kx = divmod(tap[1] + amount[1] + carry, width)
        assert carry < 2
        return (tap[0] + amount[0] + carry) % 64, kx, ci

    now = [(0, 0, 0)] * rows
    for r in range(1, rows):
        now[r] = (0, 0, 0) if layer.depthwise else add(now[r - 1], (0, 0, 1))
    first, found = now, []
    for _ in range(layer.steps):
        found.append(now)
        last, now = now, [add(tap, (layer.step_ky, layer.step_kx, layer.step_ci)) for tap in now]
    back = [add(tap, (layer.rewind_ky, layer.rewind_kx, layer.rewind_ci)) for tap in last]
    assert back == first
    return found


def check_reads(memory: Memory, number: int, layer: WindowedDescriptor, net: Network, cols: int, slot: int) -> None:
    """Every step of every position gets its taps, of the sample in slot ``slot`` or behind it, or a mask."""
    rows, c = memory.rows, layer.in_channels
    excess = layer.excess - (layer.excess >> 15 << 16)
    order = digits(layer, rows)
    for b, y, x in product(range(net.recipe.batch), range(layer.height), range(layer.width)):
        base = (layer.x_base + (slot + b) * layer.x_stride) * rows
        top, left = y * layer.stride - layer.padding, x * layer.stride - layer.padding
        for tile in range(0, c, cols) if layer.depthwise else (0,):
            lanes = min(cols, c - tile) if layer.depthwise else rows
            seen = set()
            for s, row_taps in enumerate(order):
                for r, (ky, kx, ci) in enumerate(row_taps[:lanes]):
                    if ky >= layer.kernel_height:
                        continue
                    element = base + tile + top * layer.pitch + left * c + r + ky * excess * rows
                    element += s * (c if layer.depthwise else rows)
                    ci = tile + r if layer.depthwise else ci
                    seen.add((ky, kx, ci))
                    if 0 <= top + ky < layer.input_height and 0 <= left + kx < layer.input_width:
                        pixel = (top + ky) * layer.input_width + left + kx
                        assert memory.holds[element] == (number, slot + b, pixel * c + ci)
            assert len(seen) == net.geometry[number].taps * (lanes if layer.depthwise else 1)


def check_layout(net: Network, machine: Machine) -> None:
    """Fills the input ring, then runs the layers: each reads what was written for it, and nothing is lost."""
    program = compile_windowed(net, machine)
    batch, rows, cols = program.batch, machine.rows, machine.cols
    memory = Memory(machine)
    assert program.input_slots == 2 * batch and batch == net.recipe.batch
    for slot in range(program.input_slots):
        for number in range(program.input_length):
            row, column = divmod(number, program.input_row)
            element = slot * program.input_words * rows + row * (program.input_row + program.input_gap) + column
            assert element < (slot + 1) * program.input_words * rows
            memory.write(element, (0, slot, number), set())
    used, biases = 0, 0
    constants = windowed_layers(net, machine)
    for number, (layer, geometry, constant) in enumerate(zip(program.layers, net.geometry, constants, strict=True)):
        # The ring's second half is the next batch's.
        for first_slot in (0, batch) if number == 0 else (0,):
            check_reads(memory, number, layer, net, cols, first_slot)
        assert (layer.input_height, layer.input_width, layer.in_channels) == geometry.input
        assert (layer.height, layer.width, layer.channels) == geometry.output
        assert (layer.positions, layer.windows, layer.latents) == (
            geometry.positions, geometry.windows, geometry.latents
        )  # fmt: skip
        assert (layer.col_tiles - 1) * cols + layer.last_channels == layer.channels
        assert 1 <= layer.last_channels <= cols
        assert layer.slope_stride * batch <= machine.slope_depth
        assert layer.signal_stride * batch <= machine.signal_depth
        for name in ("act_shift", "score_shift", "rate_shift", "left_max", "is_output", "train"):
            assert getattr(layer, name) == getattr(constant, name)
        assert layer.coarse == (constant.coarse == 4) and constant.coarse in (0, 4)
        assert (layer.latent_shift, layer.in_frac) == (geometry.latent_shift, geometry.in_frac)
        # Weights and biases: the layers' words follow one another, every weight within its own layer's.
        assert (layer.w_base, layer.b_base) == (used, biases)
        last_tap = geometry.taps - 1 if layer.depthwise else (geometry.taps - 1) // rows
        used += (layer.channels - 1) // cols * layer.steps + last_tap + 1
        biases += (layer.channels - 1) // cols + 1
        if layer.is_output:
            assert (layer.a_base, layer.a_stride, layer.a_pitch, layer.next_channels) == (0, 0, 0, 0)
            continue
        height, width, channels = geometry.next_input
        assert layer.next_channels == channels
        following = program.layers[number + 1]
        assert (following.x_base, following.x_stride) == (layer.a_base, layer.a_stride)
        # The input ring and this layer's maps are read until the layer's update is over.
        for b, y, x, j in product(range(batch), range(height), range(width), range(channels)):
            element = (layer.a_base + b * layer.a_stride) * rows + y * layer.a_pitch + x * channels + j
            memory.write(element, (number + 1, b, (y * width + x) * channels + j), {0, number})
    assert used <= machine.weight_depth and biases <= machine.bias_bank_depth


def test_random_layouts() -> None:
    """Sizes that R and C do not divide, all kinds of layers, one to three samples."""
    rng, kinds, gaps = random.Random(2), set(), set()
    for _ in range(250):
        net, machine = random_network(rng), random_machine(rng)
        check_layout(net, machine)
        for layer in net.geometry:
            # A kind of layer counts where its kernel is not 1x1.
            if max(layer.kernel) > 1:
                kinds.add((layer.depthwise, layer.pool, layer.stride, layer.padding > 0))
        gaps |= {compile_windowed(net, machine).input_gap}
    assert len(kinds) == 2 * 3 * 2 * 2 and len(gaps) > 8


@pytest.mark.parametrize("names", [("conv-tiny", "conv-tiny"), ("conv-small", "conv-tiny")])
def test_preset_layouts(names: tuple[str, str]) -> None:
    check_layout(load_network(names[1]), load_machine(names[0]))


def window_ends(layer: LayerGeometry) -> list[int]:
    """At which positions in walk order a window ends."""
    order = sorted(layer.window_of.tolist())
    return [n for n, window in enumerate(order) if n + 1 == len(order) or order[n + 1] != window]


def test_interval_is_the_least_that_lets_latents_leave() -> None:
    """Two column tiles, one after the other: windows end C cycles apart or more, and steps do not overlap."""
    rng, limits = random.Random(3), set()
    for _ in range(300):
        net, machine = random_network(rng), random_machine(rng)
        for layer, descriptor in zip(net.geometry, compile_windowed(net, machine).layers, strict=True):
            ends = [tile * layer.positions + end for tile in (0, 1) for end in window_ends(layer)]

            def works(interval: int, ends: list[int] = ends, steps: int = descriptor.steps, cols: int = machine.cols):
                near = min(b - a for a, b in zip(ends, ends[1:], strict=False)) * interval < cols
                return steps <= interval and not near

            assert descriptor.interval == position_interval(layer, machine, bool(descriptor.is_output))
            assert works(descriptor.interval) and not works(descriptor.interval - 1)
            limits.add("steps" if descriptor.interval == descriptor.steps else "latents")
    assert limits == {"steps", "latents"}


def needed_by(net: Network, machine: Machine) -> dict[str, int]:
    """What a network needs of each of the machine's parameters."""
    batch, layers, cols = net.recipe.batch, net.geometry, machine.cols
    program = compile_windowed(net, machine)
    tiles = [len(range(0, layer.channels, cols)) for layer in layers]
    taken = [layer.x_base + batch * layer.x_stride for layer in program.layers[1:]]
    words = [
        layer.taps if layer.depthwise else len(range(0, layer.taps, machine.rows)) for layer in layers
    ]  # fmt: skip
    return {
        "max_layers": len(layers),
        "max_batch": batch,
        "max_side": max(side for layer in layers for side in layer.input[:2] + layer.output[:2]),
        "max_fan_in": max(size for layer in layers for size in (layer.taps, layer.input[2])),
        "max_neurons": max(layer.latents for layer in layers),
        "weight_depth": sum(t * w for t, w in zip(tiles, words, strict=True)),
        # The least of which a C-th, rounded up, is a word a tile.
        "bias_depth": next(n for n in range(2, 1 << 16) if len(range(0, n, cols)) >= sum(tiles)),
        "activation_depth": max([2 * batch * program.input_words, *taken]),
        "slope_depth": max(batch * t * layer.positions for t, layer in zip(tiles, layers, strict=True)),
        "signal_depth": max(batch * t * layer.windows for t, layer in zip(tiles, layers, strict=True)),
        "result_fifo_depth": batch * (len(layers) * net.classes + 1),
    }


def test_what_is_named_fits_and_one_less_does_not() -> None:
    """The smallest memories are refused with all that is needed: just that fits, and none of it can be one less."""
    rng = random.Random(4)
    names = set()
    for _ in range(60):
        net, machine = random_network(rng), random_machine(rng)
        small = dataclasses.replace(machine, **SMALLEST)
        with pytest.raises(SpecError) as caught:
            compile_windowed(net, small)
        text = str(caught.value)
        assert text.startswith("network n does not fit machine room: ") and "\n" not in text
        needs = {}
        for name, has, less, needed in re.findall(r"(\w+) is (\d+), (\d+) too few: (\d+) would fit \(", text):
            assert int(has) == SMALLEST[name] and int(has) + int(less) == int(needed)
            needs[name] = int(needed)
        assert len(needs) == text.count("would fit") == text.count(";") + 1
        assert needs == {name: n for name, n in needed_by(net, machine).items() if n > SMALLEST[name]}
        names |= set(needs)
        fits = dataclasses.replace(small, **needs)
        assert compile_windowed(net, fits) == compile_windowed(net, machine)
        for name, needed in needs.items():
            with pytest.raises(SpecError) as caught:
                compile_windowed(net, dataclasses.replace(fits, **{name: needed - 1}))
            text = str(caught.value)
            assert f": {name} is {needed - 1}, 1 too few: {needed} would fit (" in text and ";" not in text
    assert names == set(DEPTHS)


def test_what_no_memory_mends() -> None:
    """Each with what it is; all in one line."""
    cases = [
        (network(), dataclasses.replace(ROOM, rows=6, cols=4), "rows and cols are 6 and 4: rows must be a power of "),
        (network(), dataclasses.replace(ROOM, rows=4, cols=5), "rows and cols are 4 and 5: .*, and cols no more"),
        (
            network(Convolution(1, (1, 1), (1, 1)), shape=(32, 33, 1)),
            ROOM,
            f"layers.0. has windows of 32x33 positions, {MAX_WINDOW} at most: a latent grid of more windows would fit",
        ),
        (
            network(Convolution(1, (5, 5), (4, 1)), shape=(5, 255, 300)),
            ROOM,
            "a sample has 382500 elements, 65535 at most; layers.0. reads a map with 76500 elements from row to row, "
            "65535 at most",
        ),
        (
            network(Convolution(1, (1, 1), (1, 1), pool="latent", activation_fraction=7)),
            ROOM,
            "layers.1. reads latents with 9 fraction bits, 7 at most: an activation_fraction smaller by 2 in the layer "
            "before would fit",
        ),
        (
            network(Convolution(2, (1, 1), (4, 4)), shape=(64, 64, 1), batch=128),
            dataclasses.replace(ROOM, gradient_bits=36),
            r"layers\[0\].positions: needs gradient_bits of 38 at batch 128",
        ),
    ]
    for net, machine, message in cases:
        with pytest.raises(SpecError, match=f"^network n does not fit machine room: .*{message}"):
            compile_windowed(net, machine)
    compile_windowed(network(Convolution(1, (1, 1), (1, 1)), shape=(32, 32, 1)), ROOM)
    latents = Convolution(1, (1, 1), (1, 1), pool="latent", activation_fraction=5)
    assert compile_windowed(network(latents), ROOM).layers[1].in_frac == 7
    both = network(Convolution(1, (1, 1), (1, 1), pool="latent"), shape=(64, 64, 1), batch=128)
    narrow = dataclasses.replace(ROOM, rows=4, cols=5, gradient_bits=36, max_side=8)
    with pytest.raises(SpecError, match="rows and cols.*; max_side.*; layers.*windows.*; layers.*gradient_bits"):
        compile_windowed(both, narrow)


def test_the_largest_values_fit_their_fields() -> None:
    """A sample that takes all of the memory of slopes."""
    machine = dataclasses.replace(ROOM, cols=2)
    net = network(Convolution(2048, (1, 1), (4, 4), pool="latent"), shape=(32, 32, 1), batch=1)
    one = compile_windowed(net, machine).layers[0]
    assert one.slope_stride == machine.slope_depth == 1 << 20
    assert (one.latents, one.signal_stride) == (32768, 16384)


def test_cycles_of_conv_tiny() -> None:
    """By hand, at batch 2 on 2x2: setup, forward, signal and update of its layers."""
    machine = load_machine("conv-tiny")
    layers = compile_windowed(load_network("conv-tiny"), machine).layers
    assert timing.setup_cycles(machine) == WINDOWED_WORDS + 2 + timing.SETUP_TAIL
    assert [timing.forward_cycles(layer, machine) - timing.FORWARD_TAIL for layer in layers] == [
        71 * 9 + 9 + 4, 7 * 14 + 14 + 4, 2 * 4 + 4 + 4, 1 * 3 + 3 + 4
    ]  # fmt: skip
    assert [timing.signal_cycles(layer, machine, 3, True) - timing.SIGNAL_TAIL for layer in layers] == [21, 17, 14, 12]
    assert [timing.signal_cycles(layer, machine, 3, False) for layer in layers] == [0, 0, 0, 3 + timing.ARGMAX_TAIL]
    assert [timing.update_cycles(layer, machine, 2) - timing.UPDATE_TAIL for layer in layers] == [
        2 * 9 * 2 * 36 + 4, 2 * 14 * 2 * 4 + 4, 3 * 4 * 2 + 4, 2 * 3 * 2 + 4
    ]  # fmt: skip
    assert timing.finish_cycles(2) == 2 * timing.FINISH_CYCLES
    frozen = compile_windowed(load_network("conv-tiny"), machine, train_hidden=False).layers
    assert [timing.signal_cycles(layer, machine, 3, True) for layer in frozen] == [0, 0, 0, 12 + timing.SIGNAL_TAIL]
    assert [timing.update_cycles(layer, machine, 1) for layer in frozen] == [0, 0, 0, 6 + 4 + timing.UPDATE_TAIL]
