"""Engines that are wrong on purpose. Hidden: the bench's own tests show that each is reported as a failure.

broken-corrupt flips one byte of a worker's data; broken-lies claims savings that are not there;
broken-kills ends a worker.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

from udedup.bench.engines.base import Engine, Run

LIE_BYTES = 1 << 30


class Broken(Engine):
    summary = "fault injection"

    def before_check(self, run: Run) -> None:
        if self.name == "broken-corrupt":
            corrupt(run.pids[-1])
        elif self.name == "broken-kills":
            os.kill(run.pids[-1], signal.SIGKILL)

    def claimed(self, run: Run) -> int | None:
        return LIE_BYTES if self.name == "broken-lies" else None


def corrupt(pid: int) -> None:
    """Flips a byte in the middle of the private anonymous mapping that holds most memory."""
    best, start, end = (0, 0), 0, 0
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            plain = words[1] == "rw-p" and len(words) == 5
            start, end = (int(part, 16) for part in words[0].split("-")) if plain else (0, 0)
        elif words[0] == "Anonymous:" and end:
            best = max(best, (int(words[1]), (start + end) // 2))
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(best[1])
        old = memory.read(1)
        memory.seek(best[1])
        memory.write(bytes([old[0] ^ 0x40]))


def make(name: str) -> Engine:
    """The engine of that name."""
    return Broken(name)
