"""The C planner (csrc/index.h) with Python's types around it. Ids are of the planner."""

import errno
import mmap
import os
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from udedup.core import ffi, lib
from udedup.merger.settings import Settings
from udedup.merger.wire import MSG_MAX

PAGE = mmap.PAGESIZE
#: Bytes of a publication, and of those under way in the domain (their pages exist twice until their owner has
#: merged), at most. Little, so that the next one is made of what merging has just freed: memory that has lain
#: idle is often to be had from the host of a virtual machine first, at a twentieth of the speed.
_SEGMENT, _OUTSTANDING, _OUTSTANDING_LEAST = 8 << 20, 16 << 20, 1 << 20
#: After a rest that much first, for that memory is such; twice as much each time that somebody has merged.
_FIRST = 2 << 20
#: A store of so many bytes has publications twice as large: each is a descriptor.
_LARGE_STORE = 2 << 30


def now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


class Plan(NamedTuple):
    """A message to send: to session `sid`, with the descriptor of segment `gid` (0: none)."""

    sid: int
    gid: int
    data: bytes


class SegmentInfo(NamedTuple):
    npages: int
    used: int
    name: int


def _checked(result: int, what: str) -> int:
    if result < 0:
        raise OSError(-result, f"{what}: {os.strerror(-result)}")
    return result


def as_dict(struct: Any) -> dict[str, int]:
    """A C struct of integers."""
    return {name: int(getattr(struct, name)) for name, _ in ffi.typeof(struct[0]).fields}


class Planner:
    """Sessions, segments and plans of one domain. Methods raise OSError as the C functions fail."""

    def __init__(self) -> None:
        planner = lib.ud_planner_new(PAGE)
        if planner == ffi.NULL:
            raise MemoryError("planner")
        self._p = ffi.gc(planner, lib.ud_planner_free)
        self._out = ffi.new("struct ud_plan_out *")
        self._buffer = bytearray(MSG_MAX)
        self._memory = ffi.from_buffer(self._buffer)
        self._sum = ffi.new("struct ud_plan_counts *")
        self._one = ffi.new("struct ud_plan_counts *")
        self._store = ffi.new("struct ud_plan_store *")
        self._header = ffi.new("struct ud_ledger_header *")
        self._room, self._scale = _OUTSTANDING, 1

    def configure(self, key: tuple[int, int], settings: Settings) -> None:
        conf = ffi.new("struct ud_plan_conf *")
        conf.key = key
        conf.run = settings["run"]
        conf.max_page_sharing = settings["max_page_sharing"]
        conf.min_run = settings["min_run"]
        conf.segment_pages = min(_SEGMENT * self._scale, self._room) // PAGE
        conf.outstanding_pages = self._room // PAGE
        conf.first_pages = _FIRST // PAGE
        conf.short_delay = 500
        conf.answer_timeout = 15000
        conf.dead_percent = 20
        conf.per_node = not settings["merge_across_nodes"]
        lib.ud_planner_configure(self._p, conf)

    def limit(self, nbytes: int) -> bool:
        """At most so many bytes are to be in publications under way. True if configure() is to be called."""
        before = self._room, self._scale
        self._scale = 2 if self._store.slots * PAGE >= _LARGE_STORE else 1
        self._room = max(_OUTSTANDING_LEAST, min(nbytes, _OUTSTANDING * self._scale))
        return before != (self._room, self._scale)

    def queued(self) -> bool:
        """Is anything to be published?"""
        return bool(lib.ud_planner_queued(self._p))

    def attach(self, fd: int) -> int:
        return _checked(lib.ud_planner_session(self._p, fd, now_ms()), "ledger")

    def leave(self, sid: int) -> None:
        lib.ud_planner_leave(self._p, sid, now_ms())

    def header(self, sid: int) -> Any:
        """The ledger's header. The same memory is used by the next call."""
        _checked(lib.ud_planner_header(self._p, sid, self._header), "session")
        return self._header

    def segment(self, fd: int, node: int = 0, answers: tuple[int, int] = (0, 0)) -> tuple[int, int]:
        """Id and name of the segment behind fd, the caller's still; of NUMA node `node` - 1 (0: any).

        answers: session and number of the plan that asked for it. Then its slots are believed to hold what
        the plan named, until verify().
        """
        name = ffi.new("uint64_t *")
        gid = _checked(lib.ud_planner_segment(self._p, fd, node, *answers, name), "segment")
        return gid, int(name[0])

    def find(self, name: int) -> int:
        """Id of the segment of that name, 0 if there is none."""
        return int(lib.ud_planner_find(self._p, name))

    def verify(self, gid: int, fd: int) -> bool:
        """Reads what the slots hold. False if that was done before."""
        return bool(_checked(lib.ud_planner_verify(self._p, gid, fd), "segment"))

    def plan_node(self, sid: int, plan: int) -> int:
        """The NUMA node + 1 that a PUBLISH asked for, 0 for any."""
        return int(lib.ud_planner_plan_node(self._p, sid, plan))

    def drop(self, gid: int) -> bool:
        """False if a plan still needs it."""
        return bool(lib.ud_planner_drop(self._p, gid) != -errno.EBUSY)

    def segment_info(self, gid: int) -> SegmentInfo:
        npages, used, name = ffi.new("uint32_t *"), ffi.new("uint32_t *"), ffi.new("uint64_t *")
        _checked(lib.ud_planner_segment_info(self._p, gid, npages, used, name), "segment")
        return SegmentInfo(npages[0], used[0], name[0])

    def scan(self, sid: int, written: int = 0) -> int:
        """Looks at what is new in a ledger whose program wrote `written` pages since. Pages newly matched."""
        return int(lib.ud_planner_scan(self._p, sid, written, now_ms()))

    def scan_due(self) -> None:
        """Looks again at what was put off and is due now."""
        for _ in range(64):
            sid = lib.ud_planner_due(self._p, now_ms())
            if not sid:
                return
            self.scan(sid)

    def plans(self) -> Iterator[Plan]:
        while lib.ud_planner_next(self._p, now_ms(), self._out, self._memory) == 1:
            yield Plan(self._out.sid, self._out.gid, bytes(self._buffer[: self._out.bytes]))

    def published(self, sid: int, plan: int, gid: int) -> bool:
        return bool(lib.ud_planner_published(self._p, sid, plan, gid, now_ms()) == 0)

    def result(self, sid: int, plan: int, merged: int, refused: int) -> bool:
        return bool(lib.ud_planner_result(self._p, sid, plan, merged, refused, now_ms()) == 0)

    def timer(self) -> float | None:
        """Seconds until scan_due() has work, None if never."""
        left = lib.ud_planner_timer(self._p, now_ms())
        return None if left < 0 else left / 1000

    def quiet(self) -> bool:
        return bool(lib.ud_planner_quiet(self._p))

    def count(self) -> tuple[dict[str, int], dict[str, int]]:
        """Counts all ledgers: the sums over the sessions, and the store."""
        lib.ud_planner_count(self._p, self._sum, self._store)
        return as_dict(self._sum), as_dict(self._store)

    def session_counts(self, sid: int) -> dict[str, int]:
        """By the last count()."""
        _checked(lib.ud_planner_session_counts(self._p, sid, self._one), "session")
        return as_dict(self._one)

    def idle(self) -> list[int]:
        """Segments that nobody mapped at the last count()."""
        gids = ffi.new("uint32_t[256]")
        return [gids[i] for i in range(lib.ud_planner_idle(self._p, now_ms(), gids, 256))]

    def compact(self, nbytes: int) -> int:
        """Tidies the store, using at most nbytes of memory twice meanwhile. Segments to be emptied."""
        return int(lib.ud_planner_compact(self._p, nbytes // PAGE, now_ms()))
