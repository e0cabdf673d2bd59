"""What stands in the way of preloading into a program: a look at its file, without running it."""

import os
import shutil
import stat
import struct
import sys
from pathlib import Path

_PT_INTERP = 3
_HEAD = 4096
_ELF_HEADER = 64


def find(command: str) -> Path | None:
    """Where the shell would find `command`; None if nowhere. It may still not be executable."""
    if "/" in command:
        path = Path(command)
        return path if path.exists() else None
    found = shutil.which(command)
    if found:
        return Path(found)
    for folder in os.get_exec_path():
        candidate = os.path.join(folder or ".", command)
        if os.path.isfile(candidate):  # False, too, in a folder this user may not enter
            return Path(candidate)
    return None


def why_not_preloadable(path: Path, depth: int = 0) -> str | None:
    """In words why LD_PRELOAD cannot work in the program at `path`; None if it can, or if nobody can tell."""
    try:
        mode = path.stat().st_mode
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return None
    if head.startswith(b"#!") and depth < 4:
        return _of_interpreter(head, depth)
    if not head.startswith(b"\x7fELF") or len(head) < _ELF_HEADER:
        return None
    if mode & (stat.S_ISUID | stat.S_ISGID) and os.geteuid() != path.stat().st_uid:
        return "it is setuid or setgid, and the loader ignores LD_PRELOAD there"
    if _has_capabilities(path) and os.geteuid() != 0:
        return "it has file capabilities, and the loader ignores LD_PRELOAD there"
    return _why_elf(head, path)


def _of_interpreter(head: bytes, depth: int) -> str | None:
    words = head[2:].split(b"\n", 1)[0].split()
    if not words:
        return None
    interpreter = Path(os.fsdecode(words[0]))
    if interpreter.name == "env" and len(words) > 1:
        found = find(os.fsdecode(words[1]))
        return why_not_preloadable(found, depth + 1) if found else None
    return why_not_preloadable(interpreter, depth + 1)


def _has_capabilities(path: Path) -> bool:
    try:
        return bool(os.getxattr(path, "security.capability"))
    except OSError:
        return False


def _why_elf(head: bytes, path: Path) -> str | None:
    bits = 64 if head[4] == 2 else 32
    if bits != 64 or head[:20][18:20] != _own_machine():
        return f"it is a {bits}-bit program of another kind than this Python"
    interpreter = _interpreter(head, path)
    if interpreter is None:
        return "it is statically linked"
    if b"musl" in interpreter:
        return "it is linked against musl, libudedup.so against glibc"
    return None


def _own_machine() -> bytes:
    with Path(sys.executable).open("rb") as file:
        return file.read(20)[18:20]


def _interpreter(head: bytes, path: Path) -> bytes | None:
    """The PT_INTERP string of a 64-bit ELF file, None if it has none. b"" if the file is odd."""
    try:
        (phoff,) = struct.unpack_from("<Q", head, 32)
        size, count = struct.unpack_from("<HH", head, 54)
        with path.open("rb") as file:
            file.seek(phoff)
            table = file.read(size * count)
            for at in range(0, size * count, size):
                (kind,) = struct.unpack_from("<I", table, at)
                if kind == _PT_INTERP:
                    offset, _, _, length = struct.unpack_from("<QQQQ", table, at + 8)
                    file.seek(offset)
                    return file.read(min(length, 4096)).rstrip(b"\0")
    except (struct.error, OSError):
        return b""
    return None
