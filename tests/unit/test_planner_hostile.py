"""Ledgers that lie: whatever stands in one, the planner stays inside its bounds and serves the others."""

import errno
import random

import pytest
from fake_agent import BLOCK, PAGE, Bench, FakeProcess, header_of, page, runs, sealed

from udedup.core import lib
from udedup.merger import wire

HERE = 0x7F0000000000
WORDS = (0, 1, 2**63, 2**64 - 1, HERE, HERE + 1, PAGE, 2**57, (5 << 24) | 0xFFFFFF)


def scribble(process: FakeProcess, rng: random.Random) -> None:
    """Random addresses, states, entries, generations and counts, now and then honest ones."""
    pages = 16 * BLOCK
    for block in range(16):
        process._heads[block].vaddr = rng.choice((*WORDS, HERE + block * BLOCK * PAGE))
        process._heads[block].gen = rng.getrandbits(32)
    for _ in range(400):
        at = rng.randrange(pages)
        process._states[at] = rng.choice((2, 2, 2, 3, rng.randrange(256)))
        process._entries[at] = rng.choice((*WORDS, rng.getrandbits(64), rng.randrange(4)))
    process.header.gen = rng.getrandbits(32)
    process.header.block_count = rng.choice((16, 0, 1024, 2**32 - 1))
    process.header.vmas_budget = rng.choice((0, 1, 2**32 - 1))
    process.header.vmas_used = rng.getrandbits(32)


@pytest.mark.parametrize("seed", range(6))
def test_scribbled_ledgers(bench: Bench, seed: int) -> None:
    rng = random.Random(seed)
    liars = [bench.join()[0] for _ in range(3)]
    for step in range(150):
        for sid in list(liars):
            scribble(bench.processes[sid], rng)
            bench.planner.scan(sid, rng.choice((0, 2**32 - 1)))
        bench.planner.scan_due()
        for plan in bench.planner.plans():
            kind, number = header_of(plan.data)
            assert len(plan.data) <= wire.MSG_MAX and all(n for _, n, _ in runs(plan.data))
            if kind == wire.PUBLISH and rng.random() < 0.7:
                slots = sum(copies or n for _, n, copies in runs(plan.data))
                fd = bench_segment(bench, [page(rng.randrange(4)) for _ in range(min(slots, 64))])
                bench.planner.published(plan.sid, number, fd)
            elif kind == wire.PUBLISH:
                bench.planner.published(plan.sid, number, 0)
            else:
                bench.planner.result(plan.sid, number, rng.getrandbits(32), rng.getrandbits(32))
        bench.count()
        bench.planner.compact(1 << 30)
        if step % 50 == 49:
            gone = liars.pop(0)
            bench.planner.leave(gone)
            bench.processes.pop(gone).close()
            liars.append(bench.join()[0])
    first, second = bench.join()[1], bench.join()[1]
    for process in (first, second):
        process.write(HERE, [page(1000 + i) for i in range(100)])
    for sid in liars:
        bench.planner.leave(sid)
        bench.processes.pop(sid).close()
    bench.settle()
    assert bench.count()[0]["merged"] == 200


def bench_segment(bench: Bench, contents: list[bytes]) -> int:
    fd = sealed(b"".join(contents))
    gid, _ = bench.planner.segment(fd)
    bench.fds[gid] = fd
    return gid


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("magic", 1),
        ("version", lib.UD_LEDGER_VERSION + 1),
        ("page_shift", 13),
        ("page_shift", 200),
        ("capacity", 0),
        ("capacity", 2**31),
        ("heads_off", 8),
        ("states_off", 2**63),
        ("entries_off", 2**64 - PAGE),
        ("entries_off", 3),
    ],
)
def test_headers_that_contradict_themselves_are_refused(bench: Bench, field: str, value: int) -> None:
    process = FakeProcess()
    setattr(process.header, field, value)
    with pytest.raises(OSError) as error:
        bench.planner.attach(process.fd)
    assert error.value.errno == errno.EBADMSG
    process.close()
