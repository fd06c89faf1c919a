"""The folder of compiled designs: nothing stays there but designs, and logs for a day."""

import os
import signal
import time
from pathlib import Path

import pytest

from sim.rtl import library


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_an_interrupted_build_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(command: list[str], log: Path, environment: dict[str, str]) -> None:
        log.write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(library, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        library.compile_core("module top; endmodule", tmp_path)
    assert names(tmp_path) == set()


def test_the_log_of_a_failed_build_stays_for_a_day(tmp_path: Path) -> None:
    with pytest.raises(library.CompileError) as caught:
        library.compile_core("no Verilog", tmp_path)
    log = Path(str(caught.value).split(": ")[0])
    assert log.read_text()
    for age, there in ((3600, True), (2 * 24 * 3600, False)):
        then = time.time() - age
        os.utime(log.parent, (then, then))
        design = tmp_path / "rtl-of-another-day"
        design.mkdir(exist_ok=True)
        os.utime(design, (then, then))
        with pytest.raises(library.CompileError):
            library.compile_core("no Verilog either", tmp_path)
        assert log.exists() == there and design.exists()


def test_ctrl_c_ends_the_tool_and_what_it_has_started(tmp_path: Path) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    note = tmp_path / "pid"
    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    try:
        with pytest.raises(KeyboardInterrupt):
            library._run(["sh", "-c", f"sleep 60 & echo $! > {note}; wait"], tmp_path / "log", {})
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    status = Path(f"/proc/{int(note.read_text())}/stat")
    deadline = time.monotonic() + 10
    # Gone, or a zombie that nobody has waited for.
    while status.exists() and status.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.01)
