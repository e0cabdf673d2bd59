"""Reads the split reports of trap mode: which thread, symbol and Python line writes to merged pages.

The files are written by csrc/splits.c, one a process, in the domain's directory; csrc/splits.h has their
shape. A report outlives its process, until `udedup split-report --clear` or a new process makes room.
"""

import mmap
import struct
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from udedup.domain import Domain, how_to_start
from udedup.elf import symbol_at
from udedup.errors import UdedupError

_HEADER = struct.Struct("<Q4I2Q16s72x")
_SITE = struct.Struct("<2I5Q16s2I120s")
_FRAME = struct.Struct("<i44s96s")
_MAGIC = 0x3174696C70736475
_READY = 2


@dataclass(frozen=True)
class Frame:
    """One Python frame: file, line, function."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.function}"


@dataclass(frozen=True)
class Site:
    """A place that split pages `count` times: thread name, instruction, Python frames (innermost first)."""

    pid: int
    comm: str
    thread: str
    count: int
    ip: int
    module: str
    offset: int
    frames: tuple[Frame, ...]

    @property
    def symbol(self) -> str:
        """The function that wrote, as `name (module)`, or `module+offset` where the file does not name it."""
        if not self.module:
            return hex(self.ip)
        file = Path(self.module).name
        name = symbol_at(Path(self.module), self.offset)
        return f"{name} ({file})" if name else f"{file}+{self.offset:#x}"

    @property
    def line(self) -> str:
        """The Python line, or the symbol where no Python frame was found."""
        return str(self.frames[0]) if self.frames else self.symbol


@dataclass(frozen=True)
class Report:
    """One process: splits seen, splits without a place in the table, and the places."""

    pid: int
    comm: str
    total: int
    lost: int
    sites: tuple[Site, ...]


def directory(domain: Domain) -> Path:
    """Where the reports of a domain lie."""
    return domain.directory / f"{domain.name}.splits"


def read(path: Path) -> Report:
    """Reads one report. Raises UdedupError if it is none."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            return _parse(path, data[:])
    except (OSError, ValueError) as error:
        raise UdedupError(f"cannot read {path}: {error}; is it a split report?") from None


def read_all(domain: Domain, pid: int | None = None) -> list[Report]:
    """All reports of a domain, or that of one process. Raises UdedupError when there is none."""
    where = directory(domain)
    paths = [where / str(pid)] if pid else sorted(where.glob("[0-9]*"))
    reports = [read(path) for path in paths if path.exists()]
    if not reports:
        who = f"pid {pid} in domain" if pid else "domain"
        start = how_to_start(domain, " --mode trap --split trap --regions advised")
        raise UdedupError(
            f"no split report of {who} {domain.name!r}: nobody took part there with the split trap; {start}"
        )
    return reports


def clear(domain: Domain) -> int:
    """Removes the reports of processes that have ended. Returns how many."""
    dead = [path for path in directory(domain).glob("[0-9]*") if not Path(f"/proc/{path.name}").exists()]
    for path in dead:
        path.unlink(missing_ok=True)
    return len(dead)


def tally(reports: Iterable[Report], by: str) -> list[tuple[str, int]]:
    """Splits by "line", "symbol" or "thread", most frequent first."""
    counts: Counter[str] = Counter()
    for report in reports:
        for site in report.sites:
            counts[str(getattr(site, by))] += site.count
        if report.lost:
            counts["(table full)"] += report.lost
    return counts.most_common()


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "replace")


def _parse(path: Path, data: bytes) -> Report:
    magic, pid, nsites, site_bytes, nframes, total, lost, comm = _HEADER.unpack_from(data)
    size = _HEADER.size + nsites * site_bytes
    if magic != _MAGIC or len(data) < size or site_bytes < _SITE.size + nframes * _FRAME.size:
        raise UdedupError(f"{path} is no split report of this version; remove it")
    maps = _executable_maps(pid)
    offsets = range(_HEADER.size, size, site_bytes)
    sites = [site for at in offsets if (site := _site(data, at, nframes, pid, _text(comm), maps))]
    return Report(pid, _text(comm), total, lost, tuple(sites))


Mapping = tuple[int, int, int, str]


def _site(data: bytes, at: int, nframes: int, pid: int, comm: str, maps: list[Mapping]) -> Site | None:
    state, used, _hash, count, ip, _addr, offset, thread, named, _, module = _SITE.unpack_from(data, at)
    if state != _READY:
        return None
    where, offset = (_text(module), offset) if named else _find(maps, ip)
    start = at + _SITE.size
    frames = (_FRAME.unpack_from(data, start + i * _FRAME.size) for i in range(min(used, nframes)))
    python = tuple(Frame(_text(file), line, _text(function)) for line, function, file in frames)
    return Site(pid, comm, _text(thread), count, ip, where, offset, python)


def _find(maps: list[Mapping], ip: int) -> tuple[str, int]:
    for start, end, offset, path in maps:
        if start <= ip < end:
            return path, ip - start + offset
    return "", 0


def _executable_maps(pid: int) -> list[Mapping]:
    """(start, end, file offset, path) of a live process: for places its agent has not named yet."""
    try:
        text = Path(f"/proc/{pid}/maps").read_text(errors="replace")
    except OSError:
        return []
    return list(_mappings(text))


def _mappings(text: str) -> Iterator[Mapping]:
    for line in text.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and fields[1][2] == "x":
            start, end = (int(part, 16) for part in fields[0].split("-"))
            yield start, end, int(fields[2], 16), fields[5]
