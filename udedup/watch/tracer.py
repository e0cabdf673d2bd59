"""One thread of another process under ptrace, by python-ptrace's binding.

PTRACE_SEIZE, so that nothing is stopped by attaching and no SIGSTOP is seen; when we die in whatever state,
the kernel lets the thread go on with the registers it has then. Raises OSError; ProcessLookupError when the
thread has ended.
"""

import ctypes
import os
import time
from typing import TYPE_CHECKING, Any

from ptrace.binding import func
from ptrace.error import PtraceError

_SEIZE, _INTERRUPT = 0x4206, 0x4207
_GETREGSET, _SETREGSET = 0x4204, 0x4205
_GETSIGMASK, _SETSIGMASK = 0x420A, 0x420B
_GET_RSEQ = 0x420F
_TRACESYSGOOD = 1
_XSTATE = 0x202  # NT_X86_XSTATE
_WALL = 0x40000000
_EVENT_STOP = 128
_SIGTRAP = 5
_SPINS = 200

if TYPE_CHECKING:
    Registers = Any
else:
    #: The registers, as python-ptrace has them (struct user_regs_struct).
    Registers = func.ptrace_registers_t


class Gone(ProcessLookupError):
    """The thread ended while it was traced."""


class Tracee:
    """A seized thread. Use as a context: on leaving, a stopped one is let go."""

    def __init__(self, tid: int) -> None:
        self.tid = tid
        self.stopped = False
        self.seized = False

    def __enter__(self) -> "Tracee":
        self._call(_SEIZE, 0, _TRACESYSGOOD)
        self.seized = True
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.release()
        except OSError:
            pass  # it ended

    def _call(self, request: int, address: int = 0, data: int = 0) -> None:
        try:
            func.ptrace(request, self.tid, address, data)
        except PtraceError as error:
            raise OSError(error.errno, os.strerror(error.errno)) from None

    def interrupt(self, seconds: float) -> bool:
        """Stops it. False if it does not stop in time: asleep where nothing wakes it."""
        self._call(_INTERRUPT)
        deadline = time.monotonic() + seconds
        while True:
            event = self.wait(deadline)
            if event is None:
                return False
            kind, signal = event
            if kind == "stop":
                return True
            if kind == "group-stop":
                raise OSError(16, "stopped by a signal")
            self.resume(signal if kind == "signal" else 0)

    def wait(self, deadline: float) -> tuple[str, int] | None:
        """The next stop: ("stop"|"group-stop"|"syscall"|"signal", signal); None at the deadline."""
        looks = 0
        while True:
            pid, status = os.waitpid(self.tid, _WALL | os.WNOHANG)
            if pid:
                break
            if time.monotonic() > deadline:
                return None
            looks += 1
            if looks < _SPINS:
                os.sched_yield()  # most stops come within microseconds, and the thread is away from its work
            else:
                time.sleep(0.0005)
        if not os.WIFSTOPPED(status):
            self.seized = self.stopped = False
            raise Gone(3, "the thread ended")
        self.stopped = True
        signal = os.WSTOPSIG(status)
        if status >> 16 == _EVENT_STOP:
            return ("stop" if signal == _SIGTRAP else "group-stop"), signal
        if signal == _SIGTRAP | 0x80:
            return "syscall", 0
        return "signal", signal

    def resume(self, signal: int = 0) -> None:
        self._call(func.PTRACE_CONT, 0, signal)
        self.stopped = False

    def to_syscall(self) -> None:
        """Runs on to the next entry into or exit from the kernel."""
        self._call(func.PTRACE_SYSCALL)
        self.stopped = False

    def trap_soon(self) -> None:
        """Arms a stop that comes before the next instruction of user space."""
        self._call(_INTERRUPT)

    def release(self) -> None:
        """Lets the thread go. One that does not stop is let go by the kernel when our own thread ends."""
        if self.seized and (self.stopped or self.interrupt(0.5)):
            self._call(func.PTRACE_DETACH)
        self.seized = self.stopped = False

    def registers(self) -> Registers:
        regs = Registers()
        self._call(func.PTRACE_GETREGS, 0, ctypes.addressof(regs))
        return regs

    def set_registers(self, regs: Registers) -> None:
        self._call(func.PTRACE_SETREGS, 0, ctypes.addressof(regs))

    def xstate(self) -> bytes:
        """FPU and vector registers, as XSAVE lays them out."""
        buffer = ctypes.create_string_buffer(65536)
        iov = (ctypes.c_uint64 * 2)(ctypes.addressof(buffer), len(buffer))
        self._call(_GETREGSET, _XSTATE, ctypes.addressof(iov))
        return buffer.raw[: iov[1]]

    def set_xstate(self, data: bytes) -> None:
        buffer = ctypes.create_string_buffer(data, len(data))
        iov = (ctypes.c_uint64 * 2)(ctypes.addressof(buffer), len(data))
        self._call(_SETREGSET, _XSTATE, ctypes.addressof(iov))

    def signal_mask(self) -> int:
        mask = ctypes.c_uint64()
        self._call(_GETSIGMASK, 8, ctypes.addressof(mask))
        return mask.value

    def set_signal_mask(self, mask: int) -> None:
        value = ctypes.c_uint64(mask)
        self._call(_SETSIGMASK, 8, ctypes.addressof(value))

    def rseq_address(self) -> int:
        """Where the thread's restartable-sequence area lies; 0 if it has none or the kernel does not tell."""
        config = (ctypes.c_uint64 * 3)()  # pointer, size and signature, flags and pad
        try:
            self._call(_GET_RSEQ, ctypes.sizeof(config), ctypes.addressof(config))
        except OSError:
            return 0
        return int(config[0])
