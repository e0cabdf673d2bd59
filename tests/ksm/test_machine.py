"""What takes root: memory cgroups that are nearly full, and the kernel moving the store's pages about."""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from ksm.lab import PAGE, Lab, Program, wait_until

from udedup.errors import UdedupError

MIB = 1 << 20
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: cgroups, compact_memory, swapon"),
]


class Group:
    """A memory cgroup of our own, v1 or v2."""

    def __init__(self) -> None:
        v1 = Path("/sys/fs/cgroup/memory")
        self.v2 = not v1.is_dir()
        base = Path("/sys/fs/cgroup") if self.v2 else v1
        self.path = base / f"udedup-test-{os.getpid()}"
        try:
            if self.v2 and "memory" not in (base / "cgroup.subtree_control").read_text():
                pytest.skip("the memory controller is not given to child cgroups here")
            self.path.mkdir()
        except OSError as error:
            pytest.skip(f"cannot make a memory cgroup: {error.strerror}")

    def add(self, pid: int) -> None:
        (self.path / "cgroup.procs").write_text(str(pid))

    def used(self) -> int:
        return int((self.path / ("memory.current" if self.v2 else "memory.usage_in_bytes")).read_text())

    def limit(self, nbytes: int | None) -> None:
        name = "memory.max" if self.v2 else "memory.limit_in_bytes"
        nothing = "max" if self.v2 else "-1"
        (self.path / name).write_text(nothing if nbytes is None else str(nbytes))

    def squeeze(self, nbytes: int) -> None:
        """Has the kernel reclaim down to nbytes; it says EBUSY while pages are still young."""
        for _ in range(50):
            with suppress(OSError):
                self.limit(nbytes)
                return
            time.sleep(0.05)

    def killed(self) -> int:
        name = "memory.events" if self.v2 else "memory.oom_control"
        words = (self.path / name).read_text().split()
        return int(words[words.index("oom_kill") + 1])


@contextmanager
def memory_group() -> Iterator[Group]:
    group = Group()
    try:
        yield group
    finally:
        procs = group.path / "cgroup.procs"
        for pid in procs.read_text().split():
            (group.path.parent / "cgroup.procs").write_text(pid)
        group.path.rmdir()


def programs_in(lab: Lab, group: Group, count: int, pages: int) -> list[Program]:
    """Programs of equal contents, filled after they were moved into the cgroup, so that it pays for them."""
    made = [lab.start() for _ in range(count)]
    for program in made:
        group.add(program.pid)
        program.ask(f"map {pages}")
        program.ask("distinct 1")
        program.ask("advise 12")
    return made


@pytest.mark.parametrize("spare", [72, 12])
def test_merging_in_a_nearly_full_cgroup(lab: Lab, spare: int) -> None:
    """Publications take at most 64 MiB more for a moment, and less where there is less."""
    with memory_group() as group:
        lab.set(run=0)
        programs = programs_in(lab, group, 4, 48 * MIB // PAGE)
        sums = {program.text("sum") for program in programs}
        full = group.used()
        group.limit(full + spare * MIB)
        lab.set(run=1)
        wait_until(lambda: lab.stat()["saved_bytes"] >= 0.99 * 3 * 48 * MIB, 60)
        assert group.killed() == 0
        wait_until(lambda: group.used() < full - 100 * MIB)
        assert {program.text("sum") for program in programs} == sums and len(sums) == 1
        for program in programs:
            program.close()


def test_run_2_fails_with_its_cause_when_memory_would_not_suffice(lab: Lab) -> None:
    with memory_group() as group:
        programs = programs_in(lab, group, 3, 24 * MIB // PAGE)
        wait_until(lambda: lab.stat()["saved_bytes"] >= 0.99 * 2 * 24 * MIB, 60)
        wait_until(lambda: group.used() < 50 * MIB)
        group.limit(group.used() + 16 * MIB)
        before = [program.ask("merged")[0] for program in programs]
        cause = r"needs 7\d MiB and 1\d MiB are left in cgroup .*; free memory"
        with pytest.raises(UdedupError, match=cause):
            lab.set(run=2)
        assert lab.stat()["run"] == 1 and [program.ask("merged")[0] for program in programs] == before
        group.limit(None)
        lab.set(run=2)
        wait_until(lambda: sum(program.ask("merged")[0] for program in programs) == 0)
        assert group.killed() == 0
        for program in programs:
            program.close()


def frames(program: Program, where: Path) -> list[int]:
    """Page frame numbers of the area, 0 where nothing is in core."""
    program.text(f"frames {where}")
    words = struct.unpack(f"={where.stat().st_size // 8}Q", where.read_bytes())
    return [word & (1 << 55) - 1 if word >> 63 else 0 for word in words]


@contextmanager
def small_pages() -> Iterator[None]:
    """No huge pages, not for the store either, in programs that are started meanwhile."""
    disable = 41  # PR_SET_THP_DISABLE: inherited
    libc = ctypes.CDLL(None)
    assert libc.prctl(disable, 1, 0, 0, 0) == 0
    try:
        yield
    finally:
        libc.prctl(disable, 0, 0, 0, 0)


def test_the_kernel_may_move_merged_pages(lab: Lab, tmp_path: Path) -> None:
    """Compaction: page frames change, contents and merging do not."""
    knob = Path("/proc/sys/vm/compact_memory")
    if not knob.exists():
        pytest.skip("this kernel has no compaction")
    with small_pages():
        holes = lab.advised(24, 1024, "distinct 5")
        programs = lab.advised(2, 8192, "distinct 1")
    lab.settle()
    expected = programs[0].text("sum")
    before = frames(programs[0], tmp_path / "before")
    for program in holes:  # leaves holes for pages to be moved into
        program.close()
    moved = 0
    for _ in range(2):
        try:
            knob.write_text("1")
        except OSError as error:
            pytest.skip(f"compaction is refused: {error.strerror}")
        after = frames(programs[0], tmp_path / "after")
        moved = sum(old != new for old, new in zip(before, after, strict=True))
        if moved:
            break
    assert {program.text("sum") for program in programs} == {expected}
    assert all(program.ask("merged")[0] == 8192 for program in programs)
    assert frames(programs[0], tmp_path / "a") == frames(programs[1], tmp_path / "b")
    if not moved:
        pytest.skip("compaction found nothing to move")


@contextmanager
def some_swap(where: Path) -> Iterator[None]:
    """64 MiB of swap for a moment, unless there is some."""
    if len(Path("/proc/swaps").read_text().splitlines()) > 1:
        yield
        return
    file = where / "swap"
    file.touch(0o600)
    file.write_bytes(bytes(64 * MIB))
    for command in (["mkswap", "-q", str(file)], ["swapon", str(file)]):
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            pytest.skip(f"{command[0]} is not installed")
        if done.returncode:
            pytest.skip(f"{command[0]}: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["swapoff", str(file)], check=True)


def test_the_kernel_may_swap_merged_pages(lab: Lab, tmp_path: Path) -> None:
    """Pressure in a cgroup: the store's pages go to swap and come back as they were, still merged."""
    with memory_group() as group, some_swap(tmp_path):
        programs = programs_in(lab, group, 2, 24 * MIB // PAGE)
        wait_until(lambda: lab.stat()["saved_bytes"] >= 0.99 * 24 * MIB, 60)
        expected = programs[0].text("sum")
        time.sleep(0.2)
        group.squeeze(12 * MIB)
        gone = frames(programs[0], tmp_path / "frames").count(0)
        group.limit(None)
        assert {program.text("sum") for program in programs} == {expected}
        assert all(program.ask("merged")[0] == 24 * MIB // PAGE for program in programs)
        if gone < 16:
            pytest.skip(f"the kernel swapped next to nothing out here: {gone} pages")
        for program in programs:
            program.close()
