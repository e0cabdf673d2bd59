"""Trap mode, the program's side: open a range before a system call writes into it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from udedup.core import ffi, lib
from udedup.errors import UdedupError


@contextmanager
def writable(buffer: Any) -> Iterator[Any]:
    """Keeps the memory of a writable buffer open for the kernel's own writes, as long as the block lasts.

    Only mode trap needs it: there a merged page is write-protected, and `read(2)` into it fails with
    EFAULT. In mode stop, and where nothing is merged, it costs about a microsecond. Raises TypeError for a
    read-only object, UdedupError when the memory cannot be made writable.

        with udedup.writable(array):
            file.readinto(array)
    """
    view = ffi.from_buffer(buffer, require_writable=True)
    token = lib.ud_writable_open(view, len(view))
    if token < 0:
        raise UdedupError(f"cannot open {len(view)} bytes for writing (errno {-token}); is it mapped?")
    try:
        yield buffer
    finally:
        lib.ud_writable_close(token)
