"""docs/configuration.md against the code: the same keys, the same checks, the same defaults."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

import spec
from spec.errors import SpecError
from spec.machine import load_machine
from spec.network import load_network
from spec.technology import ACTIONS, load_technology

TEXT = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
PRESETS = Path(spec.__file__).parent / "presets"
LAYERS = ("fully_connected", "convolution", "depthwise_convolution")
NETWORK = {
    "name": "n",
    "input_shape": [8, 8, 3],
    "classes": 3,
    "basis": "square",
    "layers": [
        {"type": "convolution", "channels": 4, "kernel": 3, "latent": 2},
        {"type": "depthwise_convolution", "kernel": 3, "latent": 2},
        {"type": "fully_connected", "neurons": 3},
    ],
    "recipe": {"hidden_rate_shift": 6, "output_rate_shift": 5},
}


def preset(kind, name):
    return yaml.safe_load((PRESETS / kind / f"{name}.yaml").read_text())


# title of a table's first column: (a file that is right, how it is loaded, where the table's keys are in it).
TABLES = {
    ("Machine", "key"): (preset("machines", "digits"), load_machine, ()),
    ("Machine", "key of `device`"): (preset("machines", "digits"), load_machine, ("device",)),
    ("Network", "key"): (NETWORK, load_network, ()),
    ("Network", "key of `recipe`"): (NETWORK, load_network, ("recipe",)),
    **{
        ("Network", f"key of a layer of `type: {kind}`"): (NETWORK, load_network, ("layers", index))
        for kind, index in zip(LAYERS, (2, 0, 1), strict=True)
    },
    ("Technology", "key"): (preset("technologies", "horowitz-45nm"), load_technology, ()),
    ("Technology", "key of an action"): (
        preset("technologies", "horowitz-45nm"), load_technology, ("actions", "add_32")
    ),
}  # fmt: skip


def tables():
    """Rows of each table, without the quotes around the key: `{(section, first title): [cells]}`."""
    found, section, rows = {}, "", None
    for line in TEXT.splitlines():
        if line.startswith("## "):
            section = line[3:]
        if not line.startswith("|"):
            rows = None
            continue
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if rows is None:
            rows = found[section, cells[0]] = []
        elif set(line) - set("|-"):
            rows.append([cells[0].strip("`"), *cells[1:]])
    return found


FOUND = tables()
ROWS = [(table, *row) for table in TABLES for row in FOUND[table]]


def put(values, path, key, value):
    """A copy of a file with another value at a key (`...`: without it)."""
    values = copy.deepcopy(values)
    inner = values
    for part in path:
        inner = inner[part]
    if value is ...:
        inner.pop(key, None)
    else:
        inner[key] = value
    return values


def load(table, tmp_path, key=None, value: Any = ...):
    """What the code makes of a table's file with that change: an object, or its refusal's message."""
    values, loader, path = TABLES[table]
    file = tmp_path / "f.yaml"
    file.write_text(yaml.safe_dump(values if key is None else put(values, path, key, value)))
    try:
        return loader(file)
    except SpecError as error:
        return str(error)


def test_the_tables_are_all_there():
    assert set(FOUND) == {*TABLES, ("Technology", "action")}
    assert dict(map(tuple, FOUND["Technology", "action"])) == ACTIONS


@pytest.mark.parametrize("table", TABLES, ids=str)
def test_keys(table, tmp_path):
    """Those of the table are those that the code knows, in its own words."""
    assert not isinstance(load(table, tmp_path), str)
    message = load(table, tmp_path, "nosuch", 1)
    known = re.search(r"nosuch: is not a known key here \(known: (.*)\)", message)
    assert known, message
    assert sorted(row[0] for row in FOUND[table]) == sorted(known[1].split(", "))


@pytest.mark.parametrize("table, key, what, rule, default", ROWS, ids=lambda value: str(value)[:40])
def test_checks(table, key, what, rule, default, tmp_path):
    """A value that nothing takes is refused in the words of the column "must be"; so is one beyond a bound."""
    assert what
    wrong = ["x"] if key == "input_shape" else 0.5 if rule == "a line of text" else "x y"
    message = load(table, tmp_path, key, wrong)
    stated = re.sub(r"; .*", "", rule)
    assert re.search(rf"must be {re.escape(stated)}(, got| with)", message) and key in message, message
    bounds = re.fullmatch(r"an? (integer|number) from (\S+) to (\S+)", stated)
    if bounds:
        for beyond in (float(bounds[2]) - 1, float(bounds[3]) + 1):
            value = [int(beyond)] if key == "input_shape" else int(beyond)
            assert f"must be {stated}" in load(table, tmp_path, key, value)


@pytest.mark.parametrize("table, key, what, rule, default", ROWS, ids=lambda value: str(value)[:40])
def test_defaults(table, key, what, rule, default, tmp_path):
    """A key without a default must be there; one that has a default may be left out, with that value."""
    left_out = load(table, tmp_path, key, ...)
    if not default:
        assert isinstance(left_out, str) and key in left_out
        return
    if key == "speed":
        assert preset("machines", "ice40up5k")["device"].get("speed") is None
        return
    assert not isinstance(left_out, str), left_out
    inner = left_out
    for part in TABLES[table][2]:
        inner = inner[part] if isinstance(part, int) else getattr(inner, part)
    value = getattr(inner, key)
    assert ("none" if value in (None, ()) else str(value)) == default
