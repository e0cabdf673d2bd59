"""udedup: `udedup run` around the pool. udedup-random: without the shared layout. udedup-trap: mprotect mode.

CPU is what /proc says of threads named udedup-agent, of the children they reaped (holders, readers; in ticks,
so up to 20 ms a process too little), of the merger and of `udedup run`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

from udedup.bench import procfs
from udedup.bench.engines.base import Engine, Run
from udedup.bench.workloads.base import Workload
from udedup.client import Client
from udedup.domain import Domain
from udedup.errors import UdedupError

LINGER_S = 8.0


class Udedup(Engine):
    quiet_s = 4.5  # agents with little to do sleep 2 s between passes, and wait for short runs to calm down

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.advises = name == "udedup-trap"
        self.layout = "random" if name == "udedup-random" else "pool"
        self.summary = {"udedup": "udedup run", "udedup-random": "udedup run --layout random"}.get(
            name, "udedup, mode trap, advised regions"
        )
        self._client: Client | None = None
        self._merger = 0
        self._answer: dict[str, Any] = {}
        self._answered = float("-inf")

    def unsuited(self, workload: Workload) -> str | None:
        if self.advises and not workload.has_buffers:
            return "trap mode merges explicit regions, and this workload has none"
        return None

    def wrap(self, command: list[str], env: dict[str, str], run: Run) -> tuple[list[str], dict[str, str]]:
        options = ["--domain", run.domain, "--layout", self.layout]
        for knob in [*self.settings, "run=0"]:
            options += ["--set", knob]
        if self.advises:
            options += ["--regions", "advised", "--set", "mode=trap", "--set", "split=trap"]
        base = [sys.executable, "-P", "-m", "udedup", "run", *options, "--"]
        return [*base, *command], {**env, "UDEDUP_DIR": str(run.rundir)}

    def start(self, run: Run) -> None:
        self._ask(run, "set", knobs={"run": 1})
        # KSM's `run` wakes ksmd at once; this wakes agents that sleep between passes.
        self._ask(run, "kick")
        self._merger = int(self._stat(run).get("merger", {}).get("pid", 0))

    def cpu(self, run: Run) -> float:
        merger = self._merger_pid(run)
        agents = sum(procfs.agent_cpu(pid) for pid in run.pids)
        helpers = sum(
            procfs.thread_cpu(pid, tid)
            for pid in run.helpers
            for tid in procfs.threads_named(pid, procfs.AGENT_COMM)
        )
        own = [*self._runner(run), *([merger] if merger else [])]
        return agents + helpers + sum(procfs.process_cpu_fine(pid) for pid in own)

    def cpu_apart(self, run: Run) -> float:
        merger = self._merger_pid(run)
        return procfs.process_cpu(merger) if merger else 0.0

    def store(self, run: Run) -> int:
        merger = self._merger_pid(run)
        return procfs.segment_bytes([*run.pids, *run.helpers, *([merger] if merger else [])])

    def own_pss(self, run: Run) -> int:
        merger = self._merger_pid(run)
        return sum(procfs.rollup(pid).pss for pid in [*self._runner(run), *([merger] if merger else [])])

    def passes(self, run: Run) -> float | None:
        """The slowest process decides: a pass of the pool is a pass of each."""
        return min(self._passes(run), default=0.0)

    def passes_made(self, run: Run) -> float | None:
        counts = self._passes(run)
        return sum(counts) / len(counts) if counts else 0.0

    def _passes(self, run: Run) -> list[float]:
        processes = self._stat(run).get("processes", [])
        return [float(each["full_scans"]) for each in processes if each.get("pid") in run.pids]

    def moving(self, run: Run) -> tuple[int, ...]:
        stat = self._stat(run)
        merged = int(stat.get("pages_sharing", 0)) + int(stat.get("zero_pages", 0))
        return merged, int(stat.get("pages_volatile", 0))

    def busy(self, run: Run) -> bool:
        stat = self._stat(run)
        return any(stat.get(name, 0) for name in ("queued_pages", "outstanding_pages", "waiting_runs"))

    def claimed(self, run: Run) -> int | None:
        saved = self._stat(run).get("saved_bytes")
        return None if saved is None else int(saved)

    def counters(self, run: Run) -> dict[str, Any]:
        stat = dict(self._stat(run, fresh=True))
        stat["agents_joined"] = self._joined(run, stat)
        return stat

    def remark(self, run: Run) -> str | None:
        joined = self._joined(run, self._stat(run))
        if joined == len(run.pids):
            return None
        return f"{len(run.pids) - joined} of {len(run.pids)} processes take no part (see `udedup doctor`)"

    @staticmethod
    def _joined(run: Run, stat: dict[str, Any]) -> int:
        return sum(1 for each in stat.get("processes", []) if each.get("pid") in run.pids)

    def finish(self, run: Run) -> None:
        """Ends the domain's merger and waits for it; kills it only when it does not go."""
        merger = self._merger_pid(run, quiet=True)
        with contextlib.suppress(UdedupError, OSError):
            self._ask(run, "shutdown")
        if self._client:
            self._client.close()
            self._client = None
        if not merger:
            return
        end = time.monotonic() + LINGER_S
        while procfs.alive(merger) and time.monotonic() < end:
            time.sleep(0.02)
        if procfs.alive(merger):
            run.say(f"merger {merger} did not end by itself in {LINGER_S:.0f} s; killed")
            with contextlib.suppress(ProcessLookupError):
                os.kill(merger, signal.SIGKILL)

    @staticmethod
    def _runner(run: Run) -> list[int]:
        """`udedup run` waits beside the pool: it is paid for out of the savings too."""
        return [pid for pid in run.helpers[:1] if b"udedup\0run\0" in procfs.cmdline(pid)]

    def _ask(self, run: Run, op: str, **fields: Any) -> Any:
        if self._client is None:
            with _environment("UDEDUP_DIR", str(run.rundir)):
                self._client = Client(Domain(run.domain))
        return self._client.request(op, **fields)

    def _stat(self, run: Run, fresh: bool = False) -> dict[str, Any]:
        """The merger's stat; one answer serves the questions of one sample."""
        now = time.monotonic()
        if fresh or now - self._answered > 0.02:
            self._answer = self._ask(run, "stat")
            self._answered = now
        return dict(self._answer)

    def _merger_pid(self, run: Run, quiet: bool = False) -> int:
        if not self._merger:
            try:
                self._merger = int(self._stat(run).get("merger", {}).get("pid", 0))
            except (UdedupError, OSError):
                if not quiet:
                    raise
        return self._merger


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    old = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if old is None:
            del os.environ[name]
        else:
            os.environ[name] = old


def make(name: str) -> Engine:
    """The engine of that name."""
    return Udedup(name)
