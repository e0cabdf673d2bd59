"""The Python side of the torture: threads that write, read, resize, fork and verify, in one interpreter.

Like torture.c it knows nothing of udedup but `writable` (trap mode). Every 8-byte word carries owner,
page and sequence number. Exit status 0, or 70 when a word was wrong.
"""

from __future__ import annotations

import argparse
import array
import contextlib
import ctypes
import mmap
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator

PAGE = mmap.PAGESIZE
WORDS = PAGE // 8
SHARED_OWNER = 0xFFE
SLOT = 64  # bytes of one driver's counters in the file, from 2048 on
FIELDS = ("verified", "operations", "reads", "forks", "errors")


def pattern(owner: int, page: int, sequence: int, words: int = WORDS) -> bytes:
    base = owner << 52 | (page & 0x3FFF) << 38 | (sequence & 0xFFFFFFF) << 10
    return array.array("Q", range(base, base + words)).tobytes()


class Counters:
    """This driver's numbers in the mapped counters file."""

    def __init__(self, path: str, process: int) -> None:
        with open(path, "r+b") as file:
            self.map = mmap.mmap(file.fileno(), PAGE)
        self.offset = 2048 + process * SLOT
        self.lock = threading.Lock()

    def add(self, field: str, amount: int = 1) -> None:
        at = self.offset + FIELDS.index(field) * 8
        with self.lock:
            value = int.from_bytes(self.map[at : at + 8], "little") + amount
            self.map[at : at + 8] = value.to_bytes(8, "little")


class Failure(Exception):
    """A byte was not what was written."""


@contextlib.contextmanager
def opened(view: memoryview) -> Iterator[None]:
    """The range may be written by a system call; needed in trap mode only."""
    library = ctypes.CDLL(None)
    if not hasattr(library, "ud_writable_open"):
        yield
        return
    address = ctypes.addressof(ctypes.c_char.from_buffer(view))
    token = library.ud_writable_open(ctypes.c_void_p(address), ctypes.c_size_t(len(view)))
    if token <= 0:
        raise Failure(f"ud_writable_open: {token}")
    yield
    library.ud_writable_close(token)


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG


class Worker:
    """One thread's memory and what must be in it."""

    def __init__(
        self, owner: int, pages: int, trap: bool, advise: bool, counters: Counters, seed: int
    ) -> None:
        self.owner, self.trap, self.advise, self.counters = owner, trap, advise, counters
        self.random = random.Random(seed * 1000 + owner)
        self.sequence = 0
        self.area = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.expected: list[bytes] = [bytes(PAGE)] * pages
        self.buffer = bytearray()
        self.objects: dict[int, str] = {}
        self.in_child = False
        self.advised()
        for page in range(pages):
            self.fill(page)

    def advised(self) -> None:
        if self.advise:
            with contextlib.suppress(OSError):  # a kernel without KSM knows no such advice
                self.area.madvise(12)

    def put(self, page: int, data: bytes, how: str) -> None:
        start = page * PAGE
        if how == "slice":
            self.area[start : start + PAGE] = data
        else:
            self.read_into(start, data)
        self.expected[page] = data

    def read_into(self, start: int, data: bytes) -> None:
        reading, writing = os.pipe()
        view = memoryview(self.area)[start : start + PAGE]
        delay = self.random.random() * 0.003
        sender = threading.Timer(delay, os.write, (writing, data)) if not self.in_child else None
        if sender:
            sender.start()
        else:
            os.write(writing, data)
        with opened(view) if self.trap else contextlib.nullcontext():
            got = os.readv(reading, [view])
        if sender:
            sender.join()
        os.close(reading)
        os.close(writing)
        view.release()
        self.counters.add("reads")
        if got != PAGE:
            raise Failure(f"readv gave {got} bytes")

    def fill(self, page: int) -> None:
        shared = self.random.random() < 0.7
        self.sequence += 1
        owner, sequence = (
            (SHARED_OWNER, 1 + self.random.randrange(3)) if shared else (self.owner, self.sequence)
        )
        how = "read" if self.random.random() < 0.1 and self.sequence > len(self.expected) else "slice"
        self.put(page, pattern(owner, page, sequence), how)

    def verify(self, page: int) -> None:
        got = self.area[page * PAGE : (page + 1) * PAGE]
        if got != self.expected[page]:
            at = next(i for i in range(PAGE) if got[i] != self.expected[page][i]) & ~7
            raise Failure(
                f"owner {self.owner} page {page} offset {at}: got {got[at : at + 8].hex()}, "
                f"want {self.expected[page][at : at + 8].hex()}"
            )
        self.counters.add("verified", WORDS)

    def verify_all(self) -> None:
        for page in range(len(self.expected)):
            self.verify(page)
        for key, value in self.objects.items():
            if value != f"{self.owner}:{key}" * 50:
                raise Failure(f"object {key} changed")

    def discard(self) -> None:
        page = self.random.randrange(len(self.expected) - 4)
        self.area.madvise(mmap.MADV_DONTNEED, page * PAGE, 4 * PAGE)
        for p in range(page, page + 4):
            self.expected[p] = bytes(PAGE)
            self.verify(p)

    def resize(self) -> None:
        size = 64 + self.random.randrange(256)
        self.area.resize(size * PAGE)
        grown = max(0, size - len(self.expected))
        self.expected = self.expected[:size] + [bytes(PAGE)] * grown
        self.advised()
        self.verify_all()

    def grow_buffer(self) -> None:
        if len(self.buffer) > 1 << 20:
            for page in range(len(self.buffer) // PAGE):
                if self.buffer[page * PAGE : (page + 1) * PAGE] != pattern(SHARED_OWNER, page, 9):
                    raise Failure(f"bytearray page {page} changed")
            self.buffer = bytearray()
        for _ in range(16):
            self.buffer += pattern(SHARED_OWNER, len(self.buffer) // PAGE, 9)

    def churn(self) -> None:
        for _ in range(50):
            key = self.random.randrange(3000)
            self.objects[key] = f"{self.owner}:{key}" * 50
            self.objects.pop(self.random.randrange(3000), None)

    def fork(self) -> None:
        pid = os.fork()
        if pid == 0:
            status = 70
            try:
                self.in_child = True
                self.counters.lock = threading.Lock()  # another thread may have held it
                self.verify_all()
                for _ in range(self.random.randrange(60)):
                    self.operate(fork=False)
                self.verify_all()
                status = 0
            except BaseException as failure:
                says = f"torture driver {os.getpid()} (forked): {type(failure).__name__}: {failure}\n"
                os.write(2, (says + traceback.format_exc()).encode())
            finally:
                os._exit(status)
        _, status = os.waitpid(pid, 0)
        self.counters.add("forks")
        if status:
            raise Failure(f"forked child ended with status {status}")

    def operate(self, fork: bool = True) -> None:
        dice = self.random.random()
        if dice < 0.5:
            page = self.random.randrange(len(self.expected))
            self.verify(page)
            if dice < 0.15:
                self.fill(page)
        elif dice < 0.60:
            self.discard()
        elif dice < 0.64:
            self.resize()
        elif dice < 0.75:
            self.grow_buffer()
        elif dice < 0.97:
            self.churn()
        elif fork:
            self.fork()
        self.counters.add("operations")
        time.sleep(self.random.random() * 0.01)


def main() -> int:
    parser = argparse.ArgumentParser()
    for name in ("process", "threads", "pages", "seed", "trap", "advise"):
        parser.add_argument(f"--{name}", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--counters", required=True)
    options = parser.parse_args()
    die_with_parent()
    counters = Counters(options.counters, options.process)
    failures: list[BaseException] = []
    end = time.monotonic() + options.seconds

    def life(worker: Worker) -> None:
        try:
            while time.monotonic() < end and not failures:
                worker.operate()
            worker.verify_all()
        except BaseException as failure:  # every kind of surprise is a finding
            failures.append(failure)
            counters.add("errors")
            print(
                f"torture driver {os.getpid()}: {type(failure).__name__}: {failure}",
                file=sys.stderr,
                flush=True,
            )

    first = 1 + options.process * options.threads
    workers = [
        Worker(first + i, options.pages, bool(options.trap), bool(options.advise), counters, options.seed)
        for i in range(options.threads)
    ]
    threads = [threading.Thread(target=life, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 70 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
