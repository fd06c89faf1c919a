"""What each command leaves, and how a training is interrupted and resumed."""

import csv
import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from sim.cli import main
from sim.cycle.model import training_step
from spec.machine import load_machine
from spec.network import load_network

SMALL = ("--machine", "ice40up5k", "--network", "ice40up5k")
"""64-48-10: one hidden layer, a design that compiles fast."""


def run(*words):
    """A command line that must succeed."""
    assert main([str(word) for word in words]) == 0


def metrics_of(folder):
    """`metrics.json`, every value of which must have its unit."""
    metrics = json.loads((folder / "metrics.json").read_text())
    head = {"command", "machine", "network", "seed", "units"}
    assert set(metrics["units"]) == set(metrics) - head
    assert all(text.strip() for text in metrics["units"].values())
    return metrics


@pytest.mark.parametrize("command", ["", "generate", "train", "simulate", "compare", "demo"])
def test_help_names_outputs_and_examples(capsys, command):
    assert main([*([command] if command else []), "--help"]) == 0
    text = capsys.readouterr().out
    assert f"entrain {command or 'demo'}" in text
    if command:
        assert "metrics.json" in text and "Leaves in DIR" in text and "Examples" in text
        assert all(option in text for option in ("--machine", "--network", "--out", "--seed"))


@pytest.mark.parametrize("rule", ["lls", "bp", "dfa"])
def test_simulate(tmp_path, capsys, rule):
    run("simulate", "--machine", "mnist", "--network", "mnist", "--rule", rule, "--out", tmp_path)
    metrics = metrics_of(tmp_path)
    step = training_step(load_machine("mnist"), load_network("mnist"), rule)
    assert metrics["cycles"] == step.cycles == sum(metrics["cycles_by_phase"].values())
    assert metrics["macs_by_phase"]["forward"] == 784 * 512 + 512 * 512 + 512 * 10
    assert metrics["macs"] == sum(metrics["macs_by_phase"].values())
    assert 0.9 < metrics["utilization"] < 1
    assert metrics["peak_bytes"] == sum(metrics["memory_bytes"].values())
    for split in ("energy_by_phase_pj", "energy_by_component_pj"):
        assert metrics["energy_pj"] == pytest.approx(sum(metrics[split].values()), rel=1e-12)
    assert ("no hardware yet" in metrics["label"]) == (rule != "lls")
    assert metrics["label"] in capsys.readouterr().out


def test_simulate_takes_no_time_for_a_large_network(tmp_path):
    machine = tmp_path / "m.yaml"
    machine.write_text(
        "name: big\nrows: 32\ncols: 32\nweight_depth: 65536\nactivation_depth: 65536\nmax_neurons: 65535\n"
        "max_fan_in: 65535\nbias_depth: 65536\nmax_layers: 64\ndelta_bits: 18\nfraction_bits: 12\n"
        "result_fifo_depth: 65536\n"
    )
    layers = "".join("  - {type: fully_connected, neurons: 4096}\n" for _ in range(3))
    network = tmp_path / "n.yaml"
    network.write_text(
        "name: big\ninput_shape: [4096]\nclasses: 100\nbasis: walsh\nlayers:\n"
        f"{layers}  - {{type: fully_connected, neurons: 100}}\n"
        "recipe: {hidden_rate_shift: 6, output_rate_shift: 6}\n"
    )
    began = time.monotonic()
    run("simulate", "--machine", machine, "--network", network, "--out", tmp_path / "o")
    assert time.monotonic() - began < 2
    assert metrics_of(tmp_path / "o")["macs_by_phase"]["forward"] == 3 * 4096**2 + 409600


def test_simulate_prices_by_the_technology(tmp_path):
    energies = {}
    for name in ("horowitz-45nm", "jouppi-7nm"):
        run("simulate", "--technology", name, "--out", tmp_path / name)
        metrics = metrics_of(tmp_path / name)
        assert metrics["technology"]["name"] == name
        energies[name] = metrics["energy_pj"]
    assert energies["jouppi-7nm"] < energies["horowitz-45nm"]


def test_compare(tmp_path, capsys):
    run("compare", *SMALL, "--out", tmp_path)
    metrics = metrics_of(tmp_path)
    assert set(metrics["rules"]) == {"lls", "bp", "dfa"}
    # With one hidden layer BP needs fewer multiplications: the report must say so.
    assert "MACs, learning signal" in metrics["bp_better"] and "MACs, whole step" in metrics["bp_better"]
    assert "BP beats LLS in: MACs, learning signal" in capsys.readouterr().out
    report = (tmp_path / "report.md").read_text()
    assert "Where LLS loses" in report and "no hardware yet" in report
    with (tmp_path / "comparison.csv").open() as file:
        rows = {row["quantity"]: row for row in csv.DictReader(file)}
    assert rows["MACs, whole step"]["bp"] == str(metrics["rules"]["bp"]["macs"])
    assert float(rows["cycles, whole step"]["bp_over_lls"]) == pytest.approx(
        metrics["rules"]["bp"]["cycles"] / metrics["rules"]["lls"]["cycles"], abs=1e-4
    )
    for name in ("cycles", "macs", "energy", "memory", "technologies"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert set(metrics["files"]) | {"metrics.json"} == {path.name for path in tmp_path.iterdir()}


def test_compare_measures_accuracy(tmp_path):
    run("compare", "--epochs", "2", "--out", tmp_path)
    accuracy = metrics_of(tmp_path)["test_accuracy"]
    assert set(accuracy) == {"lls", "bp", "dfa"} and all(50 < value <= 100 for value in accuracy.values())


@pytest.mark.parametrize("backend, rule", [("golden", "lls"), ("golden", "frozen"), ("float", "bp")])
def test_train(tmp_path, backend, rule):
    words = ("train", "--backend", backend, "--rule", rule, "--epochs", 2, "--quiet", "--out")
    run(*words, tmp_path / "a")
    run(*words, tmp_path / "b")
    metrics, again = metrics_of(tmp_path / "a"), metrics_of(tmp_path / "b")
    assert metrics["samples"] == 2 * 1437 and metrics["epochs"] == 2 and metrics["cycles"] is None
    assert 50 < metrics["test_accuracy"] <= 100
    assert metrics["weights_sha256"] == again["weights_sha256"]
    assert (tmp_path / "a/weights.npz").read_bytes() == (tmp_path / "b/weights.npz").read_bytes()
    with (tmp_path / "a/history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert rows[-1]["weights_sha256"] == metrics["weights_sha256"]
    run("train", "--backend", backend, "--rule", rule, "--epochs", 2, "--seed", 1, "--quiet", "--out", tmp_path / "c")
    assert metrics_of(tmp_path / "c")["weights_sha256"] != metrics["weights_sha256"]


def test_a_training_goes_on_to_the_same_weights(tmp_path, capsys):
    run("train", "--epochs", 3, "--quiet", "--out", tmp_path / "whole")
    run("train", "--epochs", 1, "--quiet", "--out", tmp_path / "parts")
    run("train", "--epochs", 3, "--quiet", "--resume", "--out", tmp_path / "parts")
    whole, parts = metrics_of(tmp_path / "whole"), metrics_of(tmp_path / "parts")
    assert whole["weights_sha256"] == parts["weights_sha256"]
    assert whole["samples"] == parts["samples"] and len(parts["history"]) == 3
    # Begun anew, the old checkpoint is kept.
    run("train", "--epochs", 1, "--out", tmp_path / "parts")
    assert (tmp_path / "parts/checkpoint.previous.npz").exists()
    assert "checkpoint.previous.npz" in capsys.readouterr().err
    # Resumed without anything left to do, it only reports.
    run("train", "--epochs", 1, "--quiet", "--resume", "--out", tmp_path / "parts")
    assert metrics_of(tmp_path / "parts")["samples"] == 1437


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
    # Compiles the model, so that below the first checkpoint is that of a whole epoch.
    run("train", "--epochs", 1, "--quiet", "--out", tmp_path / "warm")
    words = ["train", "--epochs", "100000", "--quiet", "--out", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "sim.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 300
        while not (tmp_path / "checkpoint.npz").exists() and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert out == "" and len(err.splitlines()) == 1
    assert "saved in" in err and "checkpoint.npz" in err
    assert f"go on with: entrain {' '.join(words)} --resume" in err
    assert not (tmp_path / "metrics.json").exists()
    # It is really there: a run that asks for fewer epochs than it has is told so.
    assert main(["train", "--epochs", "1", "--resume", "--quiet", "--out", str(tmp_path)]) == 2


def test_rtl_ends_with_the_weights_of_golden_and_goes_on_from_them(tmp_path):
    run("train", *SMALL, "--backend", "golden", "--epochs", 2, "--quiet", "--out", tmp_path / "golden")
    # Golden's checkpoint of one epoch is resumed by the Verilog.
    run("train", *SMALL, "--backend", "golden", "--epochs", 1, "--quiet", "--out", tmp_path / "rtl")
    words = ("--backend", "rtl", "--epochs", 2, "--quiet", "--resume", "--out", tmp_path / "rtl")
    run("train", *SMALL, *words)
    golden, rtl = metrics_of(tmp_path / "golden"), metrics_of(tmp_path / "rtl")
    assert golden["weights_sha256"] == rtl["weights_sha256"]
    assert golden["test_accuracy"] == rtl["test_accuracy"]
    # Golden has no clock, so cycles are those of the second epoch.
    step = training_step(load_machine("ice40up5k"), load_network("ice40up5k"))
    assert rtl["history"][1]["cycles"] == 1437 * step.cycles and rtl["cycles"] is None


def test_rtl_counts_cycles(tmp_path):
    run("train", *SMALL, "--backend", "rtl", "--epochs", 1, "--rule", "frozen", "--quiet", "--out", tmp_path)
    metrics = metrics_of(tmp_path)
    step = training_step(load_machine("ice40up5k"), load_network("ice40up5k"), train_hidden=False)
    assert metrics["cycles"] == 1437 * step.cycles and metrics["cycles_per_sample"] == step.cycles


def test_generate(tmp_path, capsys):
    run("generate", *SMALL, "--out", tmp_path)
    metrics = metrics_of(tmp_path)
    verilog = tmp_path / metrics["verilog"]
    first = verilog.read_bytes()
    assert hashlib.sha256(first).hexdigest() == metrics["verilog_sha256"]
    assert f"module {metrics['top']}".encode() in first
    description = json.loads((tmp_path / metrics["description"]).read_text())
    assert description["verilog"]["sha256"] == metrics["verilog_sha256"]
    assert metrics["weight_words_used_per_pe"] <= metrics["weight_words_per_pe"]
    run("generate", *SMALL, "--out", tmp_path)
    assert verilog.read_bytes() == first


def test_demo(tmp_path, capsys):
    run("demo", *SMALL, "--epochs", 3, "--replay", 60, "--aim", 80, "--out", tmp_path)
    metrics = metrics_of(tmp_path)
    assert metrics["replay_equal"] and metrics["cycles_equal"] and metrics["replayed_samples"] == 60
    assert metrics["test_accuracy"] >= 80
    for name in metrics["files"]:
        assert (tmp_path / name).is_file(), name
    assert (tmp_path / "learning.png").exists() and (tmp_path / "verilog/entrain_core.v").exists()
    said = capsys.readouterr().out
    assert "equal in every bit" in said and "Look at" in said
    # Again, and too high an aim: it says so, and the folder is that of the new run.
    assert main(["demo", *SMALL, "--epochs", "1", "--replay", "5", "--aim", "99.9", "--out", str(tmp_path)]) == 1
    assert "misses the aim" in capsys.readouterr().err


def test_a_compiler_that_is_missing_is_said_in_a_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert main(["train", *SMALL, "--backend", "rtl", "--quiet", "--out", str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert "no-such-compiler" in err and len(err.splitlines()) == 1


def test_a_reader_that_leaves_is_no_error(tmp_path):
    command = f"{sys.executable} -m sim.cli --help | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr and done.stdout
