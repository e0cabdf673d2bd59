"""The measured phases of a cell: merging (a timeline of memory and CPU), idle passes, the application.

All memory is what the kernel says of the processes from outside. `total` is the sum of PSS plus the pages of
the engine's store that nobody maps: each byte is counted once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from itertools import pairwise
from typing import Any

from udedup.bench import procfs
from udedup.bench.engines.base import Engine, Run
from udedup.bench.results import Cell
from udedup.bench.stats import quantile, time_to_fraction, value_at
from udedup.bench.workloads.base import Workload

MIB = 1 << 20
INTERVAL_S = 0.01
QUIET_PASSES = 2.0
MOVED_SHARE = 0.001  # less than this share of the pool's pages is not movement
CLAIM_SLACK = 24 * MIB
CLAIM_AGE_S = 6.0  # an engine counts a split when it next looks; agents of busy programs do so every 4 s
NOISE = 4 * MIB  # PSS of libraries moves by this when other programs come and go
COLUMNS = ("t", "pss", "store_unmapped", "uss", "rss", "cpu")
IDLE_ENGINES = ("none", "layout")

App = Callable[[], Future[list[dict[str, Any]]]]
Say = Callable[[str], None]
Outside = dict[str, int]


def outside() -> Outside:
    """What the machine and our memory cgroup use before the pool is started; no cgroup, no figure."""
    found = {"available": procfs.meminfo()["MemAvailable"]}
    charged = procfs.cgroup_current()
    return found if charged is None else {**found, "cgroup": charged}


class Meter:
    """Samples one pool under one engine."""

    def __init__(self, engine: Engine, run: Run, before: Outside) -> None:
        self.engine, self.run, self.outside = engine, run, before
        self.shmem_base = procfs.pool_memory(run.pids).pss_shmem - self._mapped_store()
        self.rows: dict[str, list[float]] = {name: [] for name in COLUMNS}
        self.cpu_start = engine.cpu(run)
        self.begun = time.monotonic()

    def _mapped_store(self) -> int:
        # Nothing is merged yet, or next to nothing: what the store holds is mapped.
        return self.engine.store(self.run)

    def store_unmapped(self, memory: procfs.Memory) -> int:
        """Bytes of the store that no process of the pool maps."""
        mapped = max(0, memory.pss_shmem - max(0, self.shmem_base))
        return max(0, self.engine.store(self.run) - mapped)

    def sample(self) -> float:
        """Adds a row; returns its total in bytes."""
        at = time.monotonic()
        memory = procfs.pool_memory(self.run.pids)
        unmapped = self.store_unmapped(memory)
        cpu = self.engine.cpu(self.run) - self.cpu_start
        row = (at - self.begun, memory.pss, unmapped, memory.uss, memory.rss, cpu)
        for column, value in zip(self.rows.values(), row, strict=True):
            column.append(round(value, 4) if isinstance(value, float) else value)
        return float(memory.pss + unmapped)

    def totals(self) -> list[float]:
        """PSS plus unmapped store of every sample."""
        return [pss + store for pss, store in zip(self.rows["pss"], self.rows["store_unmapped"], strict=True)]

    def snapshot(self) -> dict[str, int]:
        """Everything about memory at this moment."""
        memory = procfs.pool_memory(self.run.pids)
        now, info = outside(), procfs.meminfo()
        maps = procfs.vmas(self.run.pids)
        found = {
            "pss": memory.pss,
            "uss": memory.uss,
            "rss": memory.rss,
            "pss_anon": memory.pss_anon,
            "store": self.engine.store(self.run),
            "store_unmapped": self.store_unmapped(memory),
            "engine_pss": self.engine.own_pss(self.run),
            "page_tables": procfs.page_tables(self.run.pids),
            "vmas": sum(maps),
            "vmas_max": max(maps, default=0),
            "slab": info.get("Slab", 0),
            "available_used": self.outside["available"] - now["available"],
        }
        if "cgroup" in now and "cgroup" in self.outside:
            found["cgroup_used"] = now["cgroup"] - self.outside["cgroup"]
        return found


class Quiet:
    """Knows when an engine has made two full passes and nothing moved in them."""

    def __init__(self, meter: Meter) -> None:
        self.engine, self.run = meter.engine, meter.run
        self.step = max(16.0, MOVED_SHARE * meter.totals()[0] / procfs.PAGE) if meter.rows["t"] else 16.0
        self.stood, self.since = self.engine.moving(self.run), self.engine.passes(self.run)
        self.begun = time.monotonic()

    def reached(self) -> bool:
        """Asks the engine; True once settled."""
        passes = self.engine.passes(self.run)
        if passes is None or self.since is None:
            return time.monotonic() - self.begun > 1.0
        now = self.engine.moving(self.run)
        if any(abs(a - b) > self.step for a, b in zip(now, self.stood, strict=True)):
            self.stood, self.since, self.begun = now, passes, time.monotonic()
        if self.engine.busy(self.run):
            self.since, self.begun = passes, time.monotonic()
        return passes >= self.since + QUIET_PASSES + 1 and time.monotonic() - self.begun > self.engine.quiet_s


def merge(meter: Meter, cell: Cell, app: App, workload: Workload, limit_s: float, say: Say) -> None:
    """Starts the engine and samples until it has settled, or until the limit; fills in the cell's curves."""
    cell.cpu_load_s = meter.cpu_start
    meter.sample()
    quiet = Quiet(meter)
    meter.begun = time.monotonic()
    meter.engine.start(meter.run)
    rounds = [app()] if workload.works_merging else []
    asked = shown = time.monotonic()
    while True:
        at, before = time.monotonic(), time.thread_time()
        total = meter.sample()
        now = time.monotonic()
        if now - shown > 0.25:
            say(f"merging {now - meter.begun:5.1f} s  {total / MIB:7.0f} MiB")
            shown = now
        if not cell.settled and now - asked > (0.5 if rounds else 0.15):
            asked = now
            cell.settled = quiet.reached()
        if not rounds or rounds[-1].done():
            if cell.settled or now - meter.begun > limit_s:
                break
            if rounds:  # the application goes on, or the engine would settle with memory that rests
                rounds.append(app())
        # Closely at first, ever more widely. Never more than a fifth of a CPU; an application that works
        # is not to feel it, and memory in small pages takes longer to count than the same in huge ones. What
        # a sample waited for a CPU, or for a lock, it did not take from anybody.
        cost, elapsed = time.thread_time() - before, at - meter.begun
        time.sleep(max(INTERVAL_S, elapsed / 200, 50 * cost if rounds else 4 * cost))
    if not cell.settled:
        cell.notes.append(f"not settled after {limit_s:.0f} s: the figures are of that moment")
    if rounds:
        cell.app_merging = app_figures(rounds[0].result())
    _curves(meter, cell)


def _curves(meter: Meter, cell: Cell) -> None:
    times, totals, cpu = meter.rows["t"], meter.totals(), meter.rows["cpu"]
    times[0] = 0.0
    final = quantile(totals[-5:], 0.5)
    cell.timeline = meter.rows
    cell.settle_s = times[-1]
    cell.cpu_settled_s = cpu[-1]
    if cell.engine in IDLE_ENGINES or totals[0] - final < max(0.02 * totals[0], NOISE):
        return  # nothing to speak of was saved: no time to a share of it
    cell.time_90_s = time_to_fraction(times, totals, totals[0], final, 0.9)
    cell.time_99_s = time_to_fraction(times, totals, totals[0], final, 0.99)
    if cell.time_99_s is not None:
        cell.cpu_99_s = value_at(times, cpu, cell.time_99_s)
    if cell.possible:
        cell.time_data_s = time_to_fraction(times, totals, totals[0], totals[0] - cell.possible, 0.99)
    if cell.time_data_s is not None:
        cell.cpu_data_s = value_at(times, cpu, cell.time_data_s)


def judge_claim(meter: Meter, cell: Cell, forks: bool) -> None:
    """Fails the cell when the engine claims a saving that the kernel does not show, nor did just before."""
    claimed = meter.engine.claimed(meter.run)
    if claimed is None:
        return
    totals, times = meter.totals(), meter.rows["t"]
    since = time.monotonic() - meter.begun - CLAIM_AGE_S
    lately = (total for at, total in zip(times, totals, strict=True) if at >= since)
    shown = totals[0] - min(cell.total or 0, *lately)
    cell.final["claimed"] = claimed
    if claimed <= 1.1 * shown + CLAIM_SLACK:
        return
    saved = f"claims {claimed / MIB:.0f} MiB saved, the kernel shows {shown / MIB:.0f} MiB"
    words = f"{meter.engine.name} {saved}"
    if forks:
        cell.notes.append(f"{words} (pages shared by fork count for each process)")
    else:
        cell.fail(words)


def app_figures(answers: list[dict[str, Any]]) -> dict[str, float]:
    """Units per second summed over the workers, latencies of all of them in seconds."""
    latencies = [each for answer in answers for each in answer["latencies"]]
    if not latencies:
        raise ValueError("the application did no work")
    return {
        "rate": sum(answer["units"] / answer["seconds"] for answer in answers),
        "p50_s": quantile(latencies, 0.5),
        "p99_s": quantile(latencies, 0.99),
        "max_s": max(latencies),
    }


def own_figures(answers: list[dict[str, Any]]) -> dict[str, float]:
    """A workload's own figures: the workers' medians; latencies as p50 and p99 in microseconds."""
    out = {}
    for name in answers[0]:
        if name != "latencies":
            out[name] = quantile([float(answer[name]) for answer in answers], 0.5)
    latencies = [each for answer in answers for each in answer.get("latencies", [])]
    if latencies:
        out["p50_us"], out["p99_us"] = quantile(latencies, 0.5) * 1e6, quantile(latencies, 0.99) * 1e6
    return out


def idle(meter: Meter, seconds: float) -> dict[str, float]:
    """The engine's CPU while nothing changes: per second, per pass, per cheapest pass where visible."""
    engine, run = meter.engine, meter.run
    start, cpu, passes = time.monotonic(), engine.cpu(run), engine.passes_made(run)
    marks = [(cpu, passes or 0.0)]
    while time.monotonic() - start < seconds:
        time.sleep(0.005 if engine.cheap_polls else seconds / 4)
        if engine.cheap_polls and (now := engine.passes_made(run)) is not None and now > marks[-1][1]:
            marks.append((engine.cpu(run), now))
    spent, lasted = engine.cpu(run) - cpu, time.monotonic() - start
    out = {"seconds": lasted, "cpu_s": spent, "cpu_share": spent / lasted}
    ended = engine.passes_made(run)
    if ended is not None and passes is not None and ended > passes:
        out["passes"] = ended - passes
        out["cpu_per_pass_s"] = spent / (ended - passes)
    steps = [(b[0] - a[0]) / (b[1] - a[1]) for a, b in pairwise(marks[1:])]
    if steps:
        out["cpu_cheapest_pass_s"] = min(steps)
    return out


def note_counters(meter: Meter, cell: Cell) -> None:
    """Keeps what the engine says of itself, its pauses apart; and its whole CPU by /proc, to compare with."""
    cell.counters_end = meter.engine.counters(meter.run)
    cell.counters_end["cpu_by_proc_s"] = meter.engine.cpu(meter.run)
    pauses = cell.counters_end.get("freeze_us")
    if isinstance(pauses, dict):
        cell.freeze_us = {name: float(pauses[name]) for name in ("p50", "p99", "max", "count")}
