"""`entrain generate --weights --vectors`: the delivered files, played by simulators that know nothing of Python."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import spec
from golden.checkpoint import save_weights
from golden.fixed import FixedModel
from hdl.testbench import BENCH, LOAD, RESULTS, SAMPLES
from sim.cli import main
from spec import memory_map
from spec.machine import load_machine
from spec.network import load_network
from spec.program import compile_program, encode

DIGITS = ("ice40up5k", "ice40up5k")
TINY = ("tiny", "tiny")
PRESETS = Path(spec.__file__).parent / "presets"
FILES = (LOAD, SAMPLES, RESULTS, BENCH)


def weights_of(names, path, seed=3):
    """Random weights of a network, and biases that are not 0."""
    machine, network = load_machine(names[0]), load_network(names[1])
    draw = np.random.default_rng(seed)
    parameters = [
        (draw.integers(-4000, 4000, (n_out, n_in)).astype(np.int16), draw.integers(-99, 99, n_out).astype(np.int16))
        for n_in, n_out in network.shapes
    ]
    save_weights(path, parameters)
    return machine, network, parameters


def tiny_data(path):
    """A data set that the network `tiny` can take."""
    draw = np.random.default_rng(1)
    arrays: dict[str, Any] = {}
    for part in ("train", "test"):
        arrays[f"x_{part}"] = draw.integers(0, 256, (8, 5)).astype(np.uint8)
        arrays[f"y_{part}"] = np.arange(8) % 3
    np.savez(path, **arrays)
    return path


def options(names, *more):
    return ["--machine", names[0], "--network", names[1], *map(str, more)]


def run(*words):
    """A command line that must succeed."""
    assert main([str(word) for word in words]) == 0


def generate(names, out, *more):
    run("generate", *options(names, "--weights", out / "w.npz", "--out", out, *more))


def simulate(command, folder):
    done = subprocess.run([str(word) for word in command], cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not shutil.which("iverilog"), reason="iverilog is not installed")
@pytest.mark.parametrize("language", ["2005", "2012"])
def test_icarus_learns_digits(language, tmp_path):
    """The delivered bytes, in Verilog and in SystemVerilog: digits are learnt and inferred as the model does."""
    weights_of(DIGITS, tmp_path / "w.npz")
    generate(DIGITS, tmp_path, "--vectors", "4")
    simulate(["iverilog", f"-g{language}", "-Wall", "-o", "tb", BENCH, "entrain_core.v"], tmp_path)
    assert "PASS: 8 results" in simulate(["vvp", "-n", "tb"], tmp_path)


def test_verilator_learns(tmp_path):
    weights_of(TINY, tmp_path / "w.npz")
    generate(TINY, tmp_path, "--vectors", "8", "--data", tiny_data(tmp_path / "d.npz"))
    tools = Path(sys.executable).parent
    command = [tools / "verilator-cli", "--binary", "--timing", "-O3", "--top-module", "entrain_tb", "--Mdir", "obj",
               "-CFLAGS", "-O0", "entrain_core.vlt", BENCH, "entrain_core.v"]  # fmt: skip
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "%Warning" not in done.stderr, done.stderr
    bench = [tmp_path / "obj" / "Ventrain_tb"]
    assert "PASS: 16 results" in simulate(bench, tmp_path)
    # It notices one result that differs.
    results = (tmp_path / RESULTS).read_text()
    first = results.splitlines()[0]
    (tmp_path / RESULTS).write_text(results.replace(first, f"{int(first, 16) ^ 1:09x}", 1))
    assert "FAIL: 1 of 16" in simulate(bench, tmp_path)
    # And a core that never begins.
    (tmp_path / LOAD).write_text((tmp_path / LOAD).read_text()[:-2] + "0\n")
    assert "FAIL: no result" in simulate(bench, tmp_path)


def test_the_list_of_writes(tmp_path):
    """Program, every weight and bias, zeros in the padding, and CTRL around it: from spec alone."""
    machine, network, parameters = weights_of(TINY, tmp_path / "w.npz")
    generate(TINY, tmp_path)
    lines = (tmp_path / LOAD).read_text().splitlines()
    pairs = [(int(line[:8], 16), int(line[9:], 16)) for line in lines]
    assert all(line[8] == "_" and len(line) == 17 for line in lines)
    program = compile_program(network, machine)
    ctrl = memory_map.register_address("CTRL")
    assert pairs[0] == (ctrl, 0) and pairs[-1] == (ctrl, 1 << memory_map.register_bit("CTRL", "enable"))
    expected = {
        memory_map.register_address("LAYERS"): 2,
        memory_map.register_address("INPUT_LENGTH"): 5,
        memory_map.register_address("INPUT_WORDS"): 3,
    }
    for n, layer in enumerate(program.layers):
        expected |= {memory_map.program_address(machine, n, w): v for w, v in enumerate(encode(layer))}
        for word in range(layer.w_base, layer.w_base + layer.steps):
            for row in range(machine.rows):
                expected |= {memory_map.weight_address(machine, row, c, word): 0 for c in range(machine.cols)}
        weight, bias = parameters[n]
        for (j, i), value in np.ndenumerate(weight):
            word = layer.w_base + j // machine.cols * layer.row_tiles + i // machine.rows
            address = memory_map.weight_address(machine, i % machine.rows, j % machine.cols, word)
            expected[address] = int(value) & 0xFFFFFFFF
        for j, value in enumerate(bias):
            expected[memory_map.bias_address(machine, layer.b_base + j)] = int(value) & 0xFFFFFFFF
    assert len(pairs) - 2 == len(expected)
    assert dict(pairs[1:-1]) == expected
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["load"] == LOAD and metrics["load_writes"] == len(pairs) and metrics["vectors"] is None


def test_vectors_are_training_then_inference(tmp_path):
    machine, network, parameters = weights_of(TINY, tmp_path / "w.npz")
    generate(TINY, tmp_path, "--vectors", "3", "--data", tiny_data(tmp_path / "d.npz"))
    beats = [int(line, 16) for line in (tmp_path / SAMPLES).read_text().splitlines()]
    assert [n for n, beat in enumerate(beats) if beat >> 8] == [5, 11, 17, 23, 29, 35]
    assert [beat & 255 for beat in beats if beat >> 8] == [0, 1, 2, 255, 255, 255]
    model = FixedModel(network, machine)
    model.load_parameters(parameters)
    for n, line in enumerate((tmp_path / RESULTS).read_text().splitlines()):
        x = np.array(beats[6 * n : 6 * n + 5], np.int8)
        label = beats[6 * n + 5] & 255
        prediction = model.step(x, None if label == 255 else label).prediction
        assert int(line, 16) == 1 << 32 | label << 8 | prediction


def test_no_file_of_another_run_is_left(tmp_path, capsys):
    """Vectors beside a core or weights that they do not belong to would be worse than none."""
    weights_of(TINY, tmp_path / "w.npz")
    generate(TINY, tmp_path, "--vectors", "2", "--data", tiny_data(tmp_path / "d.npz"))
    assert all((tmp_path / name).exists() for name in FILES)
    generate(TINY, tmp_path)
    assert [name for name in FILES if (tmp_path / name).exists()] == [LOAD]
    run("generate", *options(DIGITS, "--out", tmp_path))
    assert not any((tmp_path / name).exists() for name in FILES)
    capsys.readouterr()


def test_a_machine_that_was_edited_is_said(tmp_path, capsys):
    """The same command, another machine: its files are replaced, and a line says so."""
    machine = tmp_path / "m.yaml"
    text = (PRESETS / "machines" / "tiny.yaml").read_text()
    for cols in (2, 2, 3):
        machine.write_text(text.replace("cols: 2", f"cols: {cols}"))
        run("generate", *options((machine, "tiny"), "--out", tmp_path / "o"))
        said = "replaced what was there: machine tiny, network tiny" in capsys.readouterr().out
        assert said == (cols == 3)
    metrics = json.loads((tmp_path / "o" / "metrics.json").read_text())
    assert metrics["replaced"] == "machine tiny, network tiny"


def test_the_printed_lint_command_works(tmp_path, capsys):
    folder = tmp_path / "a folder"
    run("generate", *options(TINY, "--out", folder))
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("lint: "))
    done = subprocess.run(["bash", "-c", line.removeprefix("lint: ")], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr


@pytest.mark.parametrize(
    "more, named",
    [
        (["--vectors", "2"], ["--vectors", "--weights"]),
        (["--data", "digits"], ["--data", "--vectors"]),
        (["--weights", "none.npz"], ["none.npz"]),
        (["--weights", "{other}"], ["w.npz", "layer0_weight"]),
        (["--weights", "{floats}"], ["f.npz", "integer"]),
        (["--weights", "{right}", "--vectors", "361"], ["--vectors", "360"]),
        (["--weights", "{right}", "--vectors", "0"], ["--vectors", "0"]),
    ],
)
def test_refusals(more, named, tmp_path, capsys):
    """One line, exit code 2, no files."""
    weights_of(TINY, tmp_path / "w.npz")
    _, _, parameters = weights_of(DIGITS, tmp_path / "r.npz")
    save_weights(tmp_path / "f.npz", [(w / 3, b / 3) for w, b in parameters])
    places = {"other": tmp_path / "w.npz", "floats": tmp_path / "f.npz", "right": tmp_path / "r.npz"}
    words = [word.format(**places) for word in more]
    assert main(["generate", *options(DIGITS, *words, "--out", tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and all(name in lines[0] for name in named), lines
    assert not (tmp_path / "out").exists()
