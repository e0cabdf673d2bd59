"""Memory calls on merged memory: the same results as on plain memory."""

from __future__ import annotations

import pytest
from hazards.lab import Lab

QUIET = [
    "munmap_merged", "munmap_hole", "mmap_fixed_over", "file_mapping_is_not_ours", "mremap_grow",
    "mremap_grow_in_place", "mremap_shrink", "mremap_move", "mremap_move_part", "realloc_large",
    "calloc_after_free", "dontneed", "free_advice", "remove_advice", "dontfork", "wipeonfork",
    "hugepage", "huge_pages", "mergeable", "mprotect_and_back", "mprotect_read_stays", "protections_kept",
    "dontneed_closed", "mremap_closed", "file_after_raw_munmap",
    "mlock_merged", "mlockall_merged", "brk_moves", "trim", "small_blocks", "errors_stay", "many_blocks",
]  # fmt: skip


@pytest.mark.parametrize("name", QUIET)
def test_same_as_plain(lab: Lab, name: str) -> None:
    lab.same([lab.program("mappings"), name])


@pytest.mark.parametrize("name", ["file_mapping_is_not_ours", "realloc_large", "calloc_after_free", "trim"])
def test_same_as_plain_while_merging_and_unmerging(lab: Lab, name: str) -> None:
    with lab.churning(stays=1.5):
        lab.same([lab.program("mappings"), name])
