"""How much memory is to be had: cgroups v1 and v2 as files, and the machine."""

import os
from pathlib import Path

import pytest

from udedup.merger import memory

MIB = 1 << 20


def group(where: Path, **files: str) -> Path:
    where.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (where / name.replace("__", ".")).write_text(text)
    return where


def test_v2_counts_clean_files_as_free(tmp_path: Path) -> None:
    path = group(
        tmp_path, memory__max=f"{100 * MIB}\n", memory__high="max\n", memory__current=f"{90 * MIB}\n",
        memory__stat=f"anon 5\ninactive_file {20 * MIB}\nactive_file {MIB}\n",
    )  # fmt: skip
    assert memory.group_available(path) == 31 * MIB
    group(tmp_path, memory__high=f"{80 * MIB}\n")
    assert memory.group_available(path) == 11 * MIB


def test_v1_counts_its_children_too(tmp_path: Path) -> None:
    path = group(
        tmp_path, memory__limit_in_bytes=f"{100 * MIB}\n", memory__usage_in_bytes=f"{99 * MIB}\n",
        memory__stat=f"inactive_file 1\nactive_file 1\ntotal_inactive_file {2 * MIB}\ntotal_active_file 0\n",
    )  # fmt: skip
    assert memory.group_available(path) == 3 * MIB
    group(tmp_path, memory__limit_in_bytes="9223372036854771712\n")
    assert memory.group_available(path) is None


def test_shortage_is_of_the_group_that_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes in one group: their needs add up. A third elsewhere has room."""
    tight = group(tmp_path / "tight", memory__max=str(10 * MIB), memory__current="0")
    wide = group(tmp_path / "wide", memory__max="max", memory__current="0")
    monkeypatch.setattr(memory, "groups_of", lambda pid: [wide] if pid == 3 else [tight, wide])
    assert memory.shortage({1: 5 * MIB, 2: 5 * MIB, 3: 99 * MIB}) is None
    why = memory.shortage({1: 6 * MIB, 2: 5 * MIB})
    assert why == f"needs 11 MiB and 10 MiB are left in cgroup {tight}"
    assert memory.available([3]) == pytest.approx(memory.machine_available(), rel=0.2)
    assert memory.available([1, 3]) == 10 * MIB
    assert "are available" in (memory.shortage({3: 1 << 60}) or "")


def test_groups_of_this_process_are_directories() -> None:
    for path in memory.groups_of(os.getpid()):
        assert path.is_dir()
    assert memory.groups_of(0) == []
