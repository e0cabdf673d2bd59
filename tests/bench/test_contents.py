"""What is unlike in a pool, by reading it."""

import subprocess
import sys

from udedup.bench.contents import distinct_bytes

MIB = 1 << 20
#: Maps 8 MiB of random bytes for each seed, and waits.
HOLDS = """
import mmap, random, sys
for seed in sys.argv[1:]:
    area = mmap.mmap(-1, 8 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    area[:] = random.Random(int(seed)).randbytes(8 << 20)
    globals()[seed] = area
print("ready", flush=True)
sys.stdin.read()
"""


def unlike(*seeds: tuple[str, ...]) -> int:
    """Bytes distinct in a pool whose processes hold 8 MiB of each of these seeds."""
    pool = [
        subprocess.Popen(
            [sys.executable, "-c", HOLDS, *each], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for each in seeds
    ]
    try:
        assert all(one.stdout and one.stdout.readline() == "ready\n" for one in pool)
        found = distinct_bytes([one.pid for one in pool])
        assert found is not None
        return found
    finally:
        for one in pool:
            one.communicate()


def test_each_content_counts_once_whoever_has_it():
    alike, apart = unlike(("1", "2"), ("1", "2")), unlike(("1", "2"), ("1", "3"))
    assert 7 * MIB < apart - alike < 9 * MIB
    assert alike < unlike(("1", "2"), ("1", "2", "1")) + MIB


def test_a_process_that_is_gone_gives_no_figure():
    one = subprocess.Popen([sys.executable, "-c", ""])
    one.wait()
    assert distinct_bytes([one.pid]) is None
