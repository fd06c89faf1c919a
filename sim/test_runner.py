"""The runner, the streams and the scoreboard, tested on a block that can be told to misbehave."""

import re
from pathlib import Path

import pytest

from sim.benches.streams import PATTERNS
from sim.runner import BenchError, Design, build, run_bench, seed
from spec.machine import load_machine

ACCUMULATOR = Design("selftest", load_machine("tiny"))


@pytest.mark.parametrize(("source", "sink"), [(a, PATTERNS[-1 - i]) for i, a in enumerate(PATTERNS)])
def test_streams(source, sink):
    run_bench(ACCUMULATOR, "bench_selftest", source=source, sink=sink)


def test_build_is_shared():
    first = build(ACCUMULATOR)
    stamp = (first / "top.v").stat().st_mtime_ns
    assert build(ACCUMULATOR) == first
    assert (first / "top.v").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (1, r"beat 7.*got \d+, golden \d+, inputs \d+"),
        (2, r"beat 8.*got \d+, golden \d+, inputs \d+"),
        (3, r"beat 7.*got \d+, golden \d+, inputs \d+"),
    ],
)
def test_failing_bench_says_where(fault, message):
    with pytest.raises(BenchError) as caught:
        run_bench(
            ACCUMULATOR,
            "bench_selftest",
            case="sums",
            default_seed=7,
            source="random",
            sink="none",
            fault=fault,
        )
    text = str(caught.value)
    assert re.search(message, text)
    assert f"SEED={seed(7)}" in text
    found = re.search(r"waveform: (\S+)", text)
    assert found
    waveform = Path(found[1])
    assert waveform.stat().st_size > 1000


def test_no_test_is_a_failure():
    with pytest.raises(BenchError, match="no test ran"):
        run_bench(ACCUMULATOR, "bench_selftest", case="absent", source="none", sink="none")
