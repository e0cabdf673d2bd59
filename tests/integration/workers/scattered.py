"""scattered.py PROCESSES PAGES: every second page is one that all have, in an order of each one's own.

Answers ["crowd", N] (makes N mappings of its own; how many were refused), "leave" (unmaps them) and "wrong"
(pages that are not as they were written).
"""

import json
import mmap
import os
import random
import sys

from forked import main

PAGE = mmap.PAGESIZE


def content(number, pages):
    """What the pages hold: bytes of (key, index)."""
    order = list(range(pages // 2))
    random.Random(number).shuffle(order)
    for i in range(pages):
        key = ("common", order[i // 2]) if i % 2 == 0 else (number, i)
        yield random.Random(repr(key)).randbytes(64) * (PAGE // 64)


def crowd(count, made):
    """Mappings that the kernel cannot join: neighbours differ in protection. How many were refused."""
    refused = 0
    for i in range(count):
        try:
            made.append(mmap.mmap(-1, PAGE, mmap.MAP_PRIVATE, mmap.PROT_READ | (i % 2 and mmap.PROT_WRITE)))
        except OSError:
            refused += 1
    return refused


def serve(pages, number, requests, answers):
    data = mmap.mmap(-1, (pages + 1) * PAGE, mmap.MAP_PRIVATE)  # a mapping's last page is never merged
    for i, page in enumerate(content(number, pages)):
        data[i * PAGE : (i + 1) * PAGE] = page
    held: list[mmap.mmap] = []
    print(os.getpid(), file=answers, flush=True)
    for line in requests:
        request = json.loads(line)
        if request == "wrong":
            answer = sum(
                data[i * PAGE : (i + 1) * PAGE] != page for i, page in enumerate(content(number, pages))
            )
        elif request == "leave":
            held.clear()
            answer = 0
        else:
            answer = crowd(request[1], held)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), lambda *ends: serve(int(sys.argv[2]), *ends))
