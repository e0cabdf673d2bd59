"""What the figures were taken on: machine, kernel, versions, knobs."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path

from udedup.bench import ksmknobs, procfs

PACKAGES = ("udedup", "numpy", "pandas", "scikit-learn", "joblib", "gunicorn", "torch")


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _cpu_model() -> str:
    for line in _text("/proc/cpuinfo").splitlines():
        if line.startswith(("model name", "Processor", "CPU part")):
            return line.partition(":")[2].strip()
    return platform.machine()


def _versions() -> dict[str, str]:
    out = {"python": platform.python_version(), "libc": " ".join(platform.libc_ver())}
    for name in PACKAGES:
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return out


def describe() -> dict[str, object]:
    """Everything a reader needs to judge the figures; no names of hosts, users or paths."""
    return {
        "kernel": platform.release(),
        "arch": platform.machine(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": procfs.meminfo().get("MemTotal", 0),
        "page_bytes": procfs.PAGE,
        "uid_is_root": os.geteuid() == 0,
        "thp": _text("/sys/kernel/mm/transparent_hugepage/enabled"),
        "max_map_count": _text("/proc/sys/vm/max_map_count"),
        "ksm_knobs_before": ksmknobs.read_all(ksmknobs.KNOBS) if ksmknobs.folder().is_dir() else {},
        "versions": _versions(),
    }
