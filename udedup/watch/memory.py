"""The mappings of another process and which of their pages are there: /proc/PID/smaps and pagemap.

Same rules as the agent's (csrc/vma.c, csrc/locked.c): private read-write memory, of files the pages written
to, no stacks, nothing locked, special, or kept from children.
"""

import array
import ctypes
import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")
_REFUSED_FLAGS = {"lo", "dc", "wf", "dd", "io", "pf", "ht", "dw", "ss"}


@dataclass
class Mapping:
    """One line of maps. Sizes in bytes."""

    start: int
    end: int
    perms: str
    offset: int
    inode: int
    name: str
    flags: set[str] = field(default_factory=set)
    rss: int = 0
    huge: int = 0

    @property
    def size(self) -> int:
        return self.end - self.start

    @property
    def anonymous(self) -> bool:
        return self.inode == 0 and not self.name.startswith(("/", "[v", "[stack", "[uprobes"))

    @property
    def library(self) -> bool:
        """Private data of a program or library: pages written to are its own, the others the file's."""
        return self.name.startswith("/") and not self.name.startswith(("/memfd:", "/dev/", "/SYSV"))

    @property
    def segment(self) -> bool:
        """A piece of the store, mapped by merging."""
        return self.name.startswith("/memfd:udedup-segment")


def read_maps(pid: int) -> list[Mapping]:
    """Mappings by /proc/PID/maps: addresses and names, without flags and sizes. Raises OSError."""
    with Path(f"/proc/{pid}/maps").open(errors="replace") as file:
        return [_header(line) for line in file]


def read_smaps(pid: int) -> list[Mapping]:
    """Mappings with VmFlags, Rss and AnonHugePages. Walks page tables: about 10 ms a GiB. Raises OSError."""
    maps: list[Mapping] = []
    with Path(f"/proc/{pid}/smaps").open(errors="replace") as file:
        for line in file:
            if line.startswith("Rss:"):
                maps[-1].rss = int(line.split()[1]) * 1024
            elif line.startswith("AnonHugePages:"):
                maps[-1].huge = int(line.split()[1]) * 1024
            elif line.startswith("VmFlags:"):
                maps[-1].flags = set(line.split()[1:])
            elif not line[0].isupper():
                maps.append(_header(line))
    return maps


def _header(line: str) -> Mapping:
    fields = line.rstrip("\n").split(maxsplit=5)
    start, _, end = fields[0].partition("-")
    name = fields[5] if len(fields) > 5 else ""
    return Mapping(int(start, 16), int(end, 16), fields[1], int(fields[2], 16), int(fields[4]), name)


def stack_pointers(pid: int) -> tuple[list[int], bool]:
    """Stack pointers of sleeping threads, and True if some thread runs and so tells none. Raises OSError."""
    pointers, running = [], False
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            words = (task / "syscall").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if len(words) >= 2:
            pointers.append(int(words[-2], 16))
        else:
            running = True
    return pointers, running


def why_refused(mapping: Mapping, pointers: list[int], below: Mapping | None) -> str | None:
    """None if the pages of the mapping may be merged, else "foreign", "stack" or "locked".

    below: the mapping just under it, when the stack of a running thread has to be told by its guard page.
    """
    if not (mapping.anonymous or mapping.library) or mapping.perms != "rw-p":
        return "foreign"
    if mapping.flags & _REFUSED_FLAGS:
        return "locked"
    if any(mapping.start <= pointer < mapping.end for pointer in pointers):
        return "stack"
    if below is not None and below.end == mapping.start and below.perms == "---p" and below.size <= 16 * PAGE:
        return "stack"
    return None


def eligible(pid: int) -> tuple[list[Mapping], dict[str, int]]:
    """Mappings whose pages may be merged, and the resident bytes of the anonymous others by cause."""
    maps = read_smaps(pid)
    pointers, running = stack_pointers(pid)
    good: list[Mapping] = []
    refused: dict[str, int] = {}
    below: Mapping | None = None
    for mapping in maps:
        why = why_refused(mapping, pointers, below if running else None)
        if why is None:
            good.append(mapping)
        elif why != "foreign":
            refused[why] = refused.get(why, 0) + mapping.rss
        below = mapping
    return good, refused


class _ScanArg(ctypes.Structure):  # struct pm_scan_arg
    _fields_ = tuple(
        (name, ctypes.c_uint64)
        for name in (
            "size",
            "flags",
            "start",
            "end",
            "walk_end",
            "vec",
            "vec_len",
            "max_pages",
            "category_inverted",
            "category_mask",
            "category_anyof_mask",
            "return_mask",
        )
    )


_PAGEMAP_SCAN = 0xC0606610  # _IOWR('f', 16, struct pm_scan_arg)
_FILE, _PRESENT, _PFNZERO = 4, 8, 32
_REGIONS = 1024


def present_ranges(pagemap: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Ranges [a, b) within [start, end) with present anonymous pages; everything on kernels before 6.7."""
    regions = array.array("Q", bytes(24 * _REGIONS))
    arg = _ScanArg(
        size=ctypes.sizeof(_ScanArg),
        start=start,
        end=end,
        vec=regions.buffer_info()[0],
        vec_len=_REGIONS,
        category_inverted=_FILE | _PFNZERO,
        category_mask=_FILE | _PRESENT | _PFNZERO,
        return_mask=_PRESENT,
    )
    while arg.start < end:
        try:
            count = fcntl.ioctl(pagemap, _PAGEMAP_SCAN, arg)
        except OSError as error:
            if isinstance(error, ProcessLookupError):
                raise
            yield arg.start, end
            return
        for at in range(0, 3 * count, 3):
            yield regions[at], regions[at + 1]
        if count < _REGIONS:
            return
        arg.start = arg.walk_end
