"""Brings libudedup.so into a running process: borrow a thread, dlopen, ud_join, give the thread back.

Guarantees: whatever ends us (kill -9 included), the thread goes back to what it did with its registers,
vector state, signal mask and errno (frame.py); a system call it slept in goes on; signals that came are
delivered. One limit: killed in the instant before the call or after it, a poll or nanosleep begins its time
anew. Fails: UdedupError. Nothing of ours is left in the process then, save that the library may be loaded.
"""

import contextlib
import functools
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from udedup.errors import UdedupError
from udedup.watch import borrow, frame, glibc
from udedup.watch.elf import Memory
from udedup.watch.memory import read_maps
from udedup.watch.target import Target, guarded, why_refused
from udedup.watch.tracer import Registers, Tracee

_GIVE_UP = 5.0  # seconds to find a thread that can be borrowed
_STEPS, _STEP_SECONDS = 30, 0.001  # looks at a thread that runs, and the longest time between two
_CALL_SECONDS = 5.0  # for the call itself, when it can be abandoned
_CALL_PATIENCE = 30.0  # when it cannot: it is inside the loader
_MMAP, _MPROTECT, _MUNMAP = 9, 10, 11
_RW, _RX = 3, 5
_PRIVATE_ANON = 0x22
# Signals of the instruction itself stay open: the kernel would kill a thread that blocks them.
_SYNCHRONOUS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP, signal.SIGSYS}
_BLOCK_ALL = (1 << 64) - 1 & ~sum(1 << (number - 1) for number in _SYNCHRONOUS)
_EALREADY, _ENOSYS = -114, -38
_WORD64 = (1 << 64) - 1


@dataclass(frozen=True)
class Injection:
    """What was done: in which thread, how long it was away (seconds), and whether an agent ran already."""

    tid: int
    seconds: float
    already: bool


class _NotNow(Exception):
    """This thread cannot be borrowed at the moment."""


def inject(target: Target, library: Path, socket: Path) -> Injection:
    """Has the process load `library` and call ud_join(socket, 0). Raises UdedupError."""
    with guarded(target.pid):
        memory = Memory(target.pid)
        try:
            return _inject(target, memory, library, socket)
        finally:
            memory.close()


def _inject(target: Target, memory: Memory, library: Path, socket: Path) -> Injection:
    try:
        process = borrow.survey(target.pid, memory)
        texts = (str(library), str(socket), "ud_join")
        words = {name: process.function(name) for name in ("dlopen", "dlsym", "dlerror")}
        words["errno_location"] = process.function("__errno_location")
    except (LookupError, ValueError) as error:
        raise UdedupError(
            f"process {target.pid} ({target.comm}) has no glibc that can be called ({error}); "
            "start it under `udedup run`"
        ) from None
    deadline = time.monotonic() + _GIVE_UP
    reason, pause = "has no thread that sleeps", 0.001
    while time.monotonic() < deadline:
        for tid in borrow.candidates(target.pid):
            try:
                return _in_own_thread(functools.partial(_with_thread, process, tid, words, texts))
            except _NotNow as why:
                reason = f"thread {tid} {why}"
            if time.monotonic() > deadline:
                break
        process.maps = read_maps(target.pid)
        process.arenas = glibc.arenas(memory, process.libc)
        time.sleep(pause)
        pause = min(pause * 2, 0.1)
    raise UdedupError(
        f"no thread of process {target.pid} could be borrowed in {_GIVE_UP:.0f} s ({reason}); "
        "try again, or start it under `udedup run`"
    )


def _in_own_thread(attempt: Callable[[], Injection]) -> Injection:
    """Runs it in a thread that ends with it; Ctrl-C waits for the few milliseconds it takes.

    The thread is the tracer: when it ends, the kernel lets go of what it still traced, even of a thread
    that would not stop (asleep in vfork) and would otherwise be caught by our stop when it wakes.
    """
    outcome: list[Injection | BaseException] = []

    def run() -> None:
        try:
            outcome.append(attempt())
        except BaseException as error:
            outcome.append(error)

    tracer = threading.Thread(target=run, name="udedup-tracer")
    with _interrupts_later():
        tracer.start()
        tracer.join()
    if isinstance(outcome[0], BaseException):
        raise outcome[0]
    return outcome[0]


@contextlib.contextmanager
def _interrupts_later() -> Iterator[None]:
    """SIGINT acts when the block has ended. To catch it would not do: it may come anywhere, and twice."""
    if threading.current_thread() is not threading.main_thread():
        yield  # no signal handler of Python's runs here
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_DFL if before is None else before)
        if came and callable(before):
            before(signal.SIGINT, None)


def _with_thread(
    process: borrow.Process, tid: int, words: dict[str, int], texts: tuple[str, str, str]
) -> Injection:
    tracee = Tracee(tid)
    try:
        tracee.__enter__()
    except PermissionError:
        raise UdedupError(why_refused(process.pid)) from None
    except ProcessLookupError:
        raise _NotNow("ended") from None
    try:
        for _ in range(_STEPS):
            began = time.monotonic()
            regs = _stop(tracee)
            reason = borrow.why_not(process, tracee, regs)
            if reason is None:
                result = _Loan(process, tracee, regs).call_join(words, texts)
                return Injection(tid, time.monotonic() - began, result == _EALREADY)
            tracee.set_registers(frame.original(regs))
            if frame.in_syscall(regs):
                break
            tracee.resume()
            time.sleep(random.uniform(0, _STEP_SECONDS))  # it runs: a moment later it may be out of libc
        raise _NotNow(reason)
    finally:
        tracee.__exit__()


def _stop(tracee: Tracee) -> Registers:
    try:
        if not tracee.interrupt(0.2):
            raise _NotNow("does not stop")
    except ProcessLookupError:
        raise _NotNow("ended") from None
    except OSError:
        raise _NotNow("is stopped by a signal") from None
    return tracee.registers()


class _Loan:
    """A stopped thread that has been found fit."""

    def __init__(self, process: borrow.Process, tracee: Tracee, regs: Registers) -> None:
        self.process, self.tracee, self.before = process, tracee, regs
        self.memory = process.memory
        self.xstate = tracee.xstate()
        self.mask = tracee.signal_mask()
        self.frame = frame.build(regs, self.xstate, self.mask, process.restore_rt)

    def call_join(self, words: dict[str, int], texts: tuple[str, str, str]) -> int:
        """What ud_join returned, with the thread back where it was. Raises UdedupError, OSError."""
        self.memory.write(self.frame.address, self.frame.data)
        area = self._remote(_MMAP, 0, frame.AREA_BYTES, _RW, _PRIVATE_ANON, _WORD64, 0)
        if not 0 < frame.signed(area) < 1 << 47:
            self._give_back()
            raise UdedupError(f"process {self.process.pid} has no memory left for a call; {_errno(area)}")
        words = {**words, "gadget": self.process.gadget, "back": self.frame.address}
        words |= {"area": area, "length": frame.AREA_BYTES}
        words |= frame.words_of(self.frame, self.before, self.mask)
        data = area + frame.PAGE
        self.memory.write(area, frame.code_page(data, frame.timed(self.before)))
        self.memory.write(data, frame.data_page(words, *texts))
        back = self._unmapping_first(area)
        refused = frame.signed(self._remote(_MPROTECT, area, frame.PAGE, _RX, back=back))
        if refused:
            self._unmap_and_give_back(area)
            raise UdedupError(
                f"process {self.process.pid} may not make memory executable ({_errno(refused)}); "
                "start it under `udedup run`"
            )
        self._start(rip=area, rsp=area + frame.AREA_BYTES - 64)
        self._run_to_mark(area)
        answer = _Answer(self.memory, data)
        self._unmap_and_give_back(area)
        return answer.check(self.process.pid)

    def _start(self, **changes: int) -> None:
        """Sets the thread up for a call that ends in the frame. The first such step makes the frame count."""
        regs = frame.copy(self.before)
        regs.orig_rax = _WORD64
        regs.eflags &= ~0x40500  # no AC, DF, TF
        for name, value in changes.items():
            setattr(regs, name, value)
        self.tracee.set_registers(regs)
        # Only now: if we died with the mask set and the old registers, it would stay set.
        self.tracee.set_signal_mask(_BLOCK_ALL)

    def _unmapping_first(self, area: int) -> int:
        """Where a call returns to that shall be followed by munmap(area)."""
        regs = frame.copy(self.before)
        regs.rip, regs.rax, regs.rdi, regs.rsi = self.process.gadget, _MUNMAP, area, frame.AREA_BYTES
        step = frame.before(self.frame, regs, _BLOCK_ALL, self.process.restore_rt)
        self.memory.write(step.address, step.data)
        return step.address

    def _remote(self, number: int, *arguments: int, back: int = 0) -> int:
        """One system call in the thread; it is left at the call's exit."""
        names = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
        changes = dict(zip(names, arguments, strict=False))
        self._start(rip=self.process.gadget, rsp=back or self.frame.address, rax=number, **changes)
        self._to_syscall()  # its entry
        self._to_syscall()  # its exit
        return int(self.tracee.registers().rax)

    def _to_syscall(self) -> None:
        while True:
            self.tracee.to_syscall()
            event = self.tracee.wait(time.monotonic() + _CALL_SECONDS)
            if event is None:
                raise UdedupError(f"process {self.process.pid} does not go on; is the machine overloaded?")
            if event[0] == "syscall":
                return

    def _run_to_mark(self, area: int) -> None:
        """Runs our code up to the mark, where its answer stands in the data page."""
        deadline = time.monotonic() + _CALL_SECONDS
        patience = time.monotonic() + _CALL_PATIENCE
        self.tracee.to_syscall()
        while True:
            event = self.tracee.wait(deadline)
            if event is None:
                if time.monotonic() > patience or not self._inside_loader():
                    self._abandon(area, "waits for a lock that is not given")
                deadline = time.monotonic() + 1
                continue
            kind, number = event
            if kind == "signal" and number in _SYNCHRONOUS:
                self._abandon(area, f"met {signal.Signals(number).name}")
            regs = self.tracee.registers()
            ours = area <= regs.rip < area + frame.PAGE and regs.orig_rax == frame.MARK
            if kind == "syscall" and ours and frame.signed(regs.rax) != _ENOSYS:  # its exit
                return
            self.tracee.to_syscall()

    def _inside_loader(self) -> bool:
        return glibc.owns_loader_lock(self.memory, self.process.loader, self.tracee.tid)

    def _abandon(self, area: int, why: str) -> None:
        if self.tracee.stopped or self.tracee.interrupt(1.0):
            self._unmap_and_give_back(area)
        raise UdedupError(
            f"loading into process {self.process.pid} was given up: the call {why}; start it under "
            "`udedup run`"
        )

    def _unmap_and_give_back(self, area: int) -> None:
        self._remote(_MUNMAP, area, frame.AREA_BYTES)
        self._give_back()

    def _give_back(self) -> None:
        """At a stop where the kernel still restarts system calls, everything is put back as it was found."""
        self.tracee.trap_soon()
        self.tracee.resume()
        while True:
            event = self.tracee.wait(time.monotonic() + _CALL_SECONDS)
            if event is None:
                return  # it will go back by the frame
            if event[0] != "signal":
                break
            self.tracee.resume(event[1])
        self.tracee.set_xstate(self.xstate)
        self.tracee.set_signal_mask(self.mask)
        self.tracee.set_registers(frame.original(self.before))


class _Answer:
    """What the code left in the data page."""

    def __init__(self, memory: Memory, data: int) -> None:
        self.handle, self.function, result, error = memory.words(data + frame.WORD["handle"], 4)
        self.result = int.from_bytes((result & 0xFFFFFFFF).to_bytes(4, "little"), "little", signed=True)
        self.error = memory.text(error) if error else ""

    def check(self, pid: int) -> int:
        if not self.handle:
            raise UdedupError(
                f"process {pid} cannot load the library: {self.error}; start it under `udedup run`"
            )
        if not self.function:
            raise UdedupError(
                f"process {pid} has another libudedup.so: {self.error}; restart it under `udedup run`"
            )
        if self.result and self.result != _EALREADY:
            raise UdedupError(
                f"process {pid} loaded the library, but its agent did not start: "
                f"{_errno(self.result)}; see `udedup doctor`"
            )
        return self.result


def _errno(value: int) -> str:
    number = -frame.signed(value) if value > 1 << 63 else abs(value)
    return os.strerror(number)
