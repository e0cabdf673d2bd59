"""One page repeated: tiles, and KSM's counts up to what tiles cost."""

from fake_agent import PAGE, Bench, FakeProcess, page, runs

from udedup.core import lib
from udedup.merger import wire

HERE = 0x7F0000000000


def mappings(bench: Bench) -> int:
    return sum(len(runs(data)) for kind, _, data in bench.sent if kind == wire.MERGE)


def test_row_is_mapped_by_tiles(bench: Bench) -> None:
    count = 8192
    process = bench.join(FakeProcess())[1]
    process.write(HERE, [page(1)] * count)
    bench.settle()
    sums, store = bench.count()
    assert (sums["shared"], sums["sharing"]) == (256, count - 256)
    assert store["slots"] == 256 and store["tile_slots"] == 255
    assert mappings(bench) == count // 256


def test_max_page_sharing_sets_the_tile(bench: Bench) -> None:
    bench.configure(max_page_sharing=8)
    process = bench.join(FakeProcess())[1]
    process.write(HERE, [page(1)] * 2048)
    bench.settle()
    assert bench.count()[0]["shared"] == 8
    assert mappings(bench) == 2048 // 8


def test_rows_of_several_processes_share_one_tile(bench: Bench) -> None:
    for _ in range(4):
        bench.join(FakeProcess())[1].write(HERE, [page(1)] * 4096)
    bench.settle()
    sums, store = bench.count()
    assert (sums["shared"], sums["sharing"], store["slots"]) == (256, 4 * 4096 - 256, 256)


def test_tile_is_made_for_the_row_to_come(bench: Bench) -> None:
    """Half of the row is too young to be merged yet: the tile is as wide as the whole needs."""
    process = bench.join(FakeProcess())[1]
    process.write(HERE, [page(1)] * 2048)
    process.write(HERE + 2048 * PAGE, [page(1)] * 2048, lib.UD_PG_VOLATILE)
    bench.settle()
    assert bench.count()[1]["slots"] == 256
    process.write(HERE + 2048 * PAGE, [page(1)] * 2048)
    bench.settle()
    assert bench.count()[1]["slots"] == 256
    assert mappings(bench) == 4096 // 256


def test_small_row_gets_a_small_tile_and_a_large_one_a_larger(bench: Bench) -> None:
    first = bench.join(FakeProcess())[1]
    first.write(HERE, [page(1)] * 64)
    bench.settle()
    assert bench.count()[1]["slots"] == 4
    bench.join(FakeProcess())[1].write(HERE, [page(1)] * 8192)
    bench.settle()
    assert bench.count()[1]["slots"] == 4 + 256


def test_fills_give_the_counts_of_ksm(bench: Bench) -> None:
    """KSM's own test in small: c/a/a, c/b/a, d/d/d, and d with one last byte changed."""
    count = 8192
    tile = 256
    processes = [bench.join(FakeProcess())[1] for _ in range(3)]

    def fill(*letters: str) -> tuple[int, int, int, int]:
        for process, letter in zip(processes, letters, strict=True):
            process.write(HERE, [letter.encode() * PAGE] * count)
        bench.settle()
        sums, _ = bench.count()
        return sums["shared"], sums["sharing"], sums["unshared"], sums["pages_volatile"]

    assert fill("c", "a", "a") == (2 * tile, 3 * count - 2 * tile, 0, 0)
    assert fill("c", "b", "a") == (3 * tile, 3 * count - 3 * tile, 0, 0)
    assert fill("d", "d", "d") == (tile, 3 * count - tile, 0, 0)
    processes[0].write(HERE + (count - 1) * PAGE, [b"d" * (PAGE - 1) + b"e"])
    bench.settle()
    sums, _ = bench.count()
    assert (sums["shared"], sums["sharing"], sums["unshared"]) == (tile, 3 * count - 1 - tile, 1)
