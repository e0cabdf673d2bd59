"""What a run leaves: cells (one workload under one engine, once) and the report that goes into the JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

FORMAT = 1
OK, FAILED, SKIPPED, INTERRUPTED = "ok", "failed", "skipped", "interrupted"


def _total(snapshot: dict[str, int]) -> int | None:
    return snapshot["pss"] + snapshot["store_unmapped"] if snapshot else None


@dataclass
class Cell:
    """One workload under one engine, once. Bytes and seconds; None where not measured."""

    workload: str
    engine: str
    repeat: int
    spec: dict[str, Any] = field(default_factory=dict)
    status: str = OK
    reason: str = ""
    notes: list[str] = field(default_factory=list)
    load_s: float | None = None
    before: dict[str, int] = field(default_factory=dict)  # pool loaded, nothing merged
    final: dict[str, int] = field(default_factory=dict)  # settled
    after: dict[str, int] = field(default_factory=dict)  # and after the application has worked on it
    possible: int | None = None
    settled: bool = False
    settle_s: float | None = None
    time_90_s: float | None = None
    time_99_s: float | None = None
    cpu_99_s: float | None = None  # engine's CPU from its start until 99 % of the final saving
    time_data_s: float | None = None  # until 99 % of what the workload's data allow (`possible`) are saved
    cpu_data_s: float | None = None
    cpu_settled_s: float | None = None
    cpu_load_s: float | None = None  # engine's CPU before its start
    app_merging: dict[str, float] = field(default_factory=dict)
    app_settled: dict[str, float] = field(default_factory=dict)
    others: dict[str, float] = field(default_factory=dict)  # cores used by other programs meanwhile
    own: dict[str, float] = field(default_factory=dict)  # a workload's own figures
    idle: dict[str, float] = field(default_factory=dict)
    freeze_us: dict[str, float] = field(default_factory=dict)
    checks: list[str] = field(default_factory=list)
    counters: dict[str, Any] = field(default_factory=dict)  # what the engine says of itself, once settled
    counters_end: dict[str, Any] = field(default_factory=dict)  # and before the results were asked for
    timeline: dict[str, list[float]] = field(default_factory=dict)

    @property
    def total(self) -> int | None:
        """PSS of the pool plus the store's pages that nobody maps, in bytes, once settled."""
        return _total(self.final)

    @property
    def total_after(self) -> int | None:
        """The same once the application has worked on merged memory."""
        return _total(self.after)

    def fail(self, reason: str) -> None:
        """Marks the cell failed; the first reason stays."""
        if self.status == OK:
            self.status, self.reason = FAILED, reason


@dataclass
class Report:
    """A whole run."""

    command: str
    started: str
    machine: dict[str, Any]
    cells: list[Cell] = field(default_factory=list)
    complete: bool = False
    plan: dict[str, Any] = field(default_factory=dict)  # limits, repeats, knobs; what --quick left out
    format: int = FORMAT

    def save(self, path: Path) -> None:
        """Writes the JSON, one cell a line; raises OSError."""
        raw = asdict(self)
        cells = ",\n".join(json.dumps(cell, separators=(",", ":")) for cell in raw.pop("cells"))
        head = json.dumps(raw, indent=1).rstrip("}\n")
        path.write_text(f'{head},\n "cells": [\n{cells}\n]}}\n')

    @staticmethod
    def load(path: Path) -> Report:
        """Reads what `save` wrote. Raises OSError, or ValueError when it is something else."""
        raw = json.loads(path.read_text())
        if not isinstance(raw, dict) or raw.get("format") != FORMAT:
            raise ValueError(f"{path} is not a report of this version of udedup bench")
        cells = [Cell(**cell) for cell in raw.pop("cells")]
        return Report(cells=cells, **raw)
