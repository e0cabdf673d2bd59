"""System calls that write into merged memory, and calls that sleep while batches come and go."""

from __future__ import annotations

from pathlib import Path

import pytest
from hazards.lab import Lab

WRITERS = [
    "read_merged", "sockets_merged", "fread_merged", "results_merged", "read_during_merges", "proc_mem_write",
    "process_vm_write", "vmsplice_merged", "direct_io", "aio_in_flight",
]  # fmt: skip


@pytest.mark.parametrize("name", WRITERS)
def test_kernel_writes(lab: Lab, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lab.same([lab.program("syscalls"), name])


@pytest.mark.parametrize("name", ["read_during_merges", "aio_in_flight"])
def test_kernel_writes_while_merging_and_unmerging(
    lab: Lab, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with lab.churning():
        lab.same([lab.program("syscalls"), name])


def test_sleeping_calls_see_no_interruption(lab: Lab) -> None:
    lab.same([lab.program("syscalls"), "sleepers_see_nothing"])


def test_socket_timeout_is_kept(lab: Lab) -> None:
    lab.same([lab.program("syscalls"), "recv_timeout_is_kept"])


def test_uring_read_in_flight(lab: Lab) -> None:
    lab.same([lab.program("uring"), "read_in_flight"])


def test_uring_registered_buffer(lab: Lab) -> None:
    lab.same([lab.program("uring"), "registered_buffer"])


def test_uring_registered_buffer_without_its_ring(lab: Lab) -> None:
    lab.same([lab.program("uring"), "unmapped_ring"])


def test_uring_mapped_where_memory_was(lab: Lab) -> None:
    lab.same([lab.program("uring"), "ring_for_memory"])
