"""none: the pool as it is. layout: one address layout and one hash seed, and nothing merges."""

from __future__ import annotations

from udedup.bench.engines.base import Engine, Run, launcher

HASH_SEED = "4711"


class Plain(Engine):
    summary = "nothing merges"


class Layout(Engine):
    summary = "shared layout alone"

    def wrap(self, command: list[str], env: dict[str, str], run: Run) -> tuple[list[str], dict[str, str]]:
        return launcher(["--layout"], command), {**env, "PYTHONHASHSEED": HASH_SEED}


def make(name: str) -> Engine:
    """The engine of that name."""
    return Layout(name) if name == "layout" else Plain(name)
