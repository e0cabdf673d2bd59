"""merge_across_nodes=0: pages of one NUMA node are merged, and lie in segments of that node."""

import pytest
from fake_agent import PAGE, Bench, node_of, numbers, page, runs

from udedup.merger import wire

HERE = 0x7F0000000000


@pytest.fixture
def nodes(bench: Bench) -> Bench:
    bench.configure(merge_across_nodes=0)
    return bench


def sent(bench: Bench, kind: int) -> list[tuple[int, list[tuple[int, int, int]]]]:
    """Node + 1 and runs of each message."""
    return [(node_of(data), runs(data)) for sent_kind, _, data in bench.sent if sent_kind == kind]


def test_equal_pages_of_two_nodes_stay_apart(nodes: Bench) -> None:
    for node in (0, 1):
        nodes.join()[1].write(HERE, numbers(1, 200), node=node)
    nodes.settle()
    assert nodes.sent == [] and nodes.count()[0]["unshared"] == 400


def test_each_node_has_its_own_copy(nodes: Bench) -> None:
    for node in (0, 1, 0, 1):
        nodes.join()[1].write(HERE, numbers(1, 200), node=node)
    nodes.settle()
    sums, store = nodes.count()
    assert (sums["shared"], sums["sharing"], store["slots"]) == (400, 400, 400)
    assert sorted(sent(nodes, wire.PUBLISH)) == [(1, [(HERE, 200, 0)]), (2, [(HERE, 200, 0)])]
    assert sorted(node for node, _ in sent(nodes, wire.MERGE)) == [1, 1, 2, 2]


def test_one_process_on_two_nodes_publishes_for_each(nodes: Bench) -> None:
    """Neighbours in memory, but never in one segment."""
    for _ in range(2):
        process = nodes.join()[1]
        process.write(HERE, numbers(1, 100), node=3)
        process.write(HERE + 100 * PAGE, numbers(101, 100), node=0)
    nodes.settle()
    assert sorted(sent(nodes, wire.PUBLISH)) == [(1, [(HERE + 100 * PAGE, 100, 0)]), (4, [(HERE, 100, 0)])]
    sums, store = nodes.count()
    assert (sums["sharing"], store["segments"]) == (200, 2)


def test_late_process_gets_the_segment_of_its_node(nodes: Bench) -> None:
    for node in (0, 1, 0, 1):
        nodes.join()[1].write(HERE, numbers(1, 64), node=node)
    nodes.settle()
    nodes.sent.clear()
    nodes.join()[1].write(HERE, numbers(1, 64), node=1)
    nodes.settle()
    assert [node for node, _ in sent(nodes, wire.MERGE)] == [2] and not sent(nodes, wire.PUBLISH)


def test_rows_of_one_page_have_a_tile_on_each_node(nodes: Bench) -> None:
    for node in (0, 1):
        nodes.join()[1].write(HERE, [page(1)] * 8192, node=node)
    nodes.settle()
    sums, _ = nodes.count()
    assert (sums["shared"], sums["sharing"]) == (2 * 256, 2 * (8192 - 256))
    assert sorted(node for node, _ in sent(nodes, wire.PUBLISH)) == [1, 2]
