"""Files a user can get wrong: each is refused in one line naming file, key, rule and value."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from spec.errors import SpecError, located
from spec.machine import load_machine
from spec.network import Convolution, FullyConnected, load_network
from spec.technology import load_technology
from spec.yaml_loader import find_file, load_yaml, preset_names

MACHINE = find_file("machines", "digits").read_text()
NETWORK = find_file("networks", "digits").read_text()
CONVOLUTIONS = find_file("networks", "smallconv-kws").read_text()
DEPTHWISE = find_file("networks", "mobilenet-v1-025").read_text()
TECHNOLOGY = find_file("technologies", "horowitz-45nm").read_text()


def refusal(load: Any, path: Path) -> str:
    """The message of the refusal, less the file's name, which has to lead it."""
    with pytest.raises(SpecError) as caught:
        load(path)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-12", 1e-12),
        ("1.5E3", 1500.0),
        ("-.5", -0.5),
        ("3", 3),
        ("-7", -7),
        ("0x10", 16),
        ("true", True),
        ("null", None),
        ("off", "off"),
        ("yes", "yes"),
        ("010", "010"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2024-01-02", "2024-01-02"),
        (".inf", ".inf"),
        ("'3'", "3"),
    ],
)
def test_plain_values(tmp_path: Path, text: str, value: object) -> None:
    """What YAML 1.1 misreads is read as written; ``1e-12`` is a number."""
    path = tmp_path / "x.yaml"
    path.write_text(f"key: {text}\n")
    read = load_yaml(path)["key"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rows: 8", "rows: off", "rows: must be an integer from 1 to 32, got 'off'"),
        ("rows: 8", "rows: true", "rows: must be an integer from 1 to 32, got True"),
        ("rows: 8", "rows: 8.0", "rows: must be an integer from 1 to 32, got 8.0"),
        ("rows: 8", "rows: 33", "rows: must be an integer from 1 to 32, got 33"),
        ("rows: 8", "rows: 0", "rows: must be an integer from 1 to 32, got 0"),
        ("rows: 8", "rows:", "rows: must be an integer from 1 to 32, got None"),
        ("rows: 8\n", "", "rows: is missing"),
        ("rows: 8", "rows: 8\nrows: 8", "line 4: a key must not appear twice, got 'rows'"),
        ("rows: 8", "3: 8", "line 3: a key must be text, got '3'"),
        ("rows: 8", "[1]: 8", "line 3: a key must be text, got 'a collection'"),
        ("name: digits", "name: 3", "name: must be a line of text, got 3"),
        ("delta_bits: 18", "delta_bits: 19", "delta_bits: must be an integer from 8 to 18, got 19"),
        (
            "fraction_bits: 12",
            "fraction_bits: 17",
            "fraction_bits: must be an integer from 1 to 16, got 17",
        ),
        (
            "fraction_bits: 12",
            "fraction_bits: 25\ngradient_bits: 44",
            "fraction_bits: must be an integer from 1 to 24, got 25",
        ),
        (
            "fraction_bits: 12",
            "fraction_bits: 12\ngradient_bits: 23",
            "gradient_bits: must be 0, or 24 to 64, got 23",
        ),
        (
            "fraction_bits: 12",
            "fraction_bits: 12\ngradient_bits: false",
            "gradient_bits: must be an integer from 0 to 64, got False",
        ),
        ("part: 85k", "part: up5k", "device.part: must be one of 25k, 45k, 85k, got 'up5k'"),
        ("speed: 6", "speed: 5", "device.speed: must be an integer from 6 to 8, got 5"),
        ("clock_mhz: 80", "clock_mhz: 1e5", "device.clock_mhz: must be a number from 1 to 1000"),
        ("clock_mhz: 80", "clock_mhz: .nan", "device.clock_mhz: must be a number from 1 to 1000"),
        ("package: CABGA381", "package: ''", "device.package: must be a line of text, got ''"),
        ("  speed: 6", "  grade: 6", "device.grade: is not a known key here"),
    ],
)
def test_machine_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    """One wrong line at a time in a machine."""
    assert MACHINE.count(old) == 1
    path = tmp_path / "machine.yaml"
    path.write_text(MACHINE.replace(old, new))
    assert refusal(load_machine, path).startswith(message)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("classes: 10", "classes: 9", "layers[2].neurons: must equal classes (9)"),
        ("classes: 10", "classes: 256", "classes: must be an integer from 2 to 255, got 256"),
        ("basis: square", "basis: cosine", "basis: must be one of square, walsh, sine"),
        ("neurons: 10", "neurons: 0", "layers[2].neurons: must be an integer from 1 to"),
        (
            "{type: fully_connected, neurons: 10}",
            "{type: recurrent, neurons: 10}",
            "layers[2].type: must be one of fully_connected, convolution, depthwise_convolution, "
            "got 'recurrent'",
        ),
        (
            "{type: fully_connected, neurons: 10}",
            "{neurons: 10}",
            "layers[2].type: must be one of fully_connected",
        ),
        (
            "{type: fully_connected, neurons: 10}",
            "{type: fully_connected, neurons: 10, pool: max}",
            "layers[2].pool: is not a known key here (known: type, neurons, activation_fraction)",
        ),
        (
            "{type: fully_connected, neurons: 10}",
            "{type: fully_connected, neurons: 10, activation_fraction: 5}",
            "layers[2].activation_fraction: must be 4 without convolutions or batches, got 5",
        ),
        (
            "hidden_rate_shift: 6",
            "hidden_rate_shift: 6\n  gain_shift: 1",
            "recipe.gain_shift: must be 0 without convolutions or batches, got 1",
        ),
        (
            "{type: fully_connected, neurons: 10}",
            "10",
            "layers[2]: must be a mapping with type, got 10",
        ),
        ("[8, 8]", "8", "input_shape: must be a list of 1 to 3 sizes, got 8"),
        ("[8, 8]", "[8, off]", "input_shape[1]: must be an integer from 1 to 65535, got 'off'"),
        (
            "hidden_rate_shift: 6",
            "hidden_rate_shift: fast",
            "recipe.hidden_rate_shift: must be an integer from -8 to 20, got 'fast'",
        ),
        ("hidden_rate_shift: 6", "momentum: 6", "recipe.momentum: is not a known key here"),
    ],
)
def test_network_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    """One wrong line at a time in a network."""
    refused_network(tmp_path / "network.yaml", NETWORK, old, new, message)


def refused_network(path: Path, good: str, old: str, new: str, message: str) -> None:
    """Changes one place of a good network, and looks at the refusal."""
    assert good.count(old) == 1
    path.write_text(good)
    load_network(path)
    path.write_text(good.replace(old, new))
    assert refusal(load_network, path).startswith(message)


FIRST = "channels: 32, kernel: 3, padding: 1, pool: max"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("input: standardized", "input: grey", "input: must be one of unsigned, signed, standardized, got 'grey'"),
        (
            "[49, 10, 1]",
            "[490]",
            "input_shape: must have a height and a width before a convolution, got (490,)",
        ),
        (
            "[49, 10, 1]",
            "[49, 2, 1]",
            "layers[1].pool: must not be max where the map is smaller than 2x2, got (24, 1)",
        ),
        ("channels: 32", "channels: 0", "layers[0].channels: must be an integer from 1 to 65535"),
        ("channels: 32, ", "", "layers[0].channels: is missing"),
        ("channels: 32", "neurons: 32", "layers[0].neurons: is not a known key here"),
        (FIRST, FIRST.replace("3,", "[3, 6],"), "layers[0].kernel[1]: must be an integer from 1 to 5, got 6"),
        (FIRST, FIRST.replace("3,", "0,"), "layers[0].kernel[0]: must be an integer from 1 to 5, got 0"),
        (FIRST, FIRST.replace("3,", "[3],"), "layers[0].kernel: must be a height and a width, got (3,)"),
        (FIRST, FIRST.replace("3,", "{h: 3},"), "layers[0].kernel[0]: must be an integer from 1 to 5, got {"),
        (FIRST, f"{FIRST}, stride: 3", "layers[0].stride: must be an integer from 1 to 2, got 3"),
        (FIRST, FIRST.replace("g: 1", "g: 5"), "layers[0].padding: must be an integer from 0 to 4, got 5"),
        (FIRST, FIRST.replace("g: 1", "g: 3"), "layers[0].padding: must be less than the kernel (3, 3), got 3"),
        (FIRST, FIRST.replace("3,", "[3, 1],"), "layers[0].padding: must be less than the kernel (3, 1), got 1"),
        (FIRST, FIRST.replace("max", "mean"), "layers[0].pool: must be one of none, max, latent, got 'mean'"),
        ("latent: 4", "latent: 0", "layers[0].latent[0]: must be an integer from 1 to 65535, got 0"),
        ("latent: 4", "latent: [4, x]", "layers[0].latent[1]: must be an integer from 1 to 65535, got 'x'"),
        (
            "activation_fraction: 5",
            "activation_fraction: 8",
            "layers[0].activation_fraction: must be an integer from 0 to 7, got 8",
        ),
        (
            "{type: fully_connected, neurons: 512}",
            "{type: fully_connected, neurons: 512, activation_fraction: -1}",
            "layers[3].activation_fraction: must be an integer from 0 to 7, got -1",
        ),
        (
            "{type: fully_connected, neurons: 512}",
            "{type: fully_connected, neurons: 9}\n  - {type: convolution, channels: 9, kernel: 1, latent: 1}",
            "layers[4]: must be fully connected, as the layer before it is, got Convolution(",
        ),
        (
            "  - {type: fully_connected, neurons: 512}\n  - {type: fully_connected, neurons: 12}\n",
            "",
            "layers[2]: must be fully connected, as the last layer, got Convolution(",
        ),
        ("  gain_shift: 1", "  gain_shift: 3", "recipe.gain_shift: must be an integer from 0 to 2, got 3"),
        ("  batch: 4", "  batch: 0", "recipe.batch: must be an integer from 1 to 128, got 0"),
        ("  batch: 4", "  batch: 129", "recipe.batch: must be an integer from 1 to 128, got 129"),
    ],
)
def test_convolution_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    """The same in a network with convolutions."""
    refused_network(tmp_path / "network.yaml", CONVOLUTIONS, old, new, message)


def test_depthwise_refused(tmp_path: Path) -> None:
    """A depthwise convolution takes its channels from what it reads."""
    old = "{type: depthwise_convolution, kernel: 3, padding: 1, latent: 1}"
    new = old.replace("kernel", "channels: 256, kernel")
    message = "layers[25].channels: is not a known key here (known: type, kernel, latent, stride, "
    refused_network(tmp_path / "network.yaml", DEPTHWISE, old, new, message)


def test_sizes_of_layers(tmp_path: Path) -> None:
    """One number is a square; a list is height, width. What is left out has its default."""
    path = tmp_path / "network.yaml"
    layer = "{type: convolution, channels: 128, kernel: 3, padding: 1, pool: latent, latent: 2}"
    assert CONVOLUTIONS.count(layer) == 1
    path.write_text(
        CONVOLUTIONS.replace(layer, "{type: depthwise_convolution, kernel: [2, 1], latent: [3, 4]}")
    )
    layers = load_network(path).layers
    assert layers[0] == Convolution(32, (3, 3), (4, 4), 1, 1, "max", False, 5)
    assert layers[2] == Convolution(64, (2, 1), (3, 4), 1, 0, "none", True, 4)
    assert layers[3] == FullyConnected(512, 4)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("pj: 0.4\n", "pj: cheap\n", "actions.multiply_8x16.pj: must be a number from 0 to 1e+06"),
        ("pj: 0.4\n", "pj: -1\n", "actions.multiply_8x16.pj: must be a number from 0 to 1e+06"),
        ("  multiply_8x16:", "  multiply_9x9:", "actions.multiply_9x9: is not a known key here"),
        ('    unit: "64 bits moved"\n', "", "actions.dram_64.unit: is missing"),
    ],
)
def test_technology_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    """One wrong line at a time in a technology."""
    assert TECHNOLOGY.count(old) == 1
    path = tmp_path / "technology.yaml"
    path.write_text(TECHNOLOGY.replace(old, new))
    assert refusal(load_technology, path).startswith(message)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "must be a mapping of keys to values, got None"),
        (b"- 1\n", "must be a mapping of keys to values, got [1]"),
        (b"a: [1\n", "line 2: is not valid YAML: "),
        (b"a: \xff\n", "must be UTF-8 text"),
        (b"a: 1\n---\nb: 1\n", "line 2: is not valid YAML: "),
        (b"a: !!python/object:os.system x\n", "line 1: is not valid YAML: "),
        (b"[" * 100_000, "is nested too deeply"),
        (b"a: " + b"1" * 5000, "is not valid YAML: "),
        (b"#" * (1 << 21), "must be at most 1048576 bytes long"),
    ],
)
def test_not_a_mapping(tmp_path: Path, data: bytes, message: str) -> None:
    """Files that are no YAML mapping at all."""
    path = tmp_path / "x.yaml"
    path.write_bytes(data)
    assert refusal(load_machine, path).startswith(message)


def test_enormous_alias_stays_one_short_line(tmp_path: Path) -> None:
    """Nested aliases that would expand to billions of items are neither expanded nor printed."""
    levels = ["&a0 [x, x]"] + [f"&a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 24)]
    path = tmp_path / "x.yaml"
    path.write_text(MACHINE.replace("rows: 8", f"rows: [{', '.join(levels)}]"))
    assert len(refusal(load_machine, path)) < 200


def test_unreadable_path(tmp_path: Path) -> None:
    """A missing file, a folder and an unknown preset."""
    assert refusal(load_machine, tmp_path / "no.yaml") == (
        "cannot be read: No such file or directory"
    )
    assert refusal(load_machine, tmp_path) == "cannot be read: Is a directory"
    with pytest.raises(SpecError, match="^networks: must be a .yaml file or one of .*got 'nine'$"):
        load_network("nine")


def test_presets() -> None:
    """Every preset loads, and its name is its file's."""
    assert preset_names("machines") == (
        "conv-small",
        "conv-tiny",
        "digits",
        "ice40up5k",
        "large",
        "mnist",
        "smallconv",
        "tiny",
    )
    assert preset_names("networks") == (
        "conv-small",
        "conv-tiny",
        "digits",
        "ice40up5k",
        "mnist",
        "mnist-128",
        "mobilenet-v1",
        "mobilenet-v1-025",
        "smallconv-cifar10",
        "smallconv-kws",
        "smallconv-l",
        "smallconv-mnist",
        "tiny",
        "vgg8",
    )
    assert preset_names("technologies") == ("aladdin-40nm", "horowitz-45nm", "jouppi-7nm")
    for kind, load in (
        ("machines", load_machine),
        ("networks", load_network),
        ("technologies", load_technology),
    ):
        for name in preset_names(kind):
            assert load(name).name == name


def test_error_text() -> None:
    """Parts that are not known are left out; file and path are added on the way up."""
    assert str(SpecError("a sentence")) == "a sentence"
    with (
        pytest.raises(SpecError, match=r"^f.yaml: a.b\[0\]: rule, got 1$"),
        located(file="f.yaml", path="a"),
        located(path="b"),
    ):
        raise SpecError("[0]", "rule", 1)
