"""What programs seldom ask of memory calls: the same answers on merged memory."""

from __future__ import annotations

import pytest
from hazards.lab import Lab

NAMES = [
    "realloc_too_large", "mremap_refused",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_same_as_plain(lab: Lab, name: str) -> None:
    lab.same([lab.program("edges"), name])
