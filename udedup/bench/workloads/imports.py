"""imports: spawned workers that import a list of modules, then idle. Options: modules (list of names)."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from udedup.bench.spec import Spec
from udedup.bench.workloads.base import Worker, Workload, digest, timed_units

MODULES = ("numpy", "pandas", "sklearn.ensemble")


def modules(spec: Spec) -> list[str]:
    """Names of the modules to import."""
    return list(spec.options.get("modules") or MODULES)


class ImportsWorker(Worker):
    def load(self) -> None:
        for name in modules(self.spec):
            importlib.import_module(name)

    def work(self, seconds: float) -> dict[str, Any]:
        """A little of what such workers do: dictionaries, strings, sorting."""

        def unit() -> None:
            table = {str(i): i * i for i in range(2000)}
            sorted(table.items(), key=lambda item: item[1], reverse=True)

        return timed_units(unit, seconds)

    def check(self) -> str:
        """The predictions of a small model if scikit-learn is there, else what the modules define."""
        if "sklearn.ensemble" in sys.modules:
            return fit_small_model()
        return digest(*(sorted(vars(sys.modules[name])) for name in modules(self.spec)))


def fit_small_model() -> str:
    """Fits a forest on fixed data; digest of its probabilities."""
    import numpy as np
    from sklearn.ensemble import RandomForestClassifier

    data = np.random.default_rng(3).random((300, 8))
    labels = (data[:, 0] + data[:, 3] > data[:, 5]).astype(int)
    model = RandomForestClassifier(n_estimators=10, random_state=0, n_jobs=1).fit(data, labels)
    return digest(model.predict_proba(data))


class Imports(Workload):
    summary = "spawned workers that import the same modules"
    worker = ImportsWorker
    works = True
    alike_by_chance = True  # scipy draws at random while it is imported
    workers = 8
    quick_workers = 4

    def imports(self, spec: Spec) -> tuple[str, ...]:
        return tuple(modules(spec))


def make(name: str) -> Workload:
    """The workload of that name."""
    return Imports(name)
