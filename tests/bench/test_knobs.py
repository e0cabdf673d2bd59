"""KSM's knobs come back: after a normal end, Ctrl-C, SIGTERM and SIGKILL of whoever changed them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from udedup.bench import ksmknobs
from udedup.bench.engines import engine
from udedup.bench.engines.base import Run

BEFORE = {
    "run": "0",
    "pages_to_scan": "100",
    "sleep_millisecs": "20",
    "use_zero_pages": "0",
    "smart_scan": "1",
    "advisor_mode": "[none] scan-time",
    "pages_shared": "0",
}

HOLDER = """
import sys, time
from udedup.bench import ksmknobs
with ksmknobs.Keeper():
    ksmknobs.write({"pages_to_scan": "4321", "sleep_millisecs": "3"})
    print("changed", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def knobs(tmp_path, monkeypatch) -> Path:
    """A directory that looks like KSM's."""
    for name, value in BEFORE.items():
        (tmp_path / name).write_text(value + "\n")
    monkeypatch.setenv("UDEDUP_BENCH_KSM_DIR", str(tmp_path))
    return tmp_path


def restored(folder: Path, before: dict[str, str], seconds: float = 10.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if all((folder / name).read_text().split() == value.split() for name, value in before.items()):
            return True
        time.sleep(0.05)
    return False


def holder() -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout.readline() == b"changed\n"
    return process


def test_restored_at_the_end(knobs):
    with ksmknobs.Keeper():
        ksmknobs.write({"pages_to_scan": "7", "run": "1"})
        assert (knobs / "pages_to_scan").read_text() == "7"
    assert ksmknobs.read_all(ksmknobs.KNOBS) == {
        name: value.strip("[]").split("]")[0] for name, value in BEFORE.items() if name in ksmknobs.KNOBS
    }


def test_restored_after_an_exception(knobs):
    with pytest.raises(RuntimeError), ksmknobs.Keeper():
        ksmknobs.write({"pages_to_scan": "7"})
        raise RuntimeError
    assert (knobs / "pages_to_scan").read_text() == "100"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_restored_after_a_signal(knobs, number):
    process = holder()
    assert (knobs / "pages_to_scan").read_text() == "4321"
    process.send_signal(number)
    process.wait()
    process.stdout.close()
    assert restored(knobs, {"pages_to_scan": "100", "sleep_millisecs": "20"})


def test_the_guard_ignores_the_terminal(knobs):
    guard = subprocess.Popen(
        [sys.executable, "-m", "udedup.bench.guard"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    guard.stdin.write(json.dumps({"knobs": {"pages_to_scan": "55"}, "unmerge": False}).encode() + b"\n")
    guard.stdin.flush()
    assert guard.stdout.readline() == b"ready\n"
    guard.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert guard.poll() is None
    guard.stdin.close()
    assert guard.wait(10) == 0
    guard.stdout.close()
    assert (knobs / "pages_to_scan").read_text() == "55"


@pytest.mark.usefixtures("kernel_ksm")
def test_the_real_knobs_come_back():
    if reason := ksmknobs.unavailable():
        pytest.skip(reason)
    before = ksmknobs.read_all(ksmknobs.KNOBS)
    process = holder()
    assert ksmknobs.read("pages_to_scan") == "4321"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert restored(ksmknobs.folder(), {"pages_to_scan": before["pages_to_scan"]})
    assert ksmknobs.read_all(ksmknobs.KNOBS) == before


def test_figures_are_spoiled_when_somebody_else_changes_the_knobs(knobs):
    under, run = engine("ksm"), Run(knobs, "x")
    under.prepare(run)
    try:
        under.start(run)
        assert under.spoiled(run) is None
        (knobs / "run").write_text("0\n")
        assert "run is 0" in under.spoiled(run)
    finally:
        under.finish(run)


def test_without_ksm_there_is_a_reason(tmp_path, monkeypatch):
    monkeypatch.setenv("UDEDUP_BENCH_KSM_DIR", str(tmp_path / "none"))
    assert "no KSM" in (ksmknobs.unavailable() or "")


def test_two_benches_do_not_share_the_knobs(knobs):
    with ksmknobs.Keeper():
        with pytest.raises(OSError, match="another udedup bench"):
            ksmknobs.Keeper().__enter__()
        ksmknobs.write({"pages_to_scan": "7"})
    assert (knobs / "pages_to_scan").read_text() == "100"
    with ksmknobs.Keeper():
        pass
