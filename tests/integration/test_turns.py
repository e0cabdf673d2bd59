"""The agents of a domain take turns (csrc/turns.c), and nobody's refusal to end one stops the others."""

import fcntl
import os
import struct
import sys
import time
from pathlib import Path

import pytest
from fake_agent import FakeAgent

sys.path.insert(0, str(Path(__file__).parent))
from pools import Pool, run_prefix, stat, wait_until

from udedup.domain import Domain

pytestmark = pytest.mark.usefixtures("domains")
MIB = 1 << 20
LOCK = "hhqqi4x"  # struct flock


def owner_of_a_turn(fd: int) -> int:
    """Pid of a process that has a turn, 0 if nobody has."""
    asked = struct.pack(LOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = struct.unpack(LOCK, fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    return pid if kind != fcntl.F_UNLCK else 0


def test_agents_take_turns() -> None:
    with Pool("arrays", 2, 64, prefix=run_prefix("turns")) as pool:
        other = FakeAgent(Domain("turns").socket)
        other.hello()
        seen: set[int] = set()
        end = time.monotonic() + 20
        while not seen & set(pool.pids) and time.monotonic() < end:
            seen.add(owner_of_a_turn(other.turns))
        other.close()
        assert seen & set(pool.pids)


def test_who_never_ends_a_turn_slows_nobody_down_for_good() -> None:
    """A process that is stopped, or means ill, has all the turns there are."""
    with Pool("arrays", 2, 0, prefix=run_prefix("turns")) as first:
        other = FakeAgent(Domain("turns").socket)
        other.hello()
        fcntl.lockf(other.turns, fcntl.LOCK_EX, 1024)
        with Pool("arrays", 2, 16, prefix=run_prefix("turns")) as pool:
            wanted = 2 * 16 * MIB * 95 // 100

            def merged() -> bool:
                entries = stat("turns")["processes"]
                mine = [each for each in entries if each["pid"] in pool.pids]
                return sum(each["merging_pages"] for each in mine) * os.sysconf("SC_PAGE_SIZE") >= wanted

            wait_until(merged, 60)
        assert first.pids
        other.close()
