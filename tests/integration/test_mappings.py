"""Mappings are scarce: merging takes its share, and gives it back before the program goes without."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from pools import Pool, run_prefix, settle, stat, wait_until

pytestmark = pytest.mark.usefixtures("domains")
LIMIT = int(Path("/proc/sys/vm/max_map_count").read_text())
DOMAIN = "crowd"


def members(pids: list[int]) -> list[dict[str, int]]:
    return [process for process in stat(DOMAIN)["processes"] if process["pid"] in pids]


def within_budget(pids: list[int], least: int, most: int) -> bool:
    """Is every process's budget in that range, and kept?"""
    found = members(pids)
    return all(process["vmas_used"] <= process["vmas_budget"] for process in found) and all(
        least <= process["vmas_budget"] <= most for process in found
    )


@pytest.mark.skipif(LIMIT > 70_000, reason=f"vm.max_map_count is {LIMIT}: too many to fill")
def test_the_program_gets_the_mappings_it_asks_for() -> None:
    """Scattered pages are merged as far as the budget goes; then the program maps all but the limit."""
    pages = 26_000
    with Pool("scattered", 2, pages, prefix=run_prefix(DOMAIN)) as pool:
        assert settle(DOMAIN, 90)
        wait_until(
            lambda: all(each["vmas_used"] > 0.75 * each["vmas_budget"] for each in members(pool.pids)), 60
        )
        assert within_budget(pool.pids, LIMIT // 4, LIMIT // 3)
        for process in members(pool.pids):
            assert process["merging_pages"] > 0.3 * process["vmas_budget"], process
        assert sum(each["left_for_vmas_pages"] for each in members(pool.pids)) > 0
        assert pool.ask(["crowd", LIMIT - 3000]) == [0, 0]
        wait_until(lambda: within_budget(pool.pids, 0, 1500))
        assert pool.ask("wrong") == [0, 0]
        pool.ask("leave")
        wait_until(lambda: within_budget(pool.pids, LIMIT // 4, LIMIT // 3))
        assert pool.ask("wrong") == [0, 0]
