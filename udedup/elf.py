"""Names of functions in ELF files: as much as a report of addresses needs."""

import bisect
import functools
import struct
from pathlib import Path

_PT_LOAD, _SHT_SYMTAB, _SHT_DYNSYM, _STT_FUNC, _STT_IFUNC = 1, 2, 11, 2, 10
_PROGRAM = struct.Struct("<2I6Q")
_SECTION = struct.Struct("<2I4Q2I2Q")
_SYMBOL = struct.Struct("<I2BH2Q")

Functions = tuple[list[tuple[int, int, str]], list[tuple[int, int, int]]]


def symbol_at(path: Path, offset: int) -> str | None:
    """Name of the function at a file offset of a 64-bit ELF file; None if unknown or unreadable."""
    try:
        functions, segments = _read(path)
    except (OSError, struct.error, ValueError, IndexError):
        return None
    for file_offset, size, vaddr in segments:
        if file_offset <= offset < file_offset + size:
            return _lookup(functions, offset - file_offset + vaddr)
    return None


def _lookup(functions: list[tuple[int, int, str]], address: int) -> str | None:
    i = bisect.bisect_right(functions, (address, 1 << 64, "")) - 1
    if i < 0:
        return None
    start, size, name = functions[i]
    return name if address < start + max(size, 1) else None


@functools.lru_cache(maxsize=64)
def _read(path: Path) -> Functions:
    data = path.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError(f"{path} is no 64-bit little-endian ELF file")
    phoff, shoff = struct.unpack_from("<2Q", data, 32)
    phsize, phnum, shsize, shnum = struct.unpack_from("<4H", data, 54)
    segments = []
    for i in range(phnum):
        kind, _flags, offset, vaddr, _paddr, size, *_ = _PROGRAM.unpack_from(data, phoff + i * phsize)
        if kind == _PT_LOAD:
            segments.append((offset, size, vaddr))
    sections = [_SECTION.unpack_from(data, shoff + i * shsize) for i in range(shnum)]
    functions = set()
    for _name, kind, _flags, _addr, offset, size, link, *_ in sections:
        if kind in (_SHT_SYMTAB, _SHT_DYNSYM):
            functions.update(_functions(data, offset, size, sections[link][4]))
    return sorted(functions), segments


def _functions(data: bytes, offset: int, size: int, strings: int) -> list[tuple[int, int, str]]:
    found = []
    for at in range(offset, offset + size, _SYMBOL.size):
        name, info, _other, _section, value, length = _SYMBOL.unpack_from(data, at)
        if info & 15 in (_STT_FUNC, _STT_IFUNC) and value:
            end = data.index(b"\0", strings + name)
            found.append((value, length, data[strings + name : end].decode("utf-8", "replace")))
    return found
