"""joblib workers (loky) that fit on the same data, each with a copy of its own.

udedup run --report -- python examples/joblib_pool.py
"""

from __future__ import annotations

import numpy as np
from joblib import Parallel, delayed


def fit(seed: int) -> float:
    """Least squares with a random start, on data that every worker makes again."""
    data = np.random.default_rng(0).normal(size=(200_000, 8))
    target = data @ np.arange(8.0)
    weights = np.random.default_rng(seed).normal(size=8)
    for _ in range(30):
        weights -= 0.2 * data.T @ (data @ weights - target) / len(data)
    return float(np.round(weights, 3).sum())


def main() -> None:
    results = Parallel(n_jobs=4)(delayed(fit)(seed) for seed in range(8))
    print("weights", sorted(set(results)))


if __name__ == "__main__":
    main()
