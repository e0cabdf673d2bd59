"""Shared by the workloads of plain arrays: makes them, knows where they are, digests them."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from typing import Any

from udedup.bench.workloads.base import MIB, Worker, digest

CHUNK = 32 * MIB
PAGE = 4096


class ArrayWorker(Worker):
    """Holds `self.arrays`, uint64 arrays of spec.size bytes in all."""

    arrays: list[Any]

    def chunk_sizes(self) -> list[int]:
        """Bytes of each array; pages are never divided."""
        left, out = self.spec.size // PAGE * PAGE, []
        while left > 0:
            out.append(min(CHUNK, left))
            left -= out[-1]
        return out

    def empty(self, nbytes: int) -> Any:
        """A page-aligned array: numpy's own start 16 bytes into a page, so that its pages are no pages."""
        import numpy as np

        raw: Any = np.empty(nbytes + PAGE, dtype=np.uint8)
        skip = -raw.ctypes.data % PAGE
        return raw[skip : skip + nbytes].view(np.uint64)

    def random(self, key: int, aligned: bool = True) -> list[Any]:
        """Random arrays that depend on spec.seed and the key alone."""
        import numpy as np

        new = self.empty if aligned else lambda nbytes: np.empty(nbytes // 8, dtype=np.uint64)
        return [self._fill(new(nbytes), key, number) for number, nbytes in enumerate(self.chunk_sizes())]

    def passing(self, key: int) -> Iterator[Any]:
        """The same arrays one after the other, each in a mapping of its own: malloc, which may keep what is
        freed, never sees them, and the pool is as large as its data under every engine."""
        import numpy as np

        for number, nbytes in enumerate(self.chunk_sizes()):
            yield self._fill(np.frombuffer(mmap.mmap(-1, nbytes), dtype=np.uint64), key, number)

    def _fill(self, array: Any, key: int, number: int) -> Any:
        import numpy as np

        np.random.default_rng([self.spec.seed, key, number]).random(out=array.view(np.float64))
        return array

    def pieces(self) -> list[Any]:
        """The data in views of 1 MiB."""
        words = MIB // 8
        return [array[at : at + words] for array in self.arrays for at in range(0, len(array), words)]

    def buffers(self) -> list[tuple[int, int]]:
        return [(array.ctypes.data, array.nbytes) for array in self.arrays]

    def check(self) -> str:
        return digest(*self.arrays)
