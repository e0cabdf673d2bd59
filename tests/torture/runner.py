"""Runs the torture: many processes under udedup while merge, split, unmerge and merger deaths cycle."""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from udedup.client import Client, NoMerger, ensure_merger
from udedup.domain import Domain
from udedup.errors import UdedupError

HERE = Path(__file__).parent
SOURCES = ("torture.c", "verify.c", "operate.c")
C_FIELDS = (
    "verified", "words", "operations", "reads", "forks", "spawns", "remaps", "reallocs", "discards",
    "threads", "errors", "holes",
)  # fmt: skip
PY_FIELDS = ("verified", "operations", "reads", "forks", "errors")
PY_SLOT = 64
CUMULATIVE = ("pages_merged", "pages_split")
STALL_SECONDS = 20.0
START_SECONDS = 120.0  # for a new merger, which is one of a hundred programs that want a CPU


@dataclass
class Plan:
    """What to run. Times in seconds."""

    seconds: float = 60.0
    mode: str = "stop"  # stop, trap, trap-split
    processes: int = 8
    python: int = 2  # of the processes, how many are Python drivers
    threads: int = 4
    pages: int = 2048  # of each C thread
    pace_us: int = 1000  # mean sleep of a C thread between two operations: longer leaves more CPU to merging
    seed: int = 1
    plain: bool = False  # without udedup: the harness itself must be right
    kill_merger: bool = True


@dataclass
class Result:
    """What was counted. `problems` is empty when nothing went wrong."""

    seconds: float = 0.0
    counters: dict[str, int] = field(default_factory=dict)
    merges: dict[str, int] = field(default_factory=dict)
    failures: dict[str, int] = field(default_factory=dict)
    freeze_us: dict[str, float] = field(default_factory=dict)
    merger_kills: int = 0
    unmerges: int = 0
    restarts: int = 0
    problems: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        show = {**self.counters, **self.merges, "merger kills": self.merger_kills,
                "unmerge cycles": self.unmerges, "processes started": self.restarts}  # fmt: skip
        text = [f"torture: {self.seconds:.0f} s"]
        text += [f"  {name:18} {value:>15,}" for name, value in show.items()]
        text.append(f"  freeze us          {self.freeze_us}")
        text.append(f"  merge failures     {self.failures}")
        return text + [f"  PROBLEM: {problem}" for problem in self.problems]


def build(directory: Path) -> Path:
    """Compiles the C driver. Raises CalledProcessError."""
    target = directory / "torture"
    sources = [str(HERE / name) for name in SOURCES]
    subprocess.run(
        ["gcc", "-O2", "-g", "-Wall", "-Wextra", "-o", str(target), *sources, "-pthread"], check=True
    )
    return target


class Torture:
    """One run; use it once."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.result = Result()
        self.random = random.Random(plan.seed)
        self.directory = Path(tempfile.mkdtemp(prefix="udt-"))
        os.environ["UDEDUP_DIR"] = str(self.directory / "d")
        self.domain = Domain("torture")
        self.program = build(self.directory)
        self.counters = self._make_counters()
        self.children: dict[int, subprocess.Popen[bytes]] = {}
        self.seen: dict[int, dict[str, int]] = {}
        self.client: Client | None = None
        self.run_value = 1

    def _make_counters(self) -> mmap.mmap:
        path = self.directory / "counters"
        path.write_bytes(bytes(4096))
        with path.open("r+b") as file:
            return mmap.mmap(file.fileno(), 4096)

    # ---- processes ------------------------------------------------------------------------------

    def environment(self) -> dict[str, str]:
        env = {key: value for key, value in os.environ.items() if key[:7] != "UDEDUP_"}
        if self.plan.plain:
            return env
        from udedup.core import LIBRARY_PATH

        trap = self.plan.mode != "stop"
        env |= {
            "LD_PRELOAD": str(LIBRARY_PATH),
            "UDEDUP_SOCKET": str(self.domain.socket),
            "UDEDUP_DIR": os.environ["UDEDUP_DIR"],
            "UDEDUP_THRESHOLD": "0",
            "UDEDUP_REGIONS": "advised" if trap else "all",
            "UDEDUP_MODE": "trap" if trap else "stop",
            "UDEDUP_SPLIT": "trap" if self.plan.mode == "trap-split" else "kernel",
        }
        return env

    def start(self, number: int) -> None:
        plan = self.plan
        python = number < plan.python
        command = [sys.executable, str(HERE / "driver.py")] if python else [str(self.program)]
        trap = str(int(plan.mode != "stop"))
        arguments = {
            "process": number, "threads": plan.threads, "pages": plan.pages // 8 if python else plan.pages,
            "seed": self.random.randrange(1 << 30), "seconds": self.random.choice([10, 30, 60, 90]),
            "trap": trap, "advise": trap, "counters": self.directory / "counters",
        }  # fmt: skip
        if not python:
            arguments["pace-us"] = plan.pace_us
            arguments["die"] = self.random.randrange(2)
        for name, value in arguments.items():
            command += [f"--{name}", str(value)]
        self.children[number] = subprocess.Popen(command, env=self.environment(), stdin=subprocess.DEVNULL)
        self.result.restarts += 1

    def reap(self) -> None:
        for number, child in list(self.children.items()):
            status = child.poll()
            if status is None:
                continue
            if status:
                self.problem(f"process {number} (pid {child.pid}) ended with status {status}")
            self.start(number)

    def problem(self, text: str) -> None:
        if len(self.result.problems) < 20:
            self.result.problems.append(text)
            print(f"torture: {text}", file=sys.stderr, flush=True)

    # ---- merger ---------------------------------------------------------------------------------

    def connect(self) -> Client | None:
        if self.plan.plain:
            return None
        if self.client is not None:
            self.client.socket.settimeout(0)
        if self.client is None or not self.client.alive():
            self.client = ensure_merger(self.domain, START_SECONDS)
            knobs = {"sleep_millisecs": 50, "idle_millisecs": 100, "pages_to_scan": 1 << 20, "min_run": 1,
                     "smart_scan": 0, "pace_percent": 100, "run": self.run_value}  # fmt: skip
            self.client.request("set", knobs=knobs)
        return self.client

    def cycle(self) -> None:
        """One turn of what an operator or an accident does to the merger."""
        client = self.connect()
        if client is None:
            return
        dice = self.random.random()
        if dice < 0.03:
            self.run_value = 2
            self.result.unmerges += 1
            client.request("set", knobs={"run": 2})
        elif dice < 0.05:
            self.run_value = 0
            client.request("set", knobs={"run": 0})
        elif dice < 0.07 and self.plan.kill_merger:
            os.kill(client.request("stat")["merger"]["pid"], signal.SIGKILL)
            self.result.merger_kills += 1
        elif self.run_value != 1:
            self.run_value = 1
            client.request("set", knobs={"run": 1})

    def collect(self) -> None:
        """Adds what the agents' counters rose by since last time; the merger forgets those who left."""
        client = self.connect()
        if client is None:
            return
        stat: dict[str, Any] = client.request("stat")
        for entry in stat["processes"]:
            before = self.seen.setdefault(entry["pid"], {})
            for name in CUMULATIVE:
                value = int(entry.get(name, 0))
                rise = value - before.get(name, 0)
                self.result.merges[name] = self.result.merges.get(name, 0) + max(rise, 0)
                before[name] = value
        self.result.freeze_us = {
            name: value for name, value in stat["freeze_us"].items() if name != "buckets"
        }
        self.result.failures = stat.get("merge_failures", {})

    # ---- the run --------------------------------------------------------------------------------

    def read_counters(self) -> dict[str, int]:
        sums = dict(zip(C_FIELDS, struct.unpack_from(f"<{len(C_FIELDS)}Q", self.counters, 0), strict=True))
        for number in range(self.plan.python):
            values = struct.unpack_from(f"<{len(PY_FIELDS)}Q", self.counters, 2048 + number * PY_SLOT)
            for name, value in zip(PY_FIELDS, values, strict=True):
                sums[name] += value
        return sums

    def run(self) -> Result:
        """Runs the plan and cleans up after it."""
        began = time.monotonic()
        last, moved = 0, began
        try:
            self.connect()
            for number in range(self.plan.processes):
                self.start(number)
            while time.monotonic() - began < self.plan.seconds:
                time.sleep(0.2)
                self.reap()
                try:
                    self.collect()
                    if self.random.random() < 0.3:
                        self.cycle()
                except NoMerger:
                    self.client = None
                except UdedupError as error:
                    self.problem(f"merger: {error}")
                    self.client = None
                now = self.read_counters()["operations"]
                if now != last:
                    last, moved = now, time.monotonic()
                elif time.monotonic() - moved > STALL_SECONDS:
                    self.problem("nothing moves: " + self.where())
                    break
        finally:
            self.result.seconds = time.monotonic() - began
            self.result.counters = self.read_counters()
            self.end()
        if self.result.counters["errors"]:
            self.problem(f"{self.result.counters['errors']} wrong words, see stderr")
        return self.result

    def where(self) -> str:
        """What the threads of the children wait for: the last words of a hang."""
        text = []
        for child in self.children.values():
            for task in Path(f"/proc/{child.pid}/task").glob("*"):
                with contextlib.suppress(OSError):
                    comm, state = (
                        (task / "comm").read_text().strip(),
                        (task / "stat").read_text().rsplit(") ")[1][0],
                    )
                    text.append(f"{task.name} {comm} {state} {(task / 'syscall').read_text().split()[0]}")
        return "; ".join(text[:64])

    def end(self) -> None:
        for child in self.children.values():
            child.kill()
        for child in self.children.values():
            child.wait()
        with contextlib.suppress(UdedupError, OSError):
            if not self.plan.plain:
                Client(self.domain).request("shutdown")
        shutil.rmtree(self.directory, ignore_errors=True)
