"""The engines: what is compared. `none` is always run, as the reference of every ratio."""

from __future__ import annotations

import importlib

from udedup.bench.engines.base import Engine

_MODULES = {
    "none": "plain",
    "layout": "plain",
    "ksm": "ksm",
    "ksm-default": "ksm",
    "layout+ksm": "ksm",
    "udedup": "udedup",
    "udedup-trap": "udedup",
    "udedup-random": "udedup",
}
HIDDEN = {
    "broken-corrupt": "broken",
    "broken-lies": "broken",
    "broken-kills": "broken",
}

ENGINES: tuple[str, ...] = tuple(_MODULES)
QUICK: tuple[str, ...] = ("none", "ksm", "layout+ksm", "udedup")
FULL: tuple[str, ...] = ("none", "layout", "ksm", "ksm-default", "layout+ksm", "udedup", "udedup-trap")


def engine(name: str) -> Engine:
    """A fresh engine of that name; the broken ones are for the bench's own tests. Raises KeyError."""
    module = importlib.import_module(f"udedup.bench.engines.{(_MODULES | HIDDEN)[name]}")
    found = module.make(name)
    assert isinstance(found, Engine)
    return found
