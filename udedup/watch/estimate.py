"""What merging would save in processes that do not take part. Read-only: nobody is stopped or traced.

Digests nominate here and nothing is compared, so figures are estimates; pages that change while we look are
told by a sample that is read twice.
"""

import mmap
import operator
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from udedup.core import ffi, lib
from udedup.errors import UdedupError
from udedup.watch.memory import PAGE, eligible, present_ranges
from udedup.watch.target import Target, guarded

_STEP = 64 << 20  # bytes between two reports of progress
_SCRATCH = 256  # pages
_SAMPLE = 2048  # pages read twice

#: Called with bytes done and bytes in all.
Progress = Callable[[int, int], None]


@dataclass
class Saving:
    """Equal pages among a set of pages, by KSM's names. Pages unless the name says bytes."""

    pages_shared: int
    pages_sharing: int
    pages_unshared: int
    zero_pages: int

    @property
    def saved_pages(self) -> int:
        return self.pages_sharing + self.zero_pages

    def as_dict(self) -> dict[str, int]:
        """Stable keys of --json."""
        return {
            "pages_shared": self.pages_shared,
            "pages_sharing": self.pages_sharing,
            "pages_unshared": self.pages_unshared,
            "zero_pages": self.zero_pages,
            "saved_bytes": self.saved_pages * PAGE,
        }


@dataclass
class Scan:
    """What was read of one process. Pages unless the name says bytes."""

    target: Target
    present: int = 0
    relatives: int = 0
    swapped: int = 0
    gone: int = 0
    huge_bytes: int = 0
    refused_bytes: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    volatile_share: float = 0.0
    within: Saving | None = None
    domain: str | None = None  # it takes part there: what is merged already is not read


@dataclass
class Estimate:
    """Each process by itself, and all of them together."""

    scans: list[Scan]
    together: Saving
    cpu_s: float


class _Sample:
    """A few pages read before and after the scan."""

    def __init__(self, scan: Scan, pagemap: int, ranges: list[tuple[int, int]], reader: "_Reader") -> None:
        total = sum(end - start for start, end in ranges) // PAGE
        picks = sorted(random.sample(range(total), min(total, _SAMPLE)))
        self._addresses: list[int] = []
        passed, picked = 0, iter(picks)
        pick = next(picked, None)
        for start, end in ranges:
            while pick is not None and start + (pick - passed) * PAGE < end:
                self._addresses.append(start + (pick - passed) * PAGE)
                pick = next(picked, None)
            passed += (end - start) // PAGE
        self._read = lambda: [reader.one(scan, pagemap, address) for address in self._addresses]
        self._before = self._read()

    def changed(self) -> float:
        """Share of the pages that changed since the sample was taken, 0 to 1."""
        after = self._read()
        return sum(map(operator.ne, self._before, after)) / len(after) if after else 0.0


class _Reader:
    def __init__(self) -> None:
        self.key = ffi.new("uint64_t[2]", [int.from_bytes(os.urandom(8), "little") for _ in range(2)])
        self.scratch = mmap.mmap(-1, _SCRATCH * PAGE)
        self.scratch_c = ffi.from_buffer(self.scratch)
        self.single = ffi.new("uint64_t[1]")

    def read(self, scan: Scan, pagemap: int, start: int, npages: int, out: object) -> int:
        """Digests written to out. Raises OSError."""
        seen = ffi.new("struct ud_estimate_seen *")
        pid = scan.target.pid
        count = lib.ud_estimate_read(
            pid, pagemap, start, npages, PAGE, self.key, self.scratch_c, _SCRATCH, out, seen
        )
        if count < 0:
            raise OSError(-count, os.strerror(-count))
        scan.present += seen.present
        scan.relatives += seen.relatives
        scan.swapped += seen.swapped
        scan.gone += seen.gone
        return int(count)

    def one(self, scan: Scan, pagemap: int, address: int) -> int:
        """The digest of one page, 0 if it is gone."""
        quiet = Scan(scan.target)
        return int(self.single[0]) if self.read(quiet, pagemap, address, 1, self.single) else 0


class _Digests:
    """Eight bytes a page, in one piece of memory that grows only as it is written."""

    def __init__(self, capacity: int) -> None:
        self.memory = mmap.mmap(-1, max(8 * capacity, PAGE))
        self.array = ffi.cast("uint64_t *", ffi.from_buffer(self.memory))
        self.count = 0

    def sort_and_count(self, part: slice) -> Saving:
        base, n = self.array + part.start, part.stop - part.start
        lib.ud_estimate_sort(base, n)
        found = ffi.new("struct ud_estimate *")
        lib.ud_estimate_count(base, n, found)
        return Saving(found.shared, found.sharing, found.unique, found.zero)


def estimate(targets: list[Target], progress: Progress = lambda done, total: None) -> Estimate:
    """Reads the memory of all targets once and counts equal pages. Raises UdedupError."""
    if not targets:
        raise UdedupError("no process given; name a pid")
    began = time.process_time()
    plans = [_plan(target) for target in targets]
    total = sum(plan.nbytes for plan in plans)
    reader = _Reader()
    digests = _Digests(total // PAGE)
    done = 0
    for plan in plans:
        started = time.monotonic()
        with guarded(plan.scan.target.pid), plan:
            done = _scan_one(plan, reader, digests, done, total, progress)
        plan.scan.seconds = time.monotonic() - started
    scans = [plan.scan for plan in plans]
    together = scans[0].within if len(scans) == 1 else None
    together = together or digests.sort_and_count(slice(0, digests.count))
    return Estimate(scans, together, time.process_time() - began)


class _Plan:
    def __init__(self, scan: Scan, ranges: list[tuple[int, int]], pagemap: int) -> None:
        self.scan, self.ranges, self.pagemap = scan, ranges, pagemap
        self.nbytes = sum(end - start for start, end in ranges)

    def __enter__(self) -> "_Plan":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.pagemap)


def _plan(target: Target) -> _Plan:
    scan = Scan(target)
    with guarded(target.pid):
        mappings, scan.refused_bytes = eligible(target.pid)
        pagemap = os.open(f"/proc/{target.pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        scan.huge_bytes = sum(mapping.huge for mapping in mappings)
        # The last page of a mapping is never merged: a growing mremap must not cross into the segment.
        ranges = [
            part
            for mapping in mappings
            for part in present_ranges(pagemap, mapping.start, mapping.end - PAGE)
        ]
    return _Plan(scan, ranges, pagemap)


def _scan_one(
    plan: _Plan, reader: _Reader, digests: _Digests, done: int, total: int, progress: Progress
) -> int:
    first = digests.count
    sample = _Sample(plan.scan, plan.pagemap, plan.ranges, reader)
    for start, end in plan.ranges:
        for at in range(start, end, _STEP):
            npages = (min(at + _STEP, end) - at) // PAGE
            out = digests.array + digests.count
            digests.count += reader.read(plan.scan, plan.pagemap, at, npages, out)
            done += npages * PAGE
            progress(done, total)
    if not plan.scan.target.alive():
        raise ProcessLookupError
    part = slice(first, digests.count)
    plan.scan.within = digests.sort_and_count(part)
    plan.scan.volatile_share = sample.changed()
    return done
