"""cycles.py PROCESSES: each maps regions alike in all, writes into some, unmaps the oldest, again and again.

Answers ["turn", N]: does N cycles, ten milliseconds each; the pages that were not as written.
"""

import json
import mmap
import os
import random
import sys
import time

from forked import main

PAGE, PAGES, ALIVE = mmap.PAGESIZE, 64, 100


def content(cycle):
    return b"".join(random.Random(f"{cycle} {i}").randbytes(64) * (PAGE // 64) for i in range(PAGES))


def cycle_once(cycle, regions, own):
    """A new region; a page of a middle-aged one is written; the oldest is compared and goes."""
    region = mmap.mmap(-1, (PAGES + 1) * PAGE, mmap.MAP_PRIVATE)
    region[: PAGES * PAGE] = content(cycle)
    regions.append((cycle, region, set()))
    wrong = 0
    if len(regions) > ALIVE // 4:
        _, region, written = regions[-ALIVE // 4]
        at = (cycle * 7) % PAGES
        region[at * PAGE : at * PAGE + 8] = own
        written.add(at)
    if len(regions) > ALIVE:
        number, region, written = regions.pop(0)
        wanted = bytearray(content(number))
        for at in written:
            wanted[at * PAGE : at * PAGE + 8] = own
        wrong = sum(
            region[at * PAGE : (at + 1) * PAGE] != wanted[at * PAGE : (at + 1) * PAGE] for at in range(PAGES)
        )
        region.close()
    return wrong


def serve(number, requests, answers):
    regions, cycle = [], 0
    own = f"own {number:4}".encode()
    print(os.getpid(), file=answers, flush=True)
    for line in requests:
        wrong = 0
        for _ in range(json.loads(line)[1]):
            began = time.monotonic()
            wrong += cycle_once(cycle, regions, own)
            cycle += 1
            time.sleep(max(0.0, began + 0.01 - time.monotonic()))
        print(json.dumps(wrong), file=answers, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), serve)
