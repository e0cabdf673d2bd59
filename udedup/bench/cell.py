"""One cell: a workload's pool under one engine, from its start to its end, measured from outside.

Guarantees: whatever happens the pool is dead and the engine's `finish` has run when `run_cell` returns or
raises; a cell that went wrong says so in `status` and `reason`. Only requests to end come out.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from udedup.bench import contents, others, phases, procfs
from udedup.bench.control import Pool, WorkerDied
from udedup.bench.endings import postponed
from udedup.bench.engines.base import Engine, Run
from udedup.bench.results import INTERRUPTED, Cell
from udedup.bench.spec import Spec
from udedup.bench.workloads.base import Workload
from udedup.errors import UdedupError

LOAD_TIMEOUT_S = 300.0
CHECK_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 60.0
DROPPED = ("UDEDUP_", "PYTHONHASHSEED", "LD_PRELOAD")
KEPT = ("UDEDUP_TRACKING",)  # how changes are found may be chosen from outside


@dataclass(frozen=True)
class Limits:
    """How long the phases of a cell may take, in seconds."""

    merge_s: float = 60.0
    work_s: float = 6.0
    idle_s: float = 8.0


Progress = Callable[[str], None]


def run_cell(
    workload: Workload, engine: Engine, spec: Spec, cell: Cell, rundir: Path, limits: Limits, say: Progress
) -> Cell:
    """Runs one cell and fills it in."""
    domain = f"bench-{os.getpid()}-{time.monotonic_ns() // 1000 % 10**9}"
    run = Run(rundir=rundir, domain=domain, say=cell.notes.append)
    spec = Spec(**{**asdict(spec), "advise": engine.advises})
    cell.spec, cell.possible = asdict(spec), workload.possible(spec)
    cell.spec["rundir"] = ""
    process: subprocess.Popen[bytes] | None = None
    pool = Pool(str(rundir / f"{run.domain}.control"))
    try:
        outside = phases.outside()
        engine.prepare(run)
        say("starting")
        process = _start(workload, engine, spec, pool, run)
        _phases(workload, engine, spec, cell, run, pool, limits, outside, say)
        _stop(workload, pool, process, cell)
    except Exception as error:  # whatever it is, the other cells go on
        cell.fail(_cause(error, process))
    except BaseException:
        cell.status, cell.reason = INTERRUPTED, "interrupted"
        raise
    finally:
        with postponed():
            _cleanup(engine, run, pool, process, cell)
    return cell


def _start(workload: Workload, engine: Engine, spec: Spec, pool: Pool, run: Run) -> subprocess.Popen[bytes]:
    env = {name: value for name, value in os.environ.items() if name in KEPT or not name.startswith(DROPPED)}
    command, env = engine.wrap(workload.command(spec, pool.path), env, run)
    log = (run.rundir / f"{run.domain}.log").open("wb")
    with log:
        process = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    try:
        pool.accept(workload.hellos(spec), LOAD_TIMEOUT_S, lambda: process.poll() is None)
    except BaseException as error:
        _kill(process)
        if isinstance(error, WorkerDied):
            raise WorkerDied(f"{error}: {_log_tail(run)}") from error
        raise
    run.pids = pool.pids
    run.helpers = [pid for pid in procfs.descendants(process.pid) if pid not in run.pids]
    return process


def _phases(
    workload: Workload,
    engine: Engine,
    spec: Spec,
    cell: Cell,
    run: Run,
    pool: Pool,
    limits: Limits,
    outside: phases.Outside,
    say: Progress,
) -> None:
    say("loading")
    if workload.stop_by_signal:
        # gunicorn's master is part of the pool: workers share its pages by fork.
        masters = [pid for pid in run.helpers if b"gunicorn" in procfs.cmdline(pid)]
        run.pids = [*masters[-1:], *run.pids]
    cell.load_s = max(answer["seconds"] for answer in pool.ask("load", LOAD_TIMEOUT_S))
    time.sleep(0.3)
    meter = phases.Meter(engine, run, outside)
    cell.before = meter.snapshot()
    start = others.moment(engine, run)
    executor = ThreadPoolExecutor(1)
    try:
        phases.merge(meter, cell, _app(workload, spec, pool, executor, limits), workload, limits.merge_s, say)
        cell.final = meter.snapshot()
        cell.counters = engine.counters(run)
        phases.judge_claim(meter, cell, workload.forks)
        if workload.alike_by_chance and (unlike := contents.distinct_bytes(run.pids)) is not None:
            cell.final["distinct"] = unlike
        if spoiled := engine.spoiled(run):
            cell.fail(spoiled)
        if workload.works:
            say("application, merged")
            app = _app(workload, spec, pool, executor, limits)()
            cell.app_settled = phases.app_figures(app.result())
            cell.after = meter.snapshot()
    finally:
        executor.shutdown(wait=False, cancel_futures=True)
    if workload.idle_window:
        say("idle")
        cell.idle = phases.idle(meter, limits.idle_s)
    if workload.measures:
        say("measuring")
        cell.own = phases.own_figures(pool.ask("measure", CHECK_TIMEOUT_S))
    cell.others = others.between(start, others.moment(engine, run))
    phases.note_counters(meter, cell)
    cell.notes += [line for line in (others.warning(cell.others), engine.remark(run)) if line]
    engine.before_check(run)
    say("checking")
    cell.checks = [str(answer["check"]) for answer in pool.ask("check", CHECK_TIMEOUT_S)]


def _app(
    workload: Workload, spec: Spec, pool: Pool, executor: ThreadPoolExecutor, limits: Limits
) -> Callable[[], Future[list[dict[str, Any]]]]:
    """A function that sets the application to work and promises its figures."""

    def work() -> list[dict[str, Any]]:
        if workload.stop_by_signal:
            found = workload.drive(spec, limits.work_s)
            if found is None or found.get("errors"):
                raise WorkerDied(f"the application failed: {found}")
            return [found]
        return pool.ask("work", limits.work_s + 60, seconds=limits.work_s)

    return lambda: executor.submit(work)


def _stop(workload: Workload, pool: Pool, process: subprocess.Popen[bytes], cell: Cell) -> None:
    if workload.stop_by_signal:
        process.terminate()
    else:
        pool.ask("stop", STOP_TIMEOUT_S)
    try:
        status = process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        cell.fail(f"the pool did not end in {STOP_TIMEOUT_S:.0f} s")
        return
    if status not in ((0, -signal.SIGTERM, 128 + signal.SIGTERM) if workload.stop_by_signal else (0,)):
        cell.fail(f"the pool ended with status {status}")


def _cleanup(
    engine: Engine, run: Run, pool: Pool, process: subprocess.Popen[bytes] | None, cell: Cell
) -> None:
    pool.close()
    if process is not None:
        _kill(process)
    try:
        engine.finish(run)
    except (OSError, UdedupError) as error:
        cell.fail(f"{engine.name} did not clean up: {error}")
    if cell.status != "ok" and (tail := _log_tail(run)):
        cell.notes.append(f"pool said: {tail}")
    with contextlib.suppress(OSError):
        Path(pool.path).unlink()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Ends the pool's process group; the leader has had its chance."""
    with contextlib.suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(2.0)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _log_tail(run: Run) -> str:
    try:
        text = (run.rundir / f"{run.domain}.log").read_text(errors="replace")
    except OSError:
        return ""
    return " / ".join(line.strip() for line in text.splitlines()[-3:])[-400:]


def _cause(error: BaseException, process: subprocess.Popen[bytes] | None) -> str:
    ended = process.poll() if process is not None else None
    suffix = f" (pool ended with status {ended})" if ended else ""
    return f"{error or type(error).__name__}{suffix}"
