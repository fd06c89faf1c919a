"""Every wrong file, key, value, shape, label or combination: one line that names it, exit code 2, no work done."""

import subprocess
import sys

import numpy as np
import pytest

from sim.cli import main

MACHINE = """\
name: mine
rows: 2
cols: 2
weight_depth: 64
activation_depth: 64
max_neurons: 16
max_fan_in: 16
bias_depth: 32
max_layers: 4
delta_bits: 18
fraction_bits: 12
result_fifo_depth: 64
"""
NETWORK = """\
name: mine
input_shape: [4]
classes: 3
basis: square
layers:
  - {type: fully_connected, neurons: 5}
  - {type: fully_connected, neurons: 3}
recipe:
  hidden_rate_shift: 6
  output_rate_shift: 5
"""
BATCHES = [("output_rate_shift: 5", "output_rate_shift: 5\n  batch: 2")]
"""Change that makes it a network with batches."""
COMMANDS = ("generate", "train", "simulate", "compare", "demo")


@pytest.fixture
def refused(tmp_path, capsys):
    """Runs a command line; checks code, the one line, that nothing was left; returns the line."""

    def run(*words, out=None):
        folder = tmp_path / "out" if out is None else out
        code = main([*map(str, words), "--out", str(folder)])
        captured = capsys.readouterr()
        assert code == 2, captured
        assert captured.out == ""
        lines = captured.err.splitlines()
        assert len(lines) == 1, lines
        assert "Traceback" not in lines[0] and lines[0].startswith("entrain")
        assert not (folder / "metrics.json").exists()
        return lines[0]

    return run


@pytest.fixture
def own(tmp_path):
    """Writes a machine and a network file, some lines replaced; returns their options."""

    def write(machine=(), network=()):
        options = []
        for name, text, changes in (("machine", MACHINE, machine), ("network", NETWORK, network)):
            for old, new in changes:
                assert old in text
                text = text.replace(old, new)
            path = tmp_path / f"{name}.yaml"
            path.write_text(text)
            options += [f"--{name}", str(path)]
        return options

    return write


def save_data(path, n_in=4, classes=3, **changes):
    """A small data set in a `.npz`; `changes` replace arrays, None leaves one out."""
    draw = np.random.RandomState(0)
    arrays = {
        "x_train": draw.randint(0, 256, (12, n_in)).astype(np.uint8),
        "y_train": np.arange(12) % classes,
        "x_test": draw.randint(0, 256, (6, n_in)).astype(np.uint8),
        "y_test": np.arange(6) % classes,
    }
    arrays |= changes
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "words, named",
    [
        (["--machine", "nosuch"], ["--machine: must be", "nosuch", "digits"]),
        (["--machine", "no/such.yaml"], ["no/such.yaml", "No such file"]),
        (["--network", "nosuch"], ["--network: must be", "nosuch", "mnist-128"]),
        (["--network", "nosuch.yml"], ["nosuch.yml"]),
        (["--seed", "-1"], ["--seed", "-1"]),
        (["--seed", "x"], ["--seed", "x"]),
        (["--seed", "4294967296"], ["--seed", "4294967296"]),
        (["--nosuch"], ["--nosuch"]),
        (["--network", "mnist"], ["weight_depth", "mnist", "10496", "it fits --machine mnist"]),
    ],
)
def test_options_that_every_command_has(refused, command, words, named):
    if command == "demo" and words[-1] == "mnist":
        named = ["mnist"]
    line = refused(command, *words)
    assert line.startswith(f"entrain {command}: error:" if "--nosuch" not in words else "entrain")
    assert all(name in line for name in named), line


@pytest.mark.parametrize("command", COMMANDS)
def test_an_output_folder_that_is_a_file(refused, tmp_path, command):
    path = tmp_path / "file"
    path.write_text("mine")
    assert "--out" in refused(command, out=path)
    assert "--out" in refused(command, out=path / "below")
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    "machine, network, named",
    [
        ([("rows: 2", "rows: 0")], [], ["machine.yaml", "rows", "0"]),
        ([("rows: 2", "rows: two")], [], ["machine.yaml", "rows", "two"]),
        ([("rows: 2\n", "rows: 2\nrows: 2\n")], [], ["machine.yaml", "twice", "rows"]),
        ([("rows: 2\n", "")], [], ["machine.yaml", "rows", "missing"]),
        ([("rows: 2", "rwos: 2")], [], ["machine.yaml", "rwos"]),
        ([("rows: 2", "rows: [2")], [], ["machine.yaml", "YAML"]),
        ([("weight_depth: 64", "weight_depth: 4")], [], ["weight_depth"]),
        ([], [("basis: square", "basis: cosine")], ["network.yaml", "basis", "cosine"]),
        ([], [("neurons: 3}", "neurons: 4}")], ["network.yaml", "layers[1].neurons", "classes"]),
        ([], [("fully_connected, neurons: 5", "conv, neurons: 5")], ["layers[0].type", "conv"]),
        ([], [("[4]", "[0]")], ["input_shape[0]", "0"]),
        ([], [("hidden_rate_shift: 6", "hidden_rate_shift: 6.5")], ["recipe.hidden_rate_shift", "6.5"]),
    ],
)
@pytest.mark.parametrize("command", ["simulate", "train"])
def test_wrong_files(refused, own, command, machine, network, named):
    line = refused(command, *own(machine, network))
    assert all(name in line for name in named), line


@pytest.mark.parametrize("command", ["simulate", "compare"])
def test_wrong_technologies(refused, tmp_path, command):
    path = tmp_path / "t.yaml"
    path.write_text("name: t\nnode: n\nleakage: none\nactions: {add_8: {pj: 1}}\n")
    line = refused(command, "--technology", path)
    assert "t.yaml" in line and "add_8" in line
    assert "--technology: must be" in refused(command, "--technology", "nosuch")


@pytest.mark.parametrize("backend", ["golden", "rtl"])
def test_rules_that_the_hardware_does_not_have(refused, backend):
    line = refused("train", "--backend", backend, "--rule", "forward_forward")
    assert "--rule" in line and backend in line and "--backend float has forward_forward" in line


def test_a_machine_for_inference_is_not_trained(refused, own):
    for kind, network in (("", []), ("\ngradient_bits: 40\nmax_batch: 2", BATCHES)):
        machine = own([("result_fifo_depth: 64", f"result_fifo_depth: 64\nrule: inference{kind}")], network)
        for words in (["train"], ["train", "--backend", "rtl"], ["train", "--backend", "float"], ["demo"]):
            line = refused(*words, *machine)
            assert "--rule" in line and "machine mine" in line and "inference" in line


def test_a_machine_that_cannot_be_built_for_a_rule(refused, own, tmp_path):
    narrow = own([("delta_bits: 18", "delta_bits: 8")])
    for command in ("generate", "train", "simulate"):
        line = refused(command, "--rule", "bp", *narrow)
        assert "--rule bp" in line and "delta_bits" in line and "12" in line
    line = refused("compare", "--rules", "lls,bp", *narrow)
    assert "rule bp" in line and "delta_bits" in line
    # Slope bits of all layers are more than of one; a machine's file may have more of them for the rule.
    windowed = "gradient_bits: 40\nslope_depth: 8\nmax_batch: 2\nresult_fifo_depth: 64"
    few = own([("result_fifo_depth: 64", windowed)], BATCHES)
    for words in (("simulate", "--rule", "dfa"), ("generate", "--rule", "dfa"), ("compare", "--rules", "lls,dfa")):
        assert "slope_depth is 8, 2 too few" in refused(*words, *few)
    line = refused("simulate", *own([("fraction_bits: 12", "fraction_bits: 12\nrule: hebb")]))
    assert "machine.yaml" in line and "rule" in line and "hebb" in line
    more = own([("result_fifo_depth: 64", f"{windowed}\nrules: {{dfa: {{slope_depth: 10}}}}")], BATCHES)
    # Backpropagation sums a row's channels, of a kernel too.
    for command in ("simulate", "generate"):
        line = refused(command, "--rule", "bp", "--machine", "conv-tiny", "--network", "conv-tiny")
        assert "layers[1] reads 3 channels" in line and "index_depth is 1, 35 too few" in line
    assert main(["simulate", "--rule", "dfa", *more, "--out", str(tmp_path / "fits")]) == 0


@pytest.mark.parametrize(
    "words, named",
    [
        (["train", "--epochs", "0"], "--epochs"),
        (["train", "--epochs", "1.5"], "--epochs"),
        (["train", "--backend", "gpu"], "--backend"),
        (["train", "--rule", "hebb"], "--rule"),
        (["train", "--data", "nosuch.npz"], "nosuch.npz"),
        (["train", "--epoch", "3"], "--epoch"),
        (["train", "--samples", "1438"], "--samples"),
        (["train", "--samples", "0"], "--samples"),
        (["train", "--test-samples", "361"], "--test-samples"),
        (["simulate", "--rule", "frozen"], "--rule"),
        (["generate", "--rule", "frozen"], "--rule"),
        (["train", "--rule", "inference"], "--rule"),
        (["compare", "--data", "digits"], "--epochs"),
        (["compare", "--seeds", "3"], "--epochs"),
        (["compare", "--seeds", "0", "--epochs", "1"], "--seeds"),
        (["compare", "--seed", "4294967295", "--seeds", "2", "--epochs", "1"], "--seeds"),
        (["compare", "--rules", "lls,hebb"], "hebb"),
        (["compare", "--rules", ""], "--rules"),
        (["demo", "--aim", "101"], "--aim"),
        (["demo", "--epochs", "1", "--replay", "1438"], "--replay"),
    ],
)
def test_wrong_values(refused, words, named):
    assert named in refused(*words)


def test_a_command_is_needed(capsys):
    for words in ([], ["nosuch"]):
        assert main(words) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    "changes, named",
    [
        (dict(x_train=None), ["x_train"]),
        (dict(y_train=np.arange(12) % 3 - 1), ["y_train", "-1"]),
        (dict(y_train=np.full(12, 3)), ["3", "0…2"]),
        (dict(y_test=np.arange(5) % 3), ["y_test", "(5,)"]),
        (dict(y_train=np.zeros(12)), ["y_train", "float64"]),
        (dict(x_test=np.zeros((6, 5), np.uint8)), ["x_test", "(5,)"]),
        (dict(x_train=np.zeros((12, 4))), ["x_train", "float64"]),
        (dict(n_in=5), ["4", "5"]),
    ],
)
@pytest.mark.parametrize("backend", ["float", "golden", "rtl"])
def test_wrong_data(refused, own, tmp_path, backend, changes, named):
    path = save_data(tmp_path / "d.npz", **changes)
    line = refused("train", "--backend", backend, "--data", path, *own())
    assert all(name in line for name in ["d.npz", *named]), line


def test_data_that_is_no_archive(refused, own, tmp_path):
    path = tmp_path / "d.npz"
    for content in (b"PK\x03\x04 no archive", b"hello"):
        path.write_bytes(content)
        line = refused("train", "--data", path, *own())
        assert "d.npz: must be a .npz of plain arrays" in line and "pickle" not in line


def test_resume_needs_a_checkpoint_of_the_same_run(refused, own, tmp_path, capsys, monkeypatch):
    data, options, out = save_data(tmp_path / "d.npz"), own(), tmp_path / "run"
    words = ["train", "--data", str(data), *options, "--quiet"]
    assert "does not exist" in refused(*words, "--resume", out=out)
    (out / "previous-2").mkdir(parents=True)
    (out / "previous-2/checkpoint.npz").touch()
    assert f"({out / 'previous-2'} has one)" in refused(*words, "--resume", out=out)
    assert main([*words, "--epochs", "2", "--out", str(out)]) == 0
    (out / "metrics.json").unlink()
    capsys.readouterr()
    resume = [*words, "--resume"]
    line = refused(*resume, "--epochs", "3", "--seed", "1", out=out)
    assert "seed 0, this run has 1" in line and "or train into another folder (--out)" in line
    assert "--epochs" in refused(*resume, "--epochs", "1", out=out)
    # Found out before the Verilog is compiled: without a compiler that would be another error.
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "seed" in refused(*resume, "--epochs", "3", "--seed", "1", "--backend", "rtl", out=out)
    assert "arithmetic" in refused(*resume, "--epochs", "3", "--backend", "float", out=out)
    assert "rule" in refused(*resume, "--epochs", "3", "--rule", "frozen", out=out)
    other = save_data(tmp_path / "other.npz", y_train=(np.arange(12) + 1) % 3)
    line = refused("train", "--data", other, *options, "--resume", "--epochs", "3", out=out)
    assert f"checkpoint has data {data} (SHA-256 " in line and f"this run has {other} (SHA-256 " in line
    (out / "checkpoint.npz").write_bytes(b"broken")
    line = refused(*resume, "--epochs", "3", out=out)
    assert "checkpoint.npz: must be a checkpoint of entrain" in line and "pickle" not in line
    assert not list(out.glob("previous-1"))


def test_the_installed_module_refuses_too(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "sim.cli", "simulate", "--machine", "nosuch", "--out", str(tmp_path / "o")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == "" and not (tmp_path / "o").exists()
    assert done.stderr.startswith("entrain simulate: error:") and done.stderr.count("\n") == 1


def test_scores_that_do_not_fit(refused, own):
    """Too few words for all latents, or more vectors than classes."""
    for rule, key, said in (
        ("local_classifier", "classifier_depth: 4", "classifier_depth is 4, 1 too few: 5 would fit"),
        ("lls_mxm", "vectors: 4", "vectors: must be at most the 3 classes of network mine"),
    ):
        files = own([("result_fifo_depth: 64", f"result_fifo_depth: 64\n{key}")])
        for words in (["train"], ["train", "--backend", "rtl"], ["simulate"], ["generate"]):
            assert said in refused(*words, "--rule", rule, *files)
        assert said in refused("compare", "--rules", f"lls,{rule}", *files)
