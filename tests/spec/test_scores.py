"""Rules that train a part of the class scores: shapes, first values, addresses, rates, cycles, refusals."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from spec import scores
from spec.errors import SpecError
from spec.machine import SCORE_KEYS, Machine, load_machine
from spec.memory_map import (
    REGISTERS,
    SCORE,
    WINDOWED_REGISTERS,
    WINDOWS,
    address_bits,
    describe,
    offset_bits,
    program_address,
    score_address,
    window_base,
)
from spec.network import Network, Recipe, load_network
from spec.program import compile_program, program_for
from spec.rules import RULES
from spec.timing import score_cycles
from spec.windowed import windowed_layers

TRAINING = [name for name, rule in RULES.items() if rule.trains]
KINDS = {"digits": "digits", "smallconv": "smallconv-cifar10"}
"""A machine and a network of each datapath."""


def machine(rule: str, name: str = "digits", **changes: int) -> Machine:
    return replace(load_machine(name).built_for(rule), **changes)


def network(name: str = "digits", **changes) -> Network:
    return replace(load_network(name), **changes)


@pytest.mark.parametrize("name", KINDS)
def test_shapes(name: str) -> None:
    """The table of docs/rules.md, section 7: rows and lanes of each hidden layer."""
    net = network(KINDS[name])
    latents = {"digits": [128, 128], "smallconv": [32 * 16, 64 * 4, 128 * 4, 512]}[name]
    assert scores.trained_shapes(net, machine("lls_m", name)) == ((10, 1),) * len(latents)
    assert scores.trained_shapes(net, machine("lls_mxm", name)) == ((10, 10),) * len(latents)
    assert scores.trained_shapes(net, machine("lls_mxm", name, vectors=4)) == ((4, 10),) * len(latents)
    assert scores.trained_shapes(net, machine("local_classifier", name)) == tuple((n, 10) for n in latents)
    for rule in ("lls", "drtp", "inference"):
        assert scores.trained_shapes(net, machine(rule, name)) == ()
        assert scores.first_codes(net, machine(rule, name)) == []


@pytest.mark.parametrize("basis", ["square", "walsh", "sine"])
def test_first_values(basis: str) -> None:
    """1 has 20 fraction bits; a class reads the vector of its number, modulo; an entry of a sine has 7."""
    one, net = 1 << 20, network(basis=basis)
    for rule, expected in (("lls_m", [[one]] * 10), ("lls_mxm", (one * np.eye(10)).tolist())):
        assert [codes.tolist() for codes in scores.first_codes(net, machine(rule))] == [expected] * 2
    for matrix in scores.first_codes(net, machine("lls_mxm", vectors=4)):
        assert matrix.dtype == np.int32 and matrix.sum(axis=0).tolist() == [one] * 10
        assert [int(np.argmax(column)) for column in matrix.T] == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    for classifier in scores.first_codes(net, machine("local_classifier")):
        table = scores.score_basis(net, machine("local_classifier")).table(128)
        # Products take the upper 16 bits, 12 of them a fraction: of a sine's 7 none is lost.
        assert np.array_equal(classifier >> 8, table.T.astype(int) << (5 if basis == "sine" else 12))
        assert not np.any(classifier & 255) and classifier.dtype == np.int32


def test_the_basis_has_as_many_vectors_as_the_machine() -> None:
    """Under ``lls_mxm`` alone; more than there are classes are refused, by what compiles a program too."""
    net = network()
    assert scores.score_basis(net, machine("lls_mxm", vectors=4)).classes == 4
    for rule in ("lls", "lls_m", "local_classifier", "dfa"):
        assert scores.score_basis(net, machine(rule, vectors=4)).classes == 10
    wide = machine("lls_mxm", vectors=11)
    refusal = "vectors: must be at most the 10 classes of network digits, or 0 for as many, got 11"
    with pytest.raises(SpecError, match=f"^{refusal}"):
        scores.score_basis(net, wide)
    with pytest.raises(SpecError, match=f"^network digits does not fit machine digits: {refusal}$"):
        compile_program(net, wide)
    compile_program(net, replace(wide, rule="lls_m"))


@pytest.mark.parametrize("name", KINDS)
def test_a_classifier_memory_holds_all_latents(name: str) -> None:
    """Of all hidden layers; no other rule needs it."""
    net, has = network(KINDS[name]), machine("local_classifier", name)
    needed = sum(geometry.latents for geometry in net.geometry[:-1])
    program_for(net, replace(has, classifier_depth=needed))
    short = replace(has, classifier_depth=needed - 1)
    refusal = f"classifier_depth is {needed - 1}, 1 too few: {needed} would fit (latents of all hidden layers)"
    with pytest.raises(SpecError) as error:
        program_for(net, short)
    assert str(error.value) == f"network {net.name} does not fit machine {has.name}: {refusal}"
    for rule in ("lls", "lls_m", "lls_mxm", "inference"):
        program_for(net, replace(short, rule=rule))


@pytest.mark.parametrize("key", SCORE_KEYS)
def test_bounds(key: str) -> None:
    """0 vectors are as many as classes."""
    digits = load_machine("digits")
    assert replace(digits, vectors=0).vectors == 0 and replace(digits, **{key: 2}) != digits
    for wrong in (1, -1, 70000, "2", True):
        with pytest.raises(SpecError, match=f"^{key}: must be an integer from 2 to (255|65536), got"):
            replace(digits, **{key: wrong})


def test_rows_and_lanes_of_the_memory() -> None:
    """Rows of as many layers as a program may have; a row is a word of all lanes."""
    digits = load_machine("digits")
    assert digits.max_layers == 8
    expected = {"lls_m": (80, 1, 0, 11), "lls_mxm": (32, 10, 8, 11), "local_classifier": (1024, 10, 8, 10)}
    for rule, (rows, lanes, lane_bits, row_bits) in expected.items():
        m = machine(rule, vectors=4)
        assert scores.rows(m, 10, 4) == rows and scores.lanes(m, 10) == lanes
        assert (scores.lane_bits(m), scores.row_bits(m)) == (lane_bits, row_bits)
        assert rows <= 1 << row_bits and lanes <= 1 << lane_bits
    for depth, bits in ((2, 1), (1025, 11)):
        assert scores.row_bits(machine("local_classifier", classifier_depth=depth)) == bits


@pytest.mark.parametrize("rule", TRAINING)
@pytest.mark.parametrize("name", [*KINDS, "tiny"])
def test_addresses(rule: str, name: str) -> None:
    """Every parameter has an address of its own, in the upper half of the registers' window."""
    m = machine(rule, name)
    rows, lanes = 1 << scores.row_bits(m), 1 << scores.lane_bits(m)
    places = [(row, lane) for row in {0, 1, 2, rows // 2, rows - 1} for lane in {0, 1 % lanes, lanes - 1}]
    found = {score_address(m, *place): place for place in places}
    assert len(found) == len(places)
    half = 1 << (offset_bits(m) - 1)
    assert window_base(m, SCORE) == half and all(half <= address < 2 * half for address in found)
    assert all(register.address < half for register in (REGISTERS | WINDOWED_REGISTERS).values())
    assert max(found) < program_address(m, 0, 0) < 1 << address_bits(m)
    if lanes > 1:
        assert score_address(m, 3 % rows, 2) - score_address(m, 0, 0) == (3 % rows << 8) + 2
    else:
        assert score_address(m, 3, 0) - score_address(m, 0, 0) == 3
    for row, lane, key in ((rows, 0, "row"), (-1, 0, "row"), (0, lanes, "lane"), (0, -1, "lane")):
        with pytest.raises(SpecError, match=f"^{key}: must be an integer from 0 to "):
            score_address(m, row, lane)


@pytest.mark.parametrize("name", KINDS)
def test_the_description_has_the_window(name: str) -> None:
    """Where the rule trains parameters alone; other machines' addresses are not wider for it."""
    for rule in ("lls", "drtp", *TRAINING):
        m = machine(rule, name)
        described: dict[str, Any] = describe(m)
        windows = {window["name"]: window["base"] for window in described["windows"]}
        assert ("score_fields" in described) == ("SCORE" in windows) == (rule in TRAINING)
        assert len(windows) == len(WINDOWS) + (rule in TRAINING)
        if rule in TRAINING:
            fields = described["score_fields"]
            assert windows["SCORE"] == window_base(m, SCORE) and fields["lane"]["lsb"] == 0
            assert fields["row"]["lsb"] == fields["lane"]["width"] == scores.lane_bits(m)
            assert fields["row"]["width"] == scores.row_bits(m)
    assert offset_bits(machine("lls", name)) == offset_bits(machine("drtp", name))


@pytest.mark.parametrize("rule", TRAINING)
@pytest.mark.parametrize("shift", [-8, 6, 20])
def test_the_rate_follows_from_a_descriptor(rule: str, shift: int) -> None:
    """LR - 2, at which docs/rules.md's two sums of a descriptor's shifts arrive."""
    for name, plain in KINDS.items():
        net = network(plain)
        net = replace(net, recipe=replace(net.recipe, rate_shifts=((rule, shift),)))
        m = machine(rule, name)
        layers = windowed_layers(net, m) if net.windowed else compile_program(net, m).layers
        for layer, geometry in list(zip(layers, net.geometry, strict=True))[:-1]:
            added = 17 - geometry.latent_shift if net.windowed else 20
            assert layer.rate_shift - layer.act_shift + added == shift - scores.RATE_STEP


def test_cycles() -> None:
    """A walk over a matrix's rows for the scores, and one for the errors."""
    assert score_cycles("", 10) == (0, 0) == score_cycles("basis", 10)
    assert score_cycles("factors", 10) == score_cycles("factors", 3)
    tails = score_cycles("matrix", 0)
    assert score_cycles("matrix", 7) == (tails[0] + 14, tails[1] + 7)


def test_recipes_name_their_rates() -> None:
    """The rules have LLS's rate unless a recipe says otherwise."""
    for rule in TRAINING:
        assert Recipe(6, 5).rate_shift(rule) == 6
        assert Recipe(6, 5, rate_shifts=((rule, 4),)).rate_shift(rule) == 4
