"""ksm, layout+ksm: kernel KSM at full speed; ksm-default: at the kernel's default knobs.

By PR_SET_MEMORY_MERGE; by MADV_MERGEABLE on the workers' buffers where the kernel has it not (before 6.4).
Guarantees: the knobs are as before when `finish` has returned, or when the bench was killed (see ksmknobs).
"""

from __future__ import annotations

import ctypes
from typing import Any

from udedup.bench import ksmknobs, procfs
from udedup.bench.engines.base import Engine, Run, launcher
from udedup.bench.engines.plain import HASH_SEED
from udedup.bench.workloads.base import Workload

PR_GET_MEMORY_MERGE = 68

FULL_SPEED = {"advisor_mode": "none", "pages_to_scan": "100000", "sleep_millisecs": "0",
              "use_zero_pages": "1", "smart_scan": "1"}  # fmt: skip
DEFAULTS = {"advisor_mode": "none", "pages_to_scan": "100", "sleep_millisecs": "20", "use_zero_pages": "0",
            "smart_scan": "1"}  # fmt: skip


def whole_process() -> bool:
    """True where the kernel merges whole processes: PR_GET_MEMORY_MERGE only asks."""
    return ctypes.CDLL(None).prctl(PR_GET_MEMORY_MERGE, 0, 0, 0, 0) >= 0


class Ksm(Engine):
    cheap_polls = True

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.layout = name == "layout+ksm"
        self.advises = not whole_process()
        self.knobs = DEFAULTS if name == "ksm-default" else FULL_SPEED
        where = "on a shared layout, " if self.layout else ""
        self.summary = f"kernel KSM {where}at {'its defaults' if self.knobs is DEFAULTS else 'full speed'}"
        self._keeper: ksmknobs.Keeper | None = None
        self._wanted: dict[str, str] = {}
        self._base = 0.0  # ksmd's CPU before this run
        self._ksmd = procfs.pid_named("ksmd")

    def unavailable(self) -> str | None:
        blind = None if self._ksmd else "no ksmd is visible here (another pid namespace)"
        return ksmknobs.unavailable() or blind

    def unsuited(self, workload: Workload) -> str | None:
        if self.advises and not workload.has_buffers:
            return "this kernel merges advised regions only (Linux 6.4 for more), and this workload has none"
        return None

    def prepare(self, run: Run) -> None:
        self._keeper = ksmknobs.Keeper()
        self._keeper.__enter__()
        self._base = procfs.thread_cpu(self._ksmd, self._ksmd) if self._ksmd else 0.0
        if self._keeper.in_use:
            run.say("KSM is in use on this machine already: ksmd's CPU holds the others' share")
        present = ksmknobs.read_all(tuple(self.knobs))
        self._wanted = {name: value for name, value in self.knobs.items() if name in present}
        ksmknobs.write({"run": "0", **self._wanted})

    def wrap(self, command: list[str], env: dict[str, str], run: Run) -> tuple[list[str], dict[str, str]]:
        options = [] if self.advises else ["--ksm"]
        if self.layout:
            options.append("--layout")
            env = {**env, "PYTHONHASHSEED": HASH_SEED}
        return launcher(options, command), env

    def start(self, run: Run) -> None:
        ksmknobs.write({"run": "1"})

    def cpu(self, run: Run) -> float:
        return procfs.thread_cpu(self._ksmd, self._ksmd) - self._base if self._ksmd else 0.0

    def cpu_apart(self, run: Run) -> float:
        return self.cpu(run)

    def passes(self, run: Run) -> float | None:
        return float(ksmknobs.read("full_scans"))

    def moving(self, run: Run) -> tuple[int, ...]:
        now = ksmknobs.counters()
        return (now.get("pages_sharing", 0) + now.get("ksm_zero_pages", 0),)

    def claimed(self, run: Run) -> int | None:
        return self.moving(run)[0] * procfs.PAGE

    def spoiled(self, run: Run) -> str | None:
        wanted = {**self._wanted, "run": "1"}
        found = ksmknobs.read_all(tuple(wanted))
        changed = [f"{name} is {found[name]}" for name in wanted if found[name] != wanted[name]]
        return f"somebody else changed KSM's knobs meanwhile: {', '.join(changed)}" if changed else None

    def counters(self, run: Run) -> dict[str, Any]:
        return {**ksmknobs.counters(), "knobs": ksmknobs.read_all(ksmknobs.KNOBS)}

    def finish(self, run: Run) -> None:
        keeper, self._keeper = self._keeper, None
        if keeper:
            keeper.__exit__()


def make(name: str) -> Engine:
    """The engine of that name."""
    return Ksm(name)
