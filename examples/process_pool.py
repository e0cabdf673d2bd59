"""A multiprocessing pool that joins by its initializer; works without `udedup run`, better with it.

python examples/process_pool.py            the workers join by udedup.join()
udedup run -- python examples/process_pool.py   and share one layout, so that their heaps merge too
"""

from __future__ import annotations

import multiprocessing
import random
from multiprocessing.synchronize import Barrier

import udedup


def build() -> list[bytes]:
    """What every worker has in memory: the same blocks, made by each for itself."""
    source = random.Random(1)
    return [source.randbytes(1 << 20) for _ in range(16)]


def start(all_here: Barrier) -> None:
    """What each worker does first. Who is early waits, or it would do the work of those who come late."""
    global blocks
    udedup.join()
    blocks = build()
    all_here.wait()


def work(number: int) -> int:
    return sum(blocks[number % len(blocks)][:1000])


def main() -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(4, initializer=start, initargs=(context.Barrier(4),)) as pool:
        results = pool.map(work, range(64))
        udedup.settle(timeout=20)
        print("sum", sum(results))
        print("pages_sharing", udedup.stats()["pages_sharing"])


if __name__ == "__main__":
    main()
