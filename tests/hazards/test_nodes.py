"""merge_across_nodes=0 with real agents, on two nodes that a test library plays: each has 2 MiB in turn."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from hazards.lab import Lab
from ksm.lab import wait_until

PAGES = 512  # 2 MiB, as in c/nodes.c
SHIFT = "21"


@pytest.fixture
def two_nodes(racing: Lab) -> Iterator[Lab]:
    """The lab set to merge within nodes; nothing was merged before."""
    racing.set({"run": 2})
    wait_until(lambda: not racing.client.request("stat")["processes"])  # of the test before
    racing.set({"merge_across_nodes": 0, "run": 1})
    yield racing
    racing.set({"run": 2})
    racing.set({"merge_across_nodes": 1, "run": 1})


def members(lab: Lab) -> list[int]:
    return [each["pid"] for each in lab.client.request("stat")["processes"]]


def test_each_node_keeps_its_own_copy(two_nodes: Lab) -> None:
    """Four equal areas, two on each node: two copies in the store, one segment at least for each node."""
    argv = [str(two_nodes.program("nodes"))]
    env = two_nodes.environment(UDEDUP_TEST_NODES=SHIFT, UDEDUP_REGIONS="advised")
    process = subprocess.Popen(argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "ready\n"
    try:
        wait_until(lambda: process.pid in members(two_nodes))
        assert two_nodes.client.request("settle", seconds=30, timeout=40)["settled"]
        stat = two_nodes.client.request("stat")
        assert (stat["pages_shared"], stat["pages_sharing"]) == (2 * PAGES, 2 * PAGES)
        assert stat["store_segments"] >= 2 and stat["merge_failures"]["node"] == 0
    finally:
        out, _ = process.communicate("\n", timeout=20)
    # Which segments the areas map: two areas of one node the same, those of the other node others.
    areas = [set(line.split()) for line in out.splitlines()]
    assert len(areas) == 4 and areas[0] == areas[2] and areas[1] == areas[3] and not areas[0] & areas[1]
