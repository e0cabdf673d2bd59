"""What a cell's workers are told: one small record, passed on their command line as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Spec:
    """One workload's size and options, the same for every engine."""

    workload: str
    workers: int = 4
    size: int = 64 << 20  # bytes of data in each worker
    seed: int = 1
    advise: bool = False  # workers call madvise(MADV_MERGEABLE) on their buffers
    rundir: str = ""  # directory of files that prepare() made
    options: dict[str, Any] = field(default_factory=dict)

    def encode(self) -> str:
        """The record as one JSON line."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @staticmethod
    def decode(text: str) -> Spec:
        """The reverse of `encode`; raises TypeError or ValueError on anything else."""
        return Spec(**json.loads(text))
