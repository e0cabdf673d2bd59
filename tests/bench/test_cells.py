"""Real pools, small: the figures are right where they can be known, and what is broken shows as broken."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from udedup.bench import ksmknobs, procfs
from udedup.bench.cell import Limits
from udedup.bench.engines import engine, ksm
from udedup.bench.matrix import Plan, run_bench
from udedup.bench.results import FAILED, OK, SKIPPED
from udedup.bench.summary import summarize
from udedup.bench.workloads import WORKLOADS, workload

pytest.importorskip("numpy")
MIB = 1 << 20
MARK = f"BENCH_TEST_MARK={os.getpid()}".encode()
os.environ["BENCH_TEST_MARK"] = str(os.getpid())
SHORT = Limits(merge_s=15, work_s=0.3, idle_s=1.0)


def bench(workloads, engines, size=16, workers=2, **more):
    options = {"modules": ["json", "decimal"]} if workloads == ["imports"] else {}
    plan = Plan(workloads, engines, 1, workers, size * MIB, limits=SHORT, options=options, **more)
    return run_bench(plan, "test")


def pool_processes() -> list[int]:
    """Workers and mergers of benches that this test started: others may run on the machine."""
    pids = (int(name) for name in os.listdir("/proc") if name.isdigit())
    words = (b"udedup.bench.", b"udedup\0merger")
    ours = [p for p in pids if any(word in procfs.cmdline(p) for word in words)]
    return [p for p in ours if MARK in environment(p) and b"udbench-" in procfs.cmdline(p) + environment(p)]


def environment(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


def test_no_more_of_an_importing_pool_is_unlike_than_it_uses():
    for cell in bench(["imports"], ["udedup"], workers=3).cells:
        assert cell.status == OK, cell.reason
        assert 0 < cell.final["distinct"] < cell.total


@pytest.mark.parametrize("name", [name for name in WORKLOADS if name != "torch"])
def test_every_workload_runs_and_repeats_its_results(name):
    report = bench([name], ["layout"], size=8)
    reasons = {cell.engine: (cell.status, cell.reason) for cell in report.cells}
    if report.cells[0].status == SKIPPED:
        pytest.skip(report.cells[0].reason)
    assert reasons == {"none": (OK, ""), "layout": (OK, "")}
    assert report.complete
    assert report.cells[0].final["pss"] > 0
    each = workload(name)
    assert bool(report.cells[0].app_settled) == each.works
    assert bool(report.cells[0].app_merging) == each.works_merging


def test_a_missing_module_is_a_skip_with_a_reason():
    plan = Plan(["imports"], [], 1, 2, MIB, limits=SHORT, options={"modules": ["no_such_module_here"]})
    cell = run_bench(plan, "test").cells[0]
    assert (cell.status, cell.reason) == (SKIPPED, "not installed: no_such_module_here")


@pytest.mark.parametrize(
    ("broken", "reason"),
    [("broken-corrupt", "differ"), ("broken-lies", "claims 1024 MiB saved"), ("broken-kills", "died")],
)
def test_a_broken_engine_fails_and_gives_no_ratio(broken, reason):
    report = bench(["arrays"], [broken])
    assert report.cells[0].status == OK
    assert report.cells[1].status == FAILED
    assert reason in report.cells[1].reason
    row = summarize(report)[1]
    assert row.failed
    assert not row.figures
    assert not pool_processes()


def test_corrupted_data_that_nobody_shares_is_seen_too():
    report = bench(["unique"], ["broken-corrupt"])
    assert [cell.status for cell in report.cells] == [OK, FAILED]
    assert "differ" in report.cells[1].reason


def test_a_module_that_cannot_be_imported_fails_with_the_cause(tmp_path, monkeypatch):
    (tmp_path / "bench_broken_module.py").write_text("raise ValueError('broken for good')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    plan = Plan(["imports"], [], 1, 2, MIB, limits=SHORT, options={"modules": ["bench_broken_module"]})
    cell = run_bench(plan, "test").cells[0]
    assert cell.status == FAILED
    assert "ValueError: broken for good" in cell.reason


def test_the_time_budget_skips_with_a_reason():
    report = bench(["zeros"], ["layout"], budget_s=0.0)
    assert [cell.status for cell in report.cells] == [SKIPPED, SKIPPED]
    assert "time budget" in report.cells[0].reason


def test_without_whole_process_ksm_a_workload_without_buffers_is_skipped(monkeypatch):
    monkeypatch.setattr(ksm, "whole_process", lambda: False)
    assert "advised regions only" in engine("ksm").unsuited(workload("imports"))
    assert engine("ksm").unsuited(workload("arrays")) is None


@pytest.mark.usefixtures("kernel_ksm")
@pytest.mark.parametrize("whole", [True, False], ids=["prctl", "madvise"])
def test_kernel_ksm_saves_what_is_equal_and_leaves_the_knobs(whole, monkeypatch):
    monkeypatch.setattr(ksm, "whole_process", lambda: whole)
    if reason := engine("ksm").unavailable():
        pytest.skip(reason)
    before = ksmknobs.read_all(ksmknobs.KNOBS)
    report = bench(["arrays"], ["ksm"], size=32)
    found = report.cells[1]
    assert (found.status, found.reason) == (OK, "")
    assert found.before["pss"] - found.total > 0.95 * 32 * MIB
    assert found.cpu_99_s and found.time_99_s
    assert found.cpu_99_s <= found.time_99_s * 1.1
    assert ksmknobs.read_all(ksmknobs.KNOBS) == before


@pytest.mark.usefixtures("kernel_ksm")
@pytest.mark.parametrize(("number", "wanted"), [(signal.SIGINT, "ksm"), (signal.SIGTERM, "udedup")])
def test_interrupted_it_prints_what_it_has_and_leaves_nothing(number, wanted, tmp_path):
    """The pool has a session of its own, out of the terminal's reach: the bench ends it, engine and all."""
    engines = "layout" if engine(wanted).unavailable() else wanted
    before = ksmknobs.read_all(ksmknobs.KNOBS) if engines == "ksm" else {}
    command = [
        sys.executable,
        "-m",
        "udedup",
        "bench",
        "zeros",
        "arrays",
        "--engine",
        engines,
        "--size",
        "64",
    ]
    command += ["--workers", "2", "--repeat", "3", "--json", str(tmp_path / "part.json")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    seen = process.stderr.readline()
    time.sleep(2.5)  # into the engine's first cell
    if wanted == "udedup":
        assert any(b"udedup\0merger" in procfs.cmdline(pid) for pid in pool_processes())
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "MiB" in seen
    assert "The run was interrupted" in out
    assert "interrupted" in (tmp_path / "part.json").read_text()
    assert not pool_processes()
    if before:
        assert ksmknobs.read_all(ksmknobs.KNOBS) == before
