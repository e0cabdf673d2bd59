"""models: every worker loads the same scikit-learn model from one file, with joblib or pickle.

Options: loader (joblib or pickle).
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

from udedup.bench.spec import Spec
from udedup.bench.workloads.base import Worker, Workload, digest, run_python, timed_units

FEATURES = 16
BYTES_PER_TREE = 430_000


def model_file(spec: Spec) -> Path:
    """Where prepare() leaves the model."""
    return Path(spec.rundir) / f"model-{spec.size >> 20}.{spec.options.get('loader', 'joblib')}"


class ModelWorker(Worker):
    model: Any

    def load(self) -> None:
        if self.spec.options.get("loader") == "pickle":
            with model_file(self.spec).open("rb") as file:
                self.model = pickle.load(file)
        else:
            import joblib

            self.model = joblib.load(model_file(self.spec))

    def rows(self, count: int) -> Any:
        """Fixed rows to predict."""
        import numpy as np

        return np.random.default_rng(5).random((count, FEATURES))

    def work(self, seconds: float) -> dict[str, Any]:
        rows = self.rows(8)
        self.model.n_jobs = 1
        return timed_units(lambda: self.model.predict(rows), seconds)

    def check(self) -> str:
        return digest(self.model.predict_proba(self.rows(200)))


class Models(Workload):
    summary = "the same scikit-learn model loaded from disk by every worker"
    needs = ("sklearn.ensemble", "joblib")
    worker = ModelWorker
    works = True
    size = 128 << 20
    quick_size = 32 << 20

    def prepare(self, spec: Spec) -> None:
        """Fits the model in a process of its own, which is what compiles the modules as well."""
        if not model_file(spec).exists():
            run_python("-m", "udedup.bench.workloads.models", spec.encode())


def fit(spec: Spec) -> None:
    """Fits a forest of about spec.size bytes, and writes it to the model's file."""
    import joblib
    import numpy as np
    from sklearn.ensemble import RandomForestClassifier

    file = model_file(spec)
    data = np.random.default_rng(4).random((10_000, FEATURES))
    labels = ((data[:, 0] * data[:, 1] + data[:, 2] * 0.3) * 20).astype(int) % 7
    trees = max(4, spec.size // (2 * BYTES_PER_TREE))
    model = RandomForestClassifier(n_estimators=trees, random_state=0, n_jobs=-1).fit(data, labels)
    if file.suffix == ".pickle":
        file.write_bytes(pickle.dumps(model, protocol=5))
    else:
        joblib.dump(model, file)


def make(name: str) -> Workload:
    """The workload of that name."""
    return Models(name)


if __name__ == "__main__":
    fit(Spec.decode(sys.argv[1]))
