"""Symbols and code bytes of a library inside another process, read from its memory.

From memory and not from the file: the file may have been replaced by an upgrade, or lie in another mount.
"""

import os
import struct
from dataclasses import dataclass

from udedup.watch.memory import Mapping

_PT_DYNAMIC = 2
_DT_STRTAB, _DT_SYMTAB, _DT_GNU_HASH = 5, 6, 0x6FFFFEF5
_SYMBOL = struct.Struct("<IBBHQQ")


class Memory:
    """Reads and writes another process by /proc/PID/mem. Raises OSError. Close it."""

    def __init__(self, pid: int) -> None:
        self._fd = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)

    def read(self, address: int, length: int) -> bytes:
        data = os.pread(self._fd, length, address)
        if len(data) != length:
            raise OSError(14, "memory is gone")
        return data

    def write(self, address: int, data: bytes) -> None:
        if os.pwrite(self._fd, data, address) != len(data):
            raise OSError(14, "memory is gone")

    def words(self, address: int, count: int) -> tuple[int, ...]:
        return struct.unpack(f"<{count}Q", self.read(address, 8 * count))

    def int32(self, address: int) -> int:
        return int(struct.unpack("<i", self.read(address, 4))[0])

    def text(self, address: int, limit: int = 512) -> str:
        data = b""
        while b"\0" not in data and len(data) < limit:
            step = min(64, 4096 - (address + len(data)) % 4096)
            data += self.read(address + len(data), step)
        return data.split(b"\0", 1)[0].decode(errors="replace")

    def close(self) -> None:
        os.close(self._fd)


@dataclass(frozen=True)
class Symbol:
    address: int
    size: int


class Image:
    """One loaded library: its mappings, lowest first, and its dynamic symbols."""

    def __init__(self, memory: Memory, mappings: list[Mapping]) -> None:
        self.memory = memory
        self.mappings = mappings
        self.base = mappings[0].start
        tags = self._dynamic()
        self._strings = self._pointer(tags[_DT_STRTAB])
        self._symbols = self._pointer(tags[_DT_SYMTAB])
        self._hash = self._pointer(tags[_DT_GNU_HASH])

    def _pointer(self, value: int) -> int:
        # glibc relocates these in place, musl and others do not.
        return value if value >= self.base else value + self.base

    def _dynamic(self) -> dict[int, int]:
        header = self.memory.read(self.base, 64)
        if header[:5] != b"\x7fELF\x02":
            raise ValueError("no 64-bit ELF image")
        (phoff,) = struct.unpack_from("<Q", header, 32)
        size, count = struct.unpack_from("<HH", header, 54)
        table = self.memory.read(self.base + phoff, size * count)
        for at in range(0, size * count, size):
            kind, _, _, vaddr, _, _, memsz, _ = struct.unpack_from("<IIQQQQQQ", table, at)
            if kind == _PT_DYNAMIC:
                words = self.memory.words(self.base + vaddr, memsz // 8)
                return dict(zip(words[::2], words[1::2], strict=False))
        raise ValueError("no dynamic section")

    def find(self, name: str) -> Symbol | None:
        """A defined dynamic symbol by name, through the GNU hash table."""
        buckets, offset, bloom, _ = struct.unpack("<4I", self.memory.read(self._hash, 16))
        value = 5381
        for byte in name.encode():
            value = (value * 33 + byte) & 0xFFFFFFFF
        table = self._hash + 16 + 8 * bloom
        index = self.memory.int32(table + 4 * (value % buckets))
        while index >= offset:
            entry = self.memory.int32(table + 4 * buckets + 4 * (index - offset)) & 0xFFFFFFFF
            if (entry | 1) == (value | 1):
                found = self._symbol(index, name)
                if found:
                    return found
            if entry & 1:
                break
            index += 1
        return None

    def _symbol(self, index: int, name: str) -> Symbol | None:
        data = self.memory.read(self._symbols + index * _SYMBOL.size, _SYMBOL.size)
        at, _, _, section, value, size = _SYMBOL.unpack(data)
        if section == 0 or self.memory.text(self._strings + at) != name:
            return None
        return Symbol(self.base + value, size)

    def find_code(self, pattern: bytes) -> int | None:
        """Address of the first occurrence of these bytes in executable memory."""
        for mapping in self.mappings:
            if "x" in mapping.perms:
                at = self.memory.read(mapping.start, mapping.size).find(pattern)
                if at >= 0:
                    return mapping.start + at
        return None

    def writable(self) -> list[Mapping]:
        """Its data: what lies in the file, and the zero-filled piece after it."""
        return [mapping for mapping in self.mappings if "w" in mapping.perms]


def _is_bss(mapping: Mapping, below: Mapping) -> bool:
    return not mapping.name and "w" in mapping.perms and below.end == mapping.start


def images(maps: list[Mapping]) -> dict[str, list[Mapping]]:
    """Mappings grouped by file, each with the nameless one that follows its data (.bss)."""
    found: dict[str, list[Mapping]] = {}
    last: Mapping | None = None
    for mapping in maps:
        if mapping.name.startswith("/"):
            found.setdefault(mapping.name, []).append(mapping)
        elif last and last.name.startswith("/") and _is_bss(mapping, last):
            found[last.name].append(mapping)
        last = mapping
    return found
