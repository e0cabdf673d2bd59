"""Memory of known content: unique, repeated and zero pages, MIB in all. `mergeable` on stdin asks kernel KSM
in.
"""

import ctypes
import mmap
import os
import random
import signal
import sys

PAGE = mmap.PAGESIZE


def fill(memory: mmap.mmap, npages: int) -> None:
    """Half unique, a quarter repeats earlier pages, an eighth is one page, an eighth is zeros."""
    half, quarter = npages // 2, npages // 4
    step = 1024
    for at in range(0, half, step):
        memory[at * PAGE : (at + step) * PAGE] = random.randbytes(step * PAGE)
    memory[half * PAGE : (half + quarter) * PAGE] = memory[: quarter * PAGE]
    one = random.randbytes(PAGE)
    for page in range(half + quarter, npages):
        zeros = page >= npages - npages // 8
        memory[page * PAGE : (page + 1) * PAGE] = bytes(PAGE) if zeros else one


def main() -> None:
    npages = int(sys.argv[1]) * 256
    memory = mmap.mmap(-1, npages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    fill(memory, npages)
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "mergeable":
            done = ctypes.CDLL(None).prctl(67, 1, 0, 0, 0)  # PR_SET_MEMORY_MERGE
            print("ready" if done == 0 else "refused", flush=True)
        if line.strip() == "fork" and os.fork() == 0:
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            print("ready", flush=True)
            signal.pause()


main()
