"""udedup.Arena with numpy: equal tables in separate processes become one copy, wherever they lie.

python examples/arena_numpy.py
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection

import numpy as np

import udedup

ROWS = 1_000_000


def worker(number: int, channel: Connection) -> None:
    udedup.join()
    arena = udedup.Arena(32 << 20)
    table = np.frombuffer(arena.allocate(ROWS * 8), dtype="f8")
    table[:] = np.random.default_rng(7).random(ROWS)  # the same in every worker
    channel.send("ready")
    channel.recv()
    table[number] = -1.0  # a write splits one page, for this worker alone
    channel.send((round(float(table.sum()), 3), int((table < 0).sum())))
    channel.recv()


def main() -> None:
    context = multiprocessing.get_context("spawn")
    pairs = [context.Pipe() for _ in range(3)]
    workers = [context.Process(target=worker, args=(n, theirs)) for n, (_, theirs) in enumerate(pairs)]
    for process in workers:
        process.start()
    for ours, _ in pairs:
        ours.recv()
    udedup.settle(timeout=30)
    print("pages_sharing", udedup.stats()["pages_sharing"])
    for ours, _ in pairs:
        ours.send("write")
        print("sum and own marks", *ours.recv())
        ours.send("end")
    for process in workers:
        process.join()


if __name__ == "__main__":
    main()
