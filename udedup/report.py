"""What `udedup run --report` prints: samples of a pool while it runs, and lines at its end."""

import time
from dataclasses import dataclass
from typing import Any

from udedup import procmem
from udedup.cli._common import size
from udedup.keeper import Keeper

_COST_SHARE = 50  # a sample may take one part in so many of the time


@dataclass(frozen=True)
class Sample:
    """One look at the pool. pss, uss: bytes now; saved: bytes the merger's counters say are saved."""

    pss: int
    uss: int
    saved: int
    merged: int


class Recorder:
    """Samples the pool under `root` (a pid) and the merger behind `keeper`."""

    def __init__(self, root: int, keeper: Keeper) -> None:
        self.root = root
        self.keeper = keeper
        self.started = time.monotonic()
        self.next_at = 0.0
        self.peak_pss = 0
        self.best: Sample | None = None
        self.left: dict[str, int] = {}
        self.agent_cpu: dict[int, float] = {}
        self.merger_cpu: dict[int, float] = {}

    def tick(self) -> None:
        """Takes a sample if the last one is long enough ago for its cost."""
        began = time.monotonic()
        if began < self.next_at:
            return
        self._sample()
        self.next_at = began + max(1.0, _COST_SHARE * (time.monotonic() - began))

    def _sample(self) -> None:
        stat = self.keeper.stat()
        pids = procmem.descendants(self.root)
        others = self._count_cpu(stat, pids) if stat else []
        now = procmem.pool(pids, procmem.store_bytes(stat) if stat else 0, others)
        self.peak_pss = max(self.peak_pss, now.pss)
        if stat is None:
            return
        self._note_left(stat)
        page = stat.get("page_size", 4096)
        merged = (stat.get("pages_shared", 0) + stat.get("pages_sharing", 0)) * page
        sample = Sample(now.pss, now.uss, int(stat.get("saved_bytes", 0)), merged)
        if self.best is None or sample.saved >= self.best.saved:
            self.best = sample

    def _note_left(self, stat: dict[str, Any]) -> None:
        """Pages that have an equal and were not merged, by cause; those of short runs at their most."""
        self.left = {cause: count for cause, count in stat.get("merge_failures", {}).items() if count} | {
            "want of mappings": max(
                int(stat.get("left_for_vmas_pages", 0)), self.left.get("want of mappings", 0)
            )
        }

    def _count_cpu(self, stat: dict[str, Any], pids: list[int]) -> list[int]:
        members = {process["pid"]: process for process in stat.get("processes", [])}
        for pid, process in members.items():
            if pid in pids:
                seconds = float(process.get("agent_cpu_s", 0.0))
                self.agent_cpu[pid] = max(self.agent_cpu.get(pid, 0.0), seconds)
        merger = stat.get("merger", {})
        if "pid" in merger:
            self.merger_cpu[merger["pid"]] = float(merger.get("cpu_s", 0.0))
        return [pid for pid in members if pid not in pids]

    def lines(self) -> list[str]:
        """The report, for stderr."""
        seconds = time.monotonic() - self.started
        agents, merger = sum(self.agent_cpu.values()), sum(self.merger_cpu.values())
        out = [f"udedup: peak PSS of the pool {size(self.peak_pss)}, seen over {seconds:.1f} s"]
        if self.best is None or self.best.saved <= 0:
            out.append(
                "udedup: nothing was merged (small or short programs are left alone; see `udedup doctor`)"
            )
        else:
            best = self.best
            out.append(
                f"udedup: at its best saved {size(best.saved)}: "
                f"PSS {size(best.pss + best.saved)} -> {size(best.pss)}, "
                f"USS {size(best.uss + best.merged)} -> {size(best.uss)} (before: from the counters)"
            )
        if causes := ", ".join(f"{cause} {count}" for cause, count in self.left.items() if count):
            out.append(f"udedup: pages not merged: {causes}")
        out.append(f"udedup: CPU agents {agents:.2f} s, merger {merger:.2f} s")
        return out
