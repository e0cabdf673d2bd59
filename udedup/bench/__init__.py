"""`udedup bench`: the same worker pools under udedup, kernel KSM and nothing, measured from outside.

`WORKLOADS` and `ENGINES` name what there is; `run_bench` runs a matrix of them. Everything is loaded on first
use, because the workers import this package too and their memory is what is measured.
"""

from __future__ import annotations

import importlib
from typing import Any

_LAZY = {
    "WORKLOADS": "udedup.bench.workloads",
    "workload": "udedup.bench.workloads",
    "ENGINES": "udedup.bench.engines",
    "engine": "udedup.bench.engines",
    "run_bench": "udedup.bench.matrix",
    "Plan": "udedup.bench.matrix",
    "run_cell": "udedup.bench.cell",
}

__all__ = list(_LAZY)


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
