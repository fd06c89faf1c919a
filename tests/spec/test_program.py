"""The layer program, its placement in the memories, and the address map."""

from __future__ import annotations

import dataclasses
import random

import pytest

from spec import memory_map, timing
from spec.errors import SpecError
from spec.machine import Machine, load_machine
from spec.network import FullyConnected, Network, Recipe, load_network
from spec.program import (
    DESCRIPTOR_STRIDE,
    DESCRIPTOR_WORDS,
    FIELDS,
    LayerDescriptor,
    compile_program,
    decode,
    encode,
    fitting_presets,
    program_for,
)
from spec.windowed_program import WINDOWED_STRIDE, WINDOWED_WORDS, compile_windowed
from spec.yaml_loader import preset_names

PAIRS = [("tiny", "tiny"), ("digits", "digits"), ("mnist", "mnist"), ("mnist", "mnist-128"),
         ("ice40up5k", "ice40up5k"), ("digits", "tiny"), ("mnist", "digits")]  # fmt: skip


def network(features: int, *neurons: int, name: str = "n") -> Network:
    """A network of the given sizes."""
    layers = tuple(FullyConnected(count) for count in neurons)
    return Network(name, (features,), neurons[-1], "square", layers, Recipe(6, 5))


def test_fields_do_not_overlap() -> None:
    """Each bit of a descriptor belongs to at most one field, within 32 bits."""
    seen = set()
    for field in FIELDS.values():
        assert field.lsb + field.width <= 32 and field.word < DESCRIPTOR_WORDS
        bits = {(field.word, field.lsb + bit) for bit in range(field.width)}
        assert not bits & seen
        seen |= bits


def test_encode_round_trip() -> None:
    """Random and extreme values come back from the words."""
    rng = random.Random(1)
    for trial in range(200):
        values = {name: rng.randint(field.low, field.high) for name, field in FIELDS.items()}
        if trial < 2:
            values = {name: (field.low, field.high)[trial] for name, field in FIELDS.items()}
        descriptor = LayerDescriptor(**values)
        words = encode(descriptor)
        assert len(words) == DESCRIPTOR_WORDS and all(0 <= word < 1 << 32 for word in words)
        assert decode(words) == descriptor


def test_descriptor_refuses_what_a_field_cannot_hold() -> None:
    """One past either end of each field."""
    base = {name: max(0, field.low) for name, field in FIELDS.items()}
    for name, field in FIELDS.items():
        for value in (field.low - 1, field.high + 1):
            with pytest.raises(SpecError, match=f"^descriptor.{name}: must be an integer"):
                LayerDescriptor(**{**base, name: value})


def test_digits_program() -> None:
    """The numbers of 64-128-128-10 on 8x8, from the description by hand."""
    program = compile_program(load_network("digits"), load_machine("digits"))
    first, second, last = program.layers
    assert (program.input_length, program.input_words) == (64, 8)
    assert [layer.steps for layer in program.layers] == [128, 256, 32]
    assert [layer.w_base for layer in program.layers] == [0, 128, 384]
    assert [layer.b_base for layer in program.layers] == [0, 128, 256]
    assert (first.x_base, first.a_base, second.x_base, second.a_base) == (0, 16, 16, 32)
    assert (last.x_base, last.col_tiles, last.row_mask) == (32, 2, 255)
    assert [layer.act_shift for layer in program.layers] == [17, 14, 9]
    assert [layer.score_shift for layer in program.layers] == [0, 0, 9]
    assert [layer.rate_shift for layer in program.layers] == [1, -2, 2]
    assert [layer.bias_shift for layer in program.layers] == [7, 1, 1]
    assert [layer.is_output for layer in program.layers] == [0, 0, 1]
    assert [layer.train for layer in program.layers] == [1, 1, 1]
    frozen = compile_program(load_network("digits"), load_machine("digits"), train_hidden=False)
    assert [layer.train for layer in frozen.layers] == [0, 0, 1]


def test_one_layer_and_a_row_mask() -> None:
    """A lone output layer reads pixels; 5 inputs on 2 rows leave one row of the last tile idle."""
    (layer,) = compile_program(network(5, 3), load_machine("tiny")).layers
    assert (layer.act_shift, layer.bias_shift, layer.row_mask, layer.row_tiles) == (12, 7, 1, 3)
    assert layer.rate_shift == 7 + 7 + 5 - 14


@pytest.mark.parametrize(("machine_name", "network_name"), PAIRS)
def test_placements_are_disjoint(machine_name: str, network_name: str) -> None:
    """No word of any memory has two owners while both are alive; none lies outside."""
    machine, net = load_machine(machine_name), load_network(network_name)
    check_placement(machine, net)


def test_each_kind_of_network_has_its_kind_of_machine() -> None:
    """The wrong one is refused in a line, by whatever compiles, which names a preset that would do."""
    plain, batch = network(5, 3), dataclasses.replace(network(5, 3), recipe=Recipe(6, 5, batch=2))
    dense, windowed = load_machine("mnist"), load_machine("smallconv")
    for compiles in (compile_program, compile_windowed, program_for):
        for net, such in ((batch, "conv-tiny"), (load_network("conv-small"), "conv-small")):
            with pytest.raises(SpecError) as caught:
                compiles(net, dense)
            assert str(caught.value) == (
                f"network {net.name}: has convolutions or batches: it needs a machine with gradient_bits, "
                f"such as the preset {such}, not mnist"
            )
        with pytest.raises(SpecError) as caught:
            compiles(plain, windowed)
        assert str(caught.value) == (
            "network n: has neither convolutions nor batches: it needs a machine without gradient_bits, "
            "such as the preset ice40up5k, not smallconv, or a recipe.batch above 1"
        )
    wide = network(60000, 3)
    with pytest.raises(SpecError, match="needs a machine without gradient_bits, not smallconv, or"):
        program_for(wide, windowed)
    assert program_for(plain, dense) == compile_program(plain, dense)
    assert program_for(plain, dense, False) == compile_program(plain, dense, train_hidden=False)
    assert program_for(batch, windowed) == compile_windowed(batch, windowed)
    small = load_network("conv-small")
    assert program_for(small, windowed, False) == compile_windowed(small, windowed, train_hidden=False)
    assert program_for(small, windowed, False) != program_for(small, windowed)


@pytest.mark.parametrize("name", preset_names("networks"))
def test_every_preset_network_has_a_machine(name: str) -> None:
    """The smallest comes first; those named fit, the others do not."""
    net = load_network(name)
    fitting = fitting_presets(net)
    assert fitting
    pes = [load_machine(found).pes for found in fitting]
    assert pes == sorted(pes)
    for other in preset_names("machines"):
        if other in fitting:
            program_for(net, load_machine(other))
        else:
            with pytest.raises(SpecError, match=f"^network {name}"):
                program_for(net, load_machine(other))


def test_random_placements() -> None:
    """The same for random shapes, also such as R and C do not divide."""
    rng = random.Random(2)
    for _ in range(200):
        machine = dataclasses.replace(
            load_machine("mnist"),
            rows=rng.randint(1, 9),
            cols=rng.randint(1, 9),
            result_fifo_depth=1024,
        )
        sizes = [rng.randint(2, 40) for _ in range(rng.randint(1, 6))]
        check_placement(machine, network(rng.randint(1, 60), *sizes))


def check_placement(machine: Machine, net: Network) -> None:
    """Walks every address that the program uses."""
    program = compile_program(net, machine)
    weights: set[int] = set()
    biases: set[int] = set()
    buffers = set(range(2 * program.input_words))
    source = None
    for number, (layer, (n_in, n_out)) in enumerate(zip(program.layers, net.shapes, strict=True)):
        words = set(range(layer.w_base, layer.w_base + layer.row_tiles * layer.col_tiles))
        assert not words & weights and max(words) < machine.weight_depth
        weights |= words
        own = set(range(layer.b_base, layer.b_base + n_out))
        assert not own & biases and max(own) < machine.bias_depth
        biases |= own
        valid = [(layer.row_tiles - 1) * machine.rows + r < n_in for r in range(machine.rows)]
        assert layer.row_mask == sum(bit << r for r, bit in enumerate(valid))
        assert 0 < layer.row_mask < 1 << machine.rows
        reads = {layer.x_base + i // machine.rows for i in range(n_in)}
        if number == 0:
            assert layer.x_base == 0 and max(reads) == program.input_words - 1
        else:
            assert reads == source
        if not layer.is_output:
            source = {layer.a_base + j // machine.rows for j in range(n_out)}
            assert not source & buffers and max(source) < machine.activation_depth
            assert number == 0 or not source & reads
    assert sum(net.shapes[i][0] * net.shapes[i][1] for i in range(len(net.layers))) == net.macs


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_depth": 415}, "weight_depth is 415, 1 too few: 416 would fit"),
        ({"activation_depth": 47}, "activation_depth is 47, 1 too few: 48 would fit"),
        ({"max_neurons": 127}, "max_neurons is 127, 1 too few: 128 would fit"),
        ({"max_fan_in": 127}, "max_fan_in is 127, 1 too few: 128 would fit"),
        ({"bias_depth": 265}, "bias_depth is 265, 1 too few: 266 would fit"),
        ({"max_layers": 2}, "max_layers is 2, 1 too few: 3 would fit"),
        ({"result_fifo_depth": 30}, "result_fifo_depth is 30, 1 too few: 31 would fit"),
    ],
)
def test_does_not_fit(change: dict[str, int], message: str) -> None:
    """One too few is refused, and the value that the message names fits."""
    machine = dataclasses.replace(load_machine("digits"), **change)
    with pytest.raises(SpecError) as caught:
        compile_program(load_network("digits"), machine)
    text = str(caught.value)
    assert text.startswith("network digits does not fit machine digits: ")
    assert message in text and ";" not in text
    (key,) = change
    compile_program(load_network("digits"), dataclasses.replace(machine, **{key: change[key] + 1}))


def test_everything_that_does_not_fit_is_named() -> None:
    """Five memories of digits are too small for mnist, and one line says so."""
    with pytest.raises(SpecError) as caught:
        compile_program(load_network("mnist"), load_machine("digits"))
    text = str(caught.value)
    assert text.count("would fit") == 5 and "weight_depth is 1024, 9472 too few" in text


def test_mnist_needs_what_the_description_says() -> None:
    """784-512-512-10 takes 10496 words a PE at 8x8, and 669,706 parameters."""
    net = load_network("mnist")
    program = compile_program(net, load_machine("mnist"))
    assert program.layers[-1].w_base + program.layers[-1].steps == 10496
    assert (net.macs, net.parameters) == (668672, 669706)


@pytest.mark.parametrize("name", preset_names("machines"))
def test_addresses_are_distinct(name: str) -> None:
    """Registers, descriptors, biases and weights (corners) never share an address."""
    machine = load_machine(name)
    rows, cols, depth = machine.rows, machine.cols, machine.weight_depth
    addresses = [memory_map.register_address(register) for register in memory_map.registers_of(machine)]
    addresses += [
        memory_map.program_address(machine, layer, word)
        for layer in range(machine.max_layers)
        for word in range(WINDOWED_WORDS if machine.windowed else DESCRIPTOR_WORDS)
    ]
    if machine.windowed:
        addresses += [
            memory_map.bias_address(machine, word, col)
            for word in range(machine.bias_bank_depth)
            for col in range(cols)
        ]
    else:
        addresses += [memory_map.bias_address(machine, word) for word in range(machine.bias_depth)]
    addresses += [
        memory_map.weight_address(machine, r, c, word)
        for r in range(rows)
        for c in range(cols)
        for word in {0, 1, depth // 2, depth - 1}
    ]
    assert len(set(addresses)) == len(addresses)
    assert max(addresses).bit_length() == memory_map.address_bits(machine)


def test_weight_address_fields() -> None:
    """Word, row and column are bit fields below the window's two bits."""
    machine = load_machine("digits")
    local = memory_map.weight_address(machine, 5, 3, 1023) - memory_map.window_base(
        machine, memory_map.WEIGHT
    )
    assert local == 1023 << 6 | 5 << 3 | 3
    assert memory_map.window_base(machine, memory_map.WEIGHT) == 3 << 16
    for arguments in ((8, 0, 0), (0, 8, 0), (0, 0, 1024), (-1, 0, 0)):
        with pytest.raises(SpecError):
            memory_map.weight_address(machine, *arguments)


def test_windows_of_machines_that_sum_gradients() -> None:
    """Longer descriptors, biases in a bank a column, and registers that the others lack."""
    machine, dense = load_machine("conv-small"), load_machine("digits")
    assert memory_map.program_address(machine, 3, WINDOWED_WORDS - 1) - memory_map.window_base(
        machine, memory_map.PROGRAM
    ) == 3 * WINDOWED_STRIDE + WINDOWED_WORDS - 1
    bias = memory_map.window_base(machine, memory_map.BIAS)
    assert memory_map.bias_address(machine, 12, 5) == bias | 12 << 3 | 5
    assert memory_map.window_base(dense, memory_map.BIAS) | 12 == memory_map.bias_address(dense, 12)
    for arguments in ((13, 0), (-1, 0), (0, 8), (0, -1), (0,)):
        with pytest.raises(SpecError):
            memory_map.bias_address(machine, *arguments)
    with pytest.raises(SpecError, match="^col: must be left out without gradient_bits, got 0$"):
        memory_map.bias_address(dense, 0, 0)
    with pytest.raises(SpecError, match="^word: must be an integer from 0 to 5, got 6$"):
        memory_map.program_address(dense, 0, DESCRIPTOR_WORDS)
    narrow = dataclasses.replace(machine, weight_depth=5, bias_depth=65536, max_layers=1)
    assert memory_map.offset_bits(narrow) == 13 + 3
    narrow = dataclasses.replace(narrow, bias_depth=2, max_layers=64)
    assert memory_map.offset_bits(narrow) == 6 + 4

    added = {"BATCH": (22, 8, 1), "INPUT_SLOTS": (23, 9, 0), "INPUT_ROW": (24, 16, 0), "INPUT_GAP": (25, 5, 0)}
    assert memory_map.registers_of(dense) == memory_map.REGISTERS
    assert memory_map.registers_of(machine) == memory_map.REGISTERS | memory_map.WINDOWED_REGISTERS
    registers = memory_map.WINDOWED_REGISTERS.values()
    assert {r.name: (r.address, r.width, r.reset) for r in registers} == added
    assert all(r.windowed and r.access == "rw" and r.description for r in registers)
    assert not any(r.windowed or r.reset for r in memory_map.REGISTERS.values())
    assert memory_map.register_address("INPUT_GAP") == 25

    described, plain = memory_map.describe(machine), memory_map.describe(dense)
    assert described["bias_fields"] == {"column": {"lsb": 0, "width": 3}, "word": {"lsb": 3, "width": 4}}
    assert set(described) - set(plain) == {"bias_fields"}
    assert "one every 16 words" in str(described["windows"]) and "one every 8 words" in str(plain["windows"])
    assert "BATCH" in str(described["registers"]) and "BATCH" not in str(plain["registers"])


def test_register_map() -> None:
    """Counters follow the phases' codes, bits lie inside their registers, the map is plain data."""
    base = memory_map.REGISTERS["CYCLES_WAIT"].address
    for phase in timing.Phase:
        register = memory_map.REGISTERS[f"CYCLES_{phase.name}"]
        assert register.address == base + phase and register.access == "ro"
    for register in memory_map.REGISTERS.values():
        assert register.access in ("ro", "rw", "wo", "w1") and register.description
        assert all(bit < register.width for bit in register.bits.values())
    assert memory_map.register_bit("STATUS", "bad_length") == 2
    assert DESCRIPTOR_STRIDE == 8
    described = memory_map.describe(load_machine("tiny"))
    assert described["address_bits"] == memory_map.address_bits(load_machine("tiny"))
    with pytest.raises(SpecError, match="^register: must be one of"):
        memory_map.register_address("NONE")


def test_tile_interval() -> None:
    """At least as many cycles as columns, which finish one a cycle."""
    assert [timing.tile_interval(tiles, 8) for tiles in (1, 8, 9)] == [8, 8, 9]
    assert max(timing.Phase) < 8
