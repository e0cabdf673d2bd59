"""The agents of a domain take turns (csrc/turns.c), and nobody's refusal to end one stops the others."""

import fcntl
import os
import struct
import sys
from contextlib import closing
from pathlib import Path

import pytest
from fake_agent import FakeAgent

sys.path.insert(0, str(Path(__file__).parent))
from pools import Pool, process_stat, run_prefix, wait_until

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
    with (
        Pool("arrays", 2, 64, prefix=run_prefix("turns")) as pool,
        closing(FakeAgent(Domain("turns").socket)) as other,
    ):
        other.hello()
        wait_until(lambda: owner_of_a_turn(other.turns) in pool.pids, 20, every=0)


def test_who_never_ends_a_turn_slows_nobody_down_for_good() -> None:
    """A process that is stopped, or means ill, has all the turns there are."""
    with Pool("arrays", 2, 1, prefix=run_prefix("turns")) as first:
        with closing(FakeAgent(Domain("turns").socket)) as other:
            other.hello()
            fcntl.lockf(other.turns, fcntl.LOCK_EX, 1024)
            with Pool("arrays", 2, 16, prefix=run_prefix("turns")) as pool:

                def merged() -> bool:
                    found = [process_stat("turns", pid) for pid in pool.pids]
                    pages = sum(each["merging_pages"] for each in found if each)
                    return pages * os.sysconf("SC_PAGE_SIZE") >= 2 * 16 * MIB * 95 // 100

                wait_until(merged, 60)
        assert len(first.ask("where")) == 2  # who was there before is well
