"""Learning rules: what each makes of a machine, and of a program."""

from dataclasses import replace
from pathlib import Path

import pytest

import spec
from spec.errors import SpecError
from spec.machine import Machine, load_machine
from spec.memory_map import version_value
from spec.network import Network, Recipe, load_network
from spec.program import compile_program
from spec.rules import RULES
from spec.timing import DELTA_LATENCY, UPDATE_TAIL, delta_latency, update_tail

PRESETS = Path(spec.__file__).parent / "presets"


def machine(rule: str, name: str = "digits") -> Machine:
    return replace(load_machine(name), rule=rule)


def network(**shifts: int) -> Network:
    """64-128-128-10, hidden rate 6, output rate 5, and what `rate_shifts` says."""
    digits = load_network("digits")
    return replace(digits, recipe=replace(digits.recipe, rate_shifts=tuple(shifts.items())))


def test_what_rules_need() -> None:
    """The table at the head of docs/rules.md."""
    assert {name: (r.learns, r.scores, r.basis, r.waits, r.transposes, r.trains) for name, r in RULES.items()} == {
        "lls": (True, True, True, False, False, ""),
        "drtp": (True, False, True, False, False, ""),
        "dfa": (True, False, True, True, False, ""),
        "bp": (True, False, False, True, True, ""),
        "inference": (False, False, False, False, False, ""),
        "lls_m": (True, True, True, False, False, "factors"),
        "lls_mxm": (True, True, True, False, False, "matrix"),
        "local_classifier": (True, True, True, False, False, "basis"),
    }
    # VERSION has a rule's number, so none may ever move.
    assert list(RULES) == ["lls", "drtp", "dfa", "bp", "inference", "lls_m", "lls_mxm", "local_classifier"]


def test_widths() -> None:
    """8x8: 29 bits hold an update; 8 weights times 12-bit signals need 31, and 256 of those 36."""
    # What trains its scores has the array of lls.
    widths = {name: machine(name) for name, rule in RULES.items() if not rule.trains}
    for name in RULES.keys() - widths.keys():
        assert replace(machine(name), rule="lls") == widths["lls"]
        assert all(
            getattr(machine(name), width) == getattr(widths["lls"], width)
            for width in ("psum_bits", "acc_bits", "lane_bits", "operand_bits", "product_bits", "signal_bits")
        )
    assert {rule: m.psum_bits for rule, m in widths.items()} == {
        "lls": 29, "drtp": 29, "dfa": 29, "bp": 31, "inference": 27,
    }  # fmt: skip
    assert [m.lane_bits for m in widths.values()] == [18, 18, 18, 18, 2]
    assert [m.random_bits for m in widths.values()] == [12, 12, 12, 12, 0]
    assert [m.operand_bits for m in widths.values()] == [18, 18, 18, 18, 16]
    assert [m.narrow_bits for m in widths.values()] == [8, 8, 8, 16, 8]
    assert widths["bp"].product_bits == 28
    assert widths["bp"].max_delta == 2047 << 6 and widths["dfa"].max_delta == 127 << 10
    # The largest sums fit, and one bit less would not hold them.
    largest = 256 << 26
    assert 1 << (widths["bp"].back_sum_bits - 2) <= largest < 1 << (widths["bp"].back_sum_bits - 1)
    assert [version_value(machine(rule)) for rule in RULES] == [1, 17, 33, 49, 65, 81, 97, 113]


def test_shifted_signals_are_wide_enough() -> None:
    """A 12-bit signal does not fit 10 bits; an 8-bit one does."""
    assert replace(machine("dfa"), delta_bits=10).signal_bits == 8
    with pytest.raises(SpecError, match="^delta_bits: must be an integer from 12 to 18, got 10$"):
        replace(machine("bp"), delta_bits=10)


@pytest.mark.parametrize("rule", RULES)
def test_programs(rule: str) -> None:
    """Shifts by docs/rules.md, section 1, and whose activations are kept."""
    layers = compile_program(network(dfa=9, drtp=8, bp=4), machine(rule)).layers
    expected = {
        "lls": [6 + 6 - 4 + 7 - 14, 6 + 6 - 4 + 4 - 14, 5 + 7 + 4 - 14],
        "drtp": [8 + 6 + 7 - 14, 8 + 6 + 4 - 14, 5 + 7 + 4 - 14],
        "dfa": [9 + 6 + 7 - 14, 9 + 6 + 4 - 14, 5 + 7 + 4 - 14],
        "bp": [4 + 11 + 7 - 14, 4 + 11 + 4 - 14, 5 + 11 + 4 - 14],
    }
    expected |= {name: expected["lls"] for name, needs in RULES.items() if needs.trains}
    if rule in expected:
        assert [layer.rate_shift for layer in layers] == expected[rule]
    assert [layer.train for layer in layers] == [int(rule != "inference")] * 3
    waits = rule in ("dfa", "bp")
    assert [layer.trains_below for layer in layers] == [0, int(waits), int(waits)]
    frozen = compile_program(network(), machine(rule), train_hidden=False).layers
    assert [layer.train for layer in frozen] == [0, 0, int(rule != "inference")]
    assert not any(layer.trains_below for layer in frozen)


def test_kept_activations_have_their_own_words() -> None:
    """Three hidden layers: the third takes the first one's place, or, if all are kept, its own."""
    digits = network()
    deep = replace(digits, layers=(digits.layers[0], *digits.layers))
    assert [layer.a_base for layer in compile_program(deep, machine("lls")).layers] == [16, 32, 16, 0]
    kept = [layer.a_base for layer in compile_program(deep, machine("bp")).layers]
    assert kept == [16, 32, 48, 0]
    with pytest.raises(SpecError, match=r"activation_depth is 63, 1 too few: 64 would fit \(.*all hidden layers'"):
        compile_program(deep, replace(machine("dfa"), activation_depth=63))


def test_rates() -> None:
    """A rule that the recipe names has its own shift, others follow from the output layer's."""
    recipe = network(dfa=9, lls_m=7).recipe
    assert [recipe.rate_shift(rule) for rule in ("lls", "dfa", "bp")] == [6, 9, 5]
    assert [recipe.rate_shift(rule) for rule in ("lls_m", "lls_mxm", "local_classifier")] == [7, 6, 6]
    assert recipe.rate_shift("drtp") == 5 + RULES["drtp"].rate_step
    for wrong in ("lls", "inference", "hebb"):
        with pytest.raises(SpecError, match="^rate_shifts: must be one of drtp, dfa, bp, lls_m, lls_mxm, local_"):
            Recipe(6, 5, rate_shifts=((wrong, 5),))
    with pytest.raises(SpecError, match=r"^rate_shifts.bp: must be an integer from -8 to 20, got 21"):
        Recipe(6, 5, rate_shifts=(("bp", 21),))


def test_latencies() -> None:
    """`update` lasts two cycles beyond the first signal, whatever makes it."""
    assert delta_latency("lls") == DELTA_LATENCY and update_tail("lls") == UPDATE_TAIL
    for name, rule in RULES.items():
        if rule.learns:
            assert update_tail(name) - delta_latency(name) == UPDATE_TAIL - DELTA_LATENCY


def test_depths_of_a_rule(tmp_path) -> None:
    """What a file says of a rule holds where the machine is built for it, and is undone for the next one."""
    text = (PRESETS / "machines" / "smallconv.yaml").read_text()
    assert "rules:\n  dfa: {slope_depth: 131072}\n" in text and "local_classifier: {classifier_depth: 2048}\n" in text
    for own, expected in (("lls", 65536), ("dfa", 131072)):
        path = tmp_path / "m.yaml"
        path.write_text(f"{text}rule: {own}\n")
        loaded = load_machine(path)
        assert loaded.slope_depth == expected
        assert loaded.built_for("dfa").slope_depth == 131072 and loaded.built_for("dfa").rule == "dfa"
        assert loaded.built_for("dfa").built_for("drtp").slope_depth == 65536
        assert loaded.classifier_depth == 1024 and loaded.built_for("local_classifier").classifier_depth == 2048
        assert loaded.built_for("lls") == loaded.built_for("dfa").built_for("lls")


@pytest.mark.parametrize(
    ("rules", "refusal"),
    [
        ("[]", "rules: must be a mapping with lls, "),
        ("{lss: {}}", "rules.lss: is not a known key here"),
        ("{dfa: 5}", "rules.dfa: must be a mapping with activation_depth, "),
        ("{dfa: {rows: 4}}", "rules.dfa.rows: is not a known key here"),
        ("{dfa: {slope_depth: 0}}", "rules.dfa.slope_depth: must be an integer from 1 to "),
    ],
)
def test_refused_depths(rules: str, refusal: str, tmp_path) -> None:
    text = (PRESETS / "machines" / "conv-tiny.yaml").read_text()
    path = tmp_path / "m.yaml"
    path.write_text(f"{text}rules: {rules}\n")
    with pytest.raises(SpecError) as error:
        load_machine(path)
    assert str(error.value).startswith(f"{path}: {refusal}")
