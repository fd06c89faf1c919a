"""The comparison of rules with hardware: which are in it, its parts, the learning tax, who beats LLS."""

import csv
import io
from dataclasses import replace

import pytest

from sim.area import Area
from sim.cycle.compare import Comparison, compare, known_technologies, steps_of
from sim.cycle.plots import FIGURES, draw
from sim.cycle.tax import SPOON
from sim.cycle.text import NAMES
from spec.errors import SpecError
from spec.machine import load_machine
from spec.network import load_network
from spec.rules import RULES
from spec.technology import load_technology

HOROWITZ = load_technology("horowitz-45nm")
DIGITS = load_machine("digits"), load_network("digits")
ACCURACY = {"lls": (97.0, 98.0), "drtp": (95.0, 96.0), "dfa": (97.5, 97.5), "bp": (98.0, 99.0)}


def area(luts: int, flip_flops: int, lut_ram: int = 0) -> Area:
    """Of an ECP5, with as many memories and multipliers under every rule."""
    cells = {"LUT4": luts, "TRELLIS_FF": flip_flops, "MULT18X18D": 64, "DP16KD": 70, "TRELLIS_DPR16X4": lut_ram}
    return Area("ecp5", cells, 1.0)


AREAS = {
    "lls": area(1300, 600, 5),
    "drtp": area(1100, 550),
    "dfa": area(1150, 600),
    "bp": area(1200, 700),
    "inference": area(1000, 500),
    "lls_m": area(1400, 650),
    "lls_mxm": area(1500, 700),
    "local_classifier": area(1600, 650),
}


ORDER = ("lls", "lls_m", "lls_mxm", "local_classifier", "drtp", "dfa", "bp", "inference")


@pytest.fixture(scope="module")
def everything() -> Comparison:
    """All rules, areas and accuracies."""
    return compare(*DIGITS, HOROWITZ, known_technologies(), ACCURACY, areas=AREAS, training="two seeds")


def test_every_rule_with_hardware_is_compared(everything):
    # As people meet them, not as the hardware numbers them.
    assert everything.rules == tuple(NAMES) == ORDER and sorted(NAMES) == sorted(RULES)
    assert everything.others == ORDER[1:-1]
    for rule, metrics in everything.metrics.items():
        assert metrics["rule"] == rule
    assert not everything.left_out and "model" not in everything.label


def test_rules_are_chosen():
    chosen = compare(*DIGITS, HOROWITZ, rules=("bp", "lls"))
    assert chosen.rules == ("bp", "lls") and chosen.others == ("bp",) and not chosen.tax
    assert chosen.to_markdown().startswith("# BP and LLS: digits")
    # Without LLS nothing is held against it; without inference there is no tax.
    other = compare(*DIGITS, HOROWITZ, rules=("dfa", "inference"))
    assert other.others == () and list(other.tax) == ["dfa"] and other.verdict_survives == {}
    assert "Where LLS loses" not in other.to_markdown() and "technologies" not in other.to_markdown()
    alone = compare(*DIGITS, HOROWITZ, rules=("inference",))
    assert not alone.tax and alone.to_text().splitlines()[0].split() == ["inference"]
    steps, _ = steps_of(load_machine("smallconv"), load_network("smallconv-cifar10"), ("drtp", "bp"))
    assert list(steps) == ["drtp", "bp"]
    with pytest.raises(SpecError, match="rules.*must be one of lls, drtp, dfa, bp, inference.*'hebb'"):
        steps_of(*DIGITS, ("hebb",))


def test_what_a_machine_has_no_room_for_is_left_out_and_said():
    machine, network = DIGITS
    # Three hidden layers of 128 where there is room for two: rules that wait keep them all.
    network = replace(network, layers=(network.layers[0], *network.layers))
    tight = replace(machine, activation_depth=48)
    comparison = compare(tight, network, HOROWITZ)
    assert comparison.rules == tuple(rule for rule in ORDER if not RULES[rule].waits)
    assert set(comparison.left_out) == {"dfa", "bp"} and "activation_depth" in comparison.left_out["dfa"]
    assert "Left out: DFA. " in comparison.to_markdown()
    with pytest.raises(SpecError, match="rule bp: .*activation_depth"):
        compare(tight, network, HOROWITZ, rules=("lls", "bp"))
    with pytest.raises(SpecError, match="^network digits does not fit"):
        compare(replace(tight, activation_depth=20), network, HOROWITZ)
    narrow = compare(replace(machine, delta_bits=8), DIGITS[1], HOROWITZ)
    assert list(narrow.left_out) == ["bp"]


def test_parts_add_up_to_the_whole(everything):
    for title, rows in everything.details.items():
        *parts, whole = rows
        if title.startswith("Area"):
            continue
        for rule in RULES:
            total = sum(row.values[rule] for row in parts)
            assert total == pytest.approx(whole.values[rule], rel=1e-12), (title, rule)
        assert all(any(row.values.values()) for row in parts)
    assert "cycles, update" in {row.quantity for row in everything.details["Cycles by phase"]}


def test_the_learning_tax_is_in_percent_over_inference(everything):
    lls, one = everything.metrics["lls"], everything.metrics["inference"]
    tax = everything.tax["lls"]
    assert tax["cycles"] == pytest.approx(100 * (lls["cycles"] / one["cycles"] - 1))
    assert tax["energy"] == pytest.approx(100 * (lls["energy_pj"] / one["energy_pj"] - 1))
    power = lls["energy_pj"] / lls["cycles"] / (one["energy_pj"] / one["cycles"])
    assert tax["power"] == pytest.approx(100 * (power - 1))
    # 1300 LUT4 and 5 RAMs in the places of 4 each.
    assert tax["LUTs"] == pytest.approx(32) and tax["flip-flops"] == pytest.approx(20) and tax["block RAMs"] == 0
    assert "LUT RAM" not in tax and "inference" not in everything.tax
    report = everything.to_markdown()
    assert "| area: LUTs | +32.0 % | +40.0 % | +50.0 % | +60.0 % | +10.0 % | +15.0 % | +20.0 % | +11.8 %" in report
    assert "+16.8 %" in report and SPOON.source in report and "arXiv:2005.06318" in report
    assert "LUT4 + 2·CCU2C" in report


def test_who_beats_lls_is_named(everything):
    bp = {row.quantity for row in everything.where_better("bp")}
    assert {"area, LUTs", "test accuracy"} <= bp and "area, flip-flops" not in bp and "cycles, whole step" not in bp
    assert "area, flip-flops" not in {row.quantity for row in everything.where_better("dfa")}
    line = next(line for line in everything.to_markdown().splitlines() if line.startswith("- To BP"))
    assert "test accuracy (98.5 against 97.5 %)" in line and "area, LUTs (1,200 against 1,320 cells)" in line
    assert "| LLS | 97.50 | 97.00, 98.00 |" in everything.to_markdown() and "two seeds." in everything.to_markdown()


def test_eight_rules_read_well(everything):
    """No line of the terminal's table is wider than a terminal; multiples have a table of their own."""
    text = everything.to_text()
    assert max(map(len, text.splitlines())) <= 120 and "\n\n" not in text
    report = everything.to_markdown()
    assert "| quantity | LLS | LLS-M | LLS-MxM | local classifier | DRTP | DFA | BP | inference |\n" in report
    assert "| over LLS's | LLS-M | LLS-MxM | local classifier | DRTP | DFA | BP |\n" in report
    multiple = everything.metrics["lls_mxm"]["cycles"] / everything.metrics["lls"]["cycles"]
    assert f" | {multiple:.2f}x | 1.00x | " in report and "Trained parameters of class scores" in report
    few = compare(*DIGITS, HOROWITZ, rules=("lls", "bp")).to_markdown()
    assert "| quantity | LLS | BP | BP/LLS |\n" in few and "over LLS's |" not in few and "trained scores" not in few
    # Large numbers: half of the rules each.
    wide = compare(load_machine("smallconv"), load_network("smallconv-cifar10"), HOROWITZ).to_text()
    first, second = wide.split("\n\n")
    assert first.split("\n")[0].split() == ["LLS", "LLS-M", "LLS-MxM", "local", "classifier"]
    assert second.split("\n")[0].split() == ["DRTP", "DFA", "BP", "inference"]
    assert [line[:35] for line in first.split("\n")] == [line[:35] for line in second.split("\n")]
    assert max(map(len, wide.split("\n"))) <= 120


def test_the_csv_has_every_line_once(everything):
    table = list(csv.DictReader(io.StringIO(everything.to_csv())))
    names = [row["quantity"] for row in table]
    assert len(names) == len(set(names)) and {"cycles, forward", "energy, weight memory", "area, LUT RAM"} <= set(names)
    rows = {row["quantity"]: row for row in table}
    assert rows["test accuracy"]["inference"] == "" and rows["test accuracy"]["bp"] == "98.5"
    assert rows["memory, slopes"]["bp_over_lls"] == ""
    assert float(rows["cycles, whole step"]["dfa_over_lls"]) < 1 and "inference_over_lls" not in rows["test accuracy"]


def test_every_figure_is_drawn_from_its_numbers(everything, tmp_path):
    assert {path.stem for path in draw(everything, tmp_path)} == set(FIGURES)
    for name in ("tax", "area", "accuracy"):
        figure = FIGURES[name](everything)
        assert figure is not None
        said = [text.get_text() for axes in figure.axes for text in axes.texts]
        wanted = {
            "tax": ("+32.0 %", f"+{SPOON.area} %", f"+{SPOON.power} %", f"+{everything.tax['bp']['cycles']:.1f} %"),
            "area": ("1.32x  1,320", "1.00x  1,000", "5"),
            "accuracy": ("BP  98.50 %", "LLS  97.50 %"),
        }[name]
        for text in wanted:
            assert any(text in found for found in said), (name, text, said)
    cycles = FIGURES["cycles"](everything)
    assert cycles is not None
    said = [text.get_text() for text in cycles.axes[0].texts]
    signal, whole = (everything.metrics["lls"][key] for key in ("cycles_by_phase", "cycles"))
    assert str(signal["signal"]) in said and f" {whole:,}" in said
    assert f"largest score {everything.metrics['inference']['cycles_by_phase']['signal']}" in said
