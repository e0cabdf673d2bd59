"""One worker of a pool: `python -m udedup.bench.worker SOCKET INDEX SPEC`. The same under every engine.

Requests: load, work (seconds), measure, check, stop. The end of the control line ends the worker.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
import traceback
from typing import Any

from udedup.bench import control
from udedup.bench.spec import Spec
from udedup.bench.workloads import workload
from udedup.bench.workloads.base import Worker

MADV_MERGEABLE = 12


def advise_mergeable(address: int, nbytes: int) -> None:
    """madvise(MADV_MERGEABLE) on the whole pages of a buffer, through the process's own symbol table."""
    page = os.sysconf("SC_PAGE_SIZE")
    start = -(-address // page) * page
    end = (address + nbytes) // page * page
    if end <= start:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if libc.madvise(start, end - start, MADV_MERGEABLE) != 0:
        raise OSError(ctypes.get_errno(), "madvise(MADV_MERGEABLE)")


def serve(channel: control.Channel, worker: Worker) -> int:
    """Answers requests until `stop` or the end of the line; returns the exit status."""
    while True:
        try:
            request = channel.poll(3600.0)
        except EOFError:
            return 0
        if request is None:
            continue
        try:
            answer = _answer(worker, request)
        except Exception:
            answer = {"error": traceback.format_exc(limit=4).strip()}
        channel.send(answer)
        if request["op"] == "stop":
            return 0


def _answer(worker: Worker, request: dict[str, Any]) -> dict[str, Any]:
    op = request["op"]
    start = time.perf_counter()
    if op == "load":
        worker.load()
        if worker.spec.advise:
            for address, nbytes in worker.buffers():
                advise_mergeable(address, nbytes)
        return {"seconds": time.perf_counter() - start}
    if op == "work":
        return worker.work(float(request["seconds"]))
    if op == "measure":
        return worker.measure()
    if op == "check":
        return {"check": worker.check()}
    if op == "stop":
        return {}
    raise ValueError(f"unknown request {op!r}")


def main(argv: list[str]) -> int:
    """Runs one worker."""
    path, index, text = argv
    spec = Spec.decode(text)
    channel = control.connect(path, int(index), os.getpid())
    return serve(channel, workload(spec.workload).worker(spec, int(index)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
