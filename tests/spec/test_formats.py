"""Number formats, the machine's widths, the random sequence and the basis."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest

from spec.basis import Basis, basis_frequencies
from spec.errors import SpecError
from spec.lfsr import PERIOD, SEQUENCE, TAPS, offset
from spec.machine import (
    ACT_BITS,
    ACTIVATION_FORMAT,
    INPUT_FORMAT,
    SCORE_KEYS,
    WEIGHT_BITS,
    WEIGHT_FORMAT,
    WINDOWED_KEYS,
    Machine,
    load_machine,
)
from spec.network import load_network
from spec.qformat import QFormat, signed_bits
from spec.technology import ACTIONS, load_technology, weight_action
from spec.yaml_loader import preset_names

SHA256 = {
    ("square", 10, 128): "3dd4e05362213ce94d0f864a742159e09d32c4e80b510615dc633341412aab8d",
    ("square", 10, 512): "104585f559778b737fdb25bfa4a06b9e39f8ba61c52d5bdb7c41811fd04cda3e",
    ("square", 2, 128): "9493054847e0d86fcf0485fec5b96d8aafeb4f5b91507fd862bf88c8a592f5da",
    ("square", 2, 256): "be31f1f27a325a11ab6c9317eae4973a127694e9260a74b6aaf5180b6fb3dea5",
    ("square", 2, 512): "6e77ee79104f2d3b45602a9990e02d313215354658b917d26ea4a456cb995869",
    ("square", 2, 1024): "336bc3bf24f405ddb6d1674b6b4936f22b1a2d7932a5ba1ce4b54de7bdd1f995",
    ("square", 2, 2048): "e8d5f652e4a4221adc9bd61942f32cb6f819b2526a77eab38d81a115da7942f5",
    ("square", 10, 64): "a5a2d055be4ef98a4d8e257371dfedc7cc7da8477169355053f81ceba18e3d30",
    ("square", 10, 256): "005c18c03b1c257f885cd724f01243cb66df77436604cd7c31c45de8d32f4f5b",
    ("square", 10, 768): "c32e3fc3f541911622f71183ac6fe453199f9f08f3d2684782901330471f69b2",
    ("square", 10, 1024): "552867fc171acc5bf6606e258db53148da55dd281755e769d3be6842da9f036d",
    ("square", 10, 1536): "36eb337e1b07f30ab3e34596d7595f89b97c056b7c0c5298d22fc8747658152b",
    ("square", 10, 2048): "ff5f5803e573e11ef168e8560a4e6ae5743e15073ae57f179f4b392036b57aff",
    ("square", 12, 256): "bf28d7ac586cbe67a29da82c032f5bac2cdd1c17f93bc17fadc0b61776fc9b4e",
    ("square", 12, 384): "0cb9515946ac82eaa7f72f9aa2ca9bea9428dccdf7777ba818f12d0d7d95d688",
    ("square", 12, 512): "cba16fb3891eb46c011863ce9c45c32a00d71a918b19616257fe61aaa5b34f78",
    ("square", 3, 5): "464e6a3328e2a57a7af74cb1a613887d39784bbe432cfdc9936c73e4f2af52ea",
    ("square", 3, 8): "39497121468618ed0d1a8a28597981ea9c73922092b4ac33249e44032dd4989a",
    ("square", 3, 12): "4523fda8cbad95bcaa5851e78044e2cbddd8542986e4077a4237b8e609fe18a7",
    ("square", 3, 3): "7463b74fb717550c7be5773dc08e87b8f0c7b49c36eb25eca9143a96249b6233",
    ("sine", 10, 128): "8198af9404a8f2d2cd4a0a54065ee50b8e00ca772abbc1085fa706888068b17f",
    ("sine", 10, 512): "bb6aa404ed4b61b6270990108b96e4cdb9a026ad8bc2ac982a2dcb0aa44978ef",
    ("walsh", 10, 48): "06cde001f34e4970c85f298b3060225bd1a5bdc280aa8af1466f03a12dde8547",
    ("walsh", 10, 128): "9aae6b3e3cedeb91e9aa1547f17f65891bb1909fcf4bd5d488fee31c059244b6",
}
"""Tables of the preset networks, and of the other bases at their sizes."""

PI = Fraction(
    "3.14159265358979323846264338327950288419716939937510582097494459230781640628620899862803482534"
)


@pytest.mark.parametrize("text", ["sQ2.14", "uQ0.8", "sQ4.4", "sQ20.0", "sQ1.1"])
def test_qformat_round_trip(text: str) -> None:
    """A format reads what it prints, and its codes fill its bits."""
    form = QFormat.parse(text)
    assert str(form) == text
    assert form.max_code - form.min_code + 1 == 1 << form.bits


def test_qformat_ranges() -> None:
    """The formats of the arithmetic."""
    assert (WEIGHT_FORMAT.bits, WEIGHT_FORMAT.min_code, WEIGHT_FORMAT.max_code) == (
        16,
        -32768,
        32767,
    )
    assert str(ACTIVATION_FORMAT) == "sQ4.4"
    assert str(INPUT_FORMAT) == "sQ1.7"
    assert (QFormat(0, 8, False).min_code, QFormat(0, 8, False).max_code) == (0, 255)


@pytest.mark.parametrize("text", ["Q2.14", "sQ2", "sQ-1.4", "sQ0.0", "uQ0.0", "sQ2.14 ", "", None])
def test_qformat_refused(text: str) -> None:
    """Anything else is refused."""
    with pytest.raises(SpecError):
        QFormat.parse(text)


@pytest.mark.parametrize("name", preset_names("machines"))
def test_sums_fit_and_widths_are_tight(name: str) -> None:
    """The worst sums, from the extreme codes themselves, just fit the derived widths."""
    machine = load_machine(name)

    def fits(value: int, bits: int) -> bool:
        return -(1 << (bits - 1)) <= value < 1 << (bits - 1)

    product = (-(1 << (WEIGHT_BITS - 1))) * (-(1 << (ACT_BITS - 1)))
    delta = 127 << (machine.delta_bits - ACT_BITS)
    assert fits(delta, machine.delta_bits)
    assert fits(delta * 128, machine.product_bits) and fits(product, machine.product_bits)
    high, low = 32767 << machine.fraction_bits, -32768 << machine.fraction_bits
    random = (1 << machine.fraction_bits) - 1
    forward = (machine.rows * product, -machine.rows * 32768 * 127)
    update = (high + random + delta * 128, low - delta * 128)
    assert all(fits(value, machine.psum_bits) for value in (*forward, *update))
    tight = not all(fits(value, machine.psum_bits - 1) for value in (*forward, *update))
    assert tight or machine.psum_bits == machine.gradient_bits
    total = machine.max_fan_in * product + (32767 << 7)
    assert fits(total, machine.acc_bits)
    assert machine.acc_bits >= machine.psum_bits
    assert machine.acc_bits == machine.psum_bits or not fits(total, machine.acc_bits - 1)
    bias = (high + random + (delta << 7), low - (delta << 7))
    assert all(fits(value, machine.bias_sum_bits) for value in bias)
    assert not all(fits(value, machine.bias_sum_bits - 1) for value in bias)
    assert machine.max_neurons * 128 * 128 < 1 << machine.norm_bits
    assert (machine.norm_bits - 1 + 1) >> 1 <= 31 - 9


def test_signed_bits() -> None:
    """The narrowest two's complement width of a magnitude."""
    assert [signed_bits(value) for value in (0, 1, 127, 128)] == [1, 2, 8, 9]


def test_address_bits() -> None:
    """Address widths hold the last word, also for depths that are no power of two."""
    machine = dataclasses.replace(load_machine("tiny"), rows=3, cols=5, weight_depth=33)
    assert (machine.row_bits, machine.col_bits, machine.weight_addr_bits) == (2, 3, 6)
    assert dataclasses.replace(machine, rows=1).row_bits == 0


def test_address_bits_with_banks() -> None:
    """Biases in a bank a column; a single word needs no address."""
    array = dataclasses.replace(load_machine("conv-tiny"), rows=8, cols=5, bias_depth=46)
    machine = dataclasses.replace(array, max_batch=5, max_side=17, slope_depth=129, signal_depth=1)
    assert (machine.bias_bank_depth, machine.bias_bank_addr_bits) == (10, 4)
    assert dataclasses.replace(machine, bias_depth=45).bias_bank_depth == 9
    assert dataclasses.replace(machine, bias_depth=5).bias_bank_addr_bits == 0
    assert (machine.sample_bits, machine.side_bits) == (3, 5)
    assert (machine.slope_addr_bits, machine.signal_addr_bits) == (8, 0)
    one = dataclasses.replace(machine, max_batch=1, max_side=1)
    assert (one.sample_bits, one.side_bits) == (1, 1)


def test_keys_of_machines_that_sum_gradients() -> None:
    """The others must not have them, so that no key is without effect."""
    plain, windowed = load_machine("digits"), load_machine("conv-tiny")
    assert windowed.windowed and not plain.windowed
    for key in WINDOWED_KEYS:
        with pytest.raises(SpecError, match=f"^{key}: must be left out without gradient_bits, got 2$"):
            dataclasses.replace(plain, **{key: 2})
        assert dataclasses.replace(plain, **{key: getattr(plain, key)}) == plain
        assert getattr(dataclasses.replace(windowed, **{key: 2}), key) == 2
    assert set(windowed.own_keys) - set(plain.own_keys) == set(WINDOWED_KEYS)
    others = {"device", "rule", "rules", *SCORE_KEYS}
    assert {field.name for field in dataclasses.fields(Machine)} - set(windowed.own_keys) == others


@pytest.mark.parametrize("name", ["digits", "conv-tiny"])
def test_keys_of_rules_that_train_scores(name: str) -> None:
    """A machine for another rule takes them, so that it can be built for these, and makes no use of them."""
    plain = load_machine(name)
    expected = {"lls_m": set(), "lls_mxm": {"vectors"}, "local_classifier": {"classifier_depth"}, "drtp": set()}
    for rule, keys in expected.items():
        assert set(plain.built_for(rule).own_keys) - set(plain.own_keys) == keys


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(Machine)])
def test_machine_refuses_each_field(field: str) -> None:
    """Every field of a machine is checked, also when it is made in Python."""
    with pytest.raises(SpecError) as caught:
        dataclasses.replace(load_machine("digits"), **{field: -1})
    assert caught.value.key == field


def test_lfsr_has_full_period_and_steps_as_specified() -> None:
    """All 65535 states but 0, each the step of the one before, the last leading back to 1."""
    assert SEQUENCE.dtype == np.uint16 and SEQUENCE.shape == (PERIOD,) and SEQUENCE[0] == 1
    states = SEQUENCE.astype(np.int64)
    after = (states >> 1) ^ np.where(states & 1, TAPS, 0)
    assert np.array_equal(after, np.roll(states, -1))
    assert states[1:4].tolist() == [0xB400, 0x5A00, 0x2D00]
    assert len(np.unique(states)) == PERIOD and 0 not in states
    assert not SEQUENCE.flags.writeable


def test_lfsr_offsets_divide_the_period() -> None:
    """R*C + 1 distinct starting points, evenly spaced."""
    machine = load_machine("digits")
    offsets = [offset(machine, number) for number in range(65)]
    assert offsets[:2] == [0, 1008] and set(np.diff(offsets)) == {1008}
    assert offsets[-1] < PERIOD
    with pytest.raises(SpecError):
        offset(machine, 65)


@pytest.mark.parametrize(("kind", "classes", "n"), SHA256)
def test_basis_hash(kind: str, classes: int, n: int) -> None:
    """A changed table would make every trained weight of the past irreproducible."""
    assert Basis(kind, classes).sha256(n) == SHA256[kind, classes, n]


def test_presets_are_pinned() -> None:
    """Every hidden layer of every preset network has its table pinned above."""
    for name in preset_names("networks"):
        network = load_network(name)
        for layer in network.geometry[:-1]:
            assert (network.basis, network.classes, layer.latents) in SHA256


@pytest.mark.parametrize("classes", [2, 10, 12, 100])
def test_trigonometric_bases_against_exact_reduction(classes: int) -> None:
    """Against arguments reduced by pi to 90 digits: same sign, same rounded sine."""
    n = 2048
    square, sine = Basis("square", classes).table(n), Basis("sine", classes).table(n)
    assert square.dtype == sine.dtype == np.int8 and square.shape == sine.shape == (classes, n)
    assert not square[:, 0].any() and not sine[:, 0].any()
    assert set(np.unique(square[:, 1:])) == {-1, 1}
    for c, frequency in enumerate(basis_frequencies(classes).tolist()):
        for i in range(1, n, 7):
            argument = Fraction(frequency * i)
            reduced = float(argument - (argument // (2 * PI)) * (2 * PI))
            value = 127 * math.sin(reduced)
            assert square[c, i] == (1 if value > 0 else -1)
            assert sine[c, i] == math.copysign(math.floor(abs(value) + 0.5), value)


def test_walsh_rows() -> None:
    """Parity by counting bits; exactly orthogonal at a power of two."""
    basis = Basis("walsh", 10)
    table = basis.table(128)
    for c in range(10):
        expected = [1 - 2 * ((basis.walsh_mask(c) & i).bit_count() & 1) for i in range(128)]
        assert table[c].tolist() == expected
    gram = table.astype(int) @ table.T.astype(int)
    assert np.array_equal(gram, 128 * np.eye(10, dtype=int))


@pytest.mark.parametrize("name", preset_names("technologies"))
def test_technology_rows(name: str) -> None:
    """Every action has a positive energy and a source; wider operations cost no less."""
    actions = load_technology(name).actions
    assert tuple(actions) == tuple(ACTIONS)
    assert all(action.pj > 0 for action in actions.values())
    order = ("multiply_8x8", "multiply_8x16", "multiply_8x18", "multiply_16x16")
    assert sorted(order, key=lambda key: actions[key].pj) == list(order)
    assert actions["multiply_8x16"].derived and actions["weight_read"].derived
    assert actions["weight_read"].pj * 2 == actions["activation_read"].pj * 4


def test_weight_action_follows_the_memory() -> None:
    """A PE of mnist holds 32 KB, one of digits 2 KB."""
    assert weight_action(load_machine("mnist"), "read") == "weight_read_32kb"
    assert weight_action(load_machine("digits"), "write") == "weight_write"
    for depth, action in ((4096, "weight_read"), (4097, "weight_read_32kb")):
        machine = dataclasses.replace(load_machine("digits"), weight_depth=depth)
        assert weight_action(machine, "read") == action
