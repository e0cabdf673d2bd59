"""Memory and CPU read from /proc."""

import mmap
import os
import subprocess
import sys

from udedup import procmem


def test_memory_of_oneself_grows_with_what_is_touched() -> None:
    before = procmem.memory(os.getpid())
    block = mmap.mmap(-1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block[:] = b"x" * len(block)
    after = procmem.memory(os.getpid())
    assert before and after
    assert abs(after.uss - before.uss - (64 << 20)) < 8 << 20
    assert after.uss <= after.pss <= after.rss
    block.close()


def test_gone_process_has_none() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    assert procmem.memory(child.pid) is None
    assert procmem.process_cpu(child.pid) == 0.0
    assert procmem.agent_cpu(child.pid) == 0.0
    assert procmem.pool([child.pid]).pss == 0


def test_store_pages_that_nobody_maps_count_once() -> None:
    code = (
        "import os, mmap, sys\n"
        "fd = os.memfd_create('udedup-segment'); os.write(fd, b'x' * (256 * 4096))\n"
        "m = mmap.mmap(fd, 256 * 4096, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)\n"
        "s = sum(m[i] for i in range(0, 100 * 4096, 4096))\n"  # looks at 100 pages
        "for i in range(0, 10 * 4096, 4096): m[i] = 0\n"  # splits ten of them
        "print('ready', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout and child.stdout.readline() == "ready\n"
        mapped = procmem.store_mapped(child.pid)
        # The kernel maps neighbours of a touched page too, so at least these and at most all.
        assert 90 * 4096 <= mapped <= 256 * 4096
        pool = procmem.pool([child.pid], 256 * 4096)
        # What the pool read of the child itself: its PSS moves with whoever else maps the interpreter.
        assert pool.pss == pool.processes[child.pid].pss + 256 * 4096 - mapped
    finally:
        child.communicate("")


def test_descendants() -> None:
    code = "import subprocess; subprocess.run(['sleep', '30'])"
    child = subprocess.Popen([sys.executable, "-c", code])
    try:
        for _ in range(200):
            found = procmem.descendants(os.getpid())
            if len([pid for pid in procmem.descendants(child.pid)]) == 2:
                break
        assert os.getpid() in found and child.pid in found
        assert len(procmem.descendants(child.pid)) == 2
    finally:
        for pid in procmem.descendants(child.pid):
            os.kill(pid, 9)
        child.wait()
