"""The workloads: what a pool does. One file each; a name may stand for a variant (`forkpool-freeze`).

Light to import: numpy and the rest are loaded inside the workers only.
"""

from __future__ import annotations

import importlib

from udedup.bench.workloads.base import Workload

_MODULES = {
    "imports": "imports",
    "forkpool": "forkpool",
    "forkpool-freeze": "forkpool",
    "arrays": "arrays",
    "models": "models",
    "gunicorn": "gunicorn",
    "torch": "torch",
    "scatter": "scatter",
    "uniform": "uniform",
    "zeros": "zeros",
    "churn": "churn",
    "churn-rolling": "churn",
    "unique": "unique",
    "split": "split",
    "idle": "idle",
    "idle-unique": "idle",
}

WORKLOADS: tuple[str, ...] = tuple(_MODULES)
QUICK: tuple[str, ...] = ("imports", "arrays", "scatter", "churn", "unique")
"""What --quick runs when no workload is named."""


def workload(name: str) -> Workload:
    """The workload of that name. Raises KeyError for a name that is not in WORKLOADS."""
    module = importlib.import_module(f"udedup.bench.workloads.{_MODULES[name]}")
    found = module.make(name)
    assert isinstance(found, Workload)
    return found
