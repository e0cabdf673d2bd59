"""Arena: page-aligned memory that is registered for merging from birth."""

import mmap
from typing import Any, Self

from udedup.errors import UdedupError
from udedup.membership import MADV_MERGEABLE, MADV_UNMERGEABLE, advise

_PAGE = mmap.PAGESIZE


class Arena(mmap.mmap):
    """`nbytes` of zeroed private memory, from which page-aligned buffers are cut.

    It has the buffer protocol itself (numpy.frombuffer(arena) sees all of it), or hands out parts::

        arena = udedup.Arena(64 << 20)
        table = numpy.frombuffer(arena.allocate(8_000_000), dtype="f8")

    Equal pages merge with equal pages of the same or other processes wherever they lie. The process
    must take part (`udedup run`, udedup.join()) for that; the memory can be used in any case, and what was
    registered before counts once it joins. Raises ValueError for a size below one byte.
    """

    _next: int

    def __new__(cls, nbytes: int) -> Self:
        if nbytes <= 0:
            raise ValueError(f"an arena needs a positive size, not {nbytes}")
        rounded = -(-nbytes // _PAGE) * _PAGE
        self = super().__new__(cls, -1, rounded, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._next = 0
        try:
            advise(self, MADV_MERGEABLE)
        except BaseException:
            mmap.mmap.close(self)
            raise
        return self

    def __init__(self, nbytes: int) -> None:
        """nbytes: size of the arena, rounded up to whole pages."""

    def allocate(self, nbytes: int) -> memoryview:
        """A writable, zeroed, page-aligned buffer of `nbytes`; it lives as long as the arena.

        Raises MemoryError when the arena is used up, ValueError when it is closed.
        """
        if nbytes <= 0:
            raise ValueError(f"a buffer needs a positive size, not {nbytes}")
        end = self._next + nbytes
        if end > len(self):
            raise MemoryError(
                f"the arena has {self.available} bytes left, {nbytes} are wanted; make a larger one"
            )
        view = memoryview(self)[self._next : end]
        self._next = -(-end // _PAGE) * _PAGE
        return view

    @property
    def available(self) -> int:
        """Bytes that allocate() can still hand out."""
        return max(0, len(self) - self._next)

    def close(self) -> None:
        """Unregisters and gives the memory back. Raises UdedupError while buffers of it are in use."""
        if self.closed:
            return
        advise(self, MADV_UNMERGEABLE)
        try:
            super().close()
        except BufferError:
            advise(self, MADV_MERGEABLE)
            raise UdedupError(
                "buffers of this arena are in use; delete arrays and views made from it first"
            ) from None

    def resize(self, newsize: int) -> None:
        raise UdedupError("an arena cannot change its size; make a new one")

    def __exit__(self, *exc: Any) -> None:
        self.close()
