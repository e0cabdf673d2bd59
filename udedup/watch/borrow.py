"""Which thread of a running process may be borrowed for a call into the dynamic loader, and when.

Only that one thread is stopped. The others run on: one of them may hold a lock the call has to wait for.
Locks that the borrowed thread holds itself would never be given, so it must be seen to hold none (glibc.py).
"""

import re
from dataclasses import dataclass
from pathlib import Path

from udedup.watch import frame, glibc
from udedup.watch.elf import Image, Memory, images
from udedup.watch.memory import Mapping, read_maps
from udedup.watch.tracer import Registers, Tracee

# x86-64 calls a thread may sleep in for long. Those first that the kernel restarts from their arguments.
_SLEEPS = (0, 23, 34, 42, 43, 45, 47, 61, 73, 130, 202, 230, 247, 270, 271, 288, 299)
_SLEEPS_EINTR = (65, 70, 128, 208, 220, 232, 281, 441)  # repaired by frame.original
_SLEEPS_TIMED = (7, 35, 219)  # poll, nanosleep, restart_syscall: their rest of time is the kernel's
_FUTEX = 202
_RANK = {**dict.fromkeys(_SLEEPS, 0), **dict.fromkeys(_SLEEPS_EINTR, 1), **dict.fromkeys(_SLEEPS_TIMED, 2)}
_RUNS = 3
_ALLOCATORS = re.compile(r"lib(jemalloc|mimalloc|tcmalloc|snmalloc|rpmalloc|hoard)")
_LIBC = re.compile(r"/libc(\.so\.6|-2\.\d+\.so)$")
_LOADER = re.compile(r"/(ld-linux[^/]*|ld-2\.\d+)\.so(\.\d+)?$")
_NEVER_INSIDE = re.compile(r"/(libc|ld-linux|ld-2|libpthread|libdl|libjemalloc|libmimalloc|libtcmalloc)[.-]")
_STACK_LOOK = 65536
_FRAMES_BYTES = 1024  # red zone, two frames without their vector state, alignment
_RESTORE_RT = bytes.fromhex("48c7c00f0000000f05")
_SYSCALL_RET = bytes.fromhex("0f05c3")


@dataclass
class Process:
    """What the tracer knows of the target's memory."""

    pid: int
    memory: Memory
    maps: list[Mapping]
    libc: Image
    loader: Image
    arenas: list[int] | None
    restore_rt: int
    gadget: int
    allocator: bool

    def function(self, name: str) -> int:
        """Address of a function of libc. Raises LookupError."""
        found = self.libc.find(name)
        if found is None:
            raise LookupError(name)
        return found.address

    def mapping_of(self, address: int) -> Mapping | None:
        return next((m for m in self.maps if m.start <= address < m.end), None)


def survey(pid: int, memory: Memory) -> Process:
    """Finds libc, the loader and malloc's locks. Raises LookupError for a program without glibc, OSError."""
    maps = read_maps(pid)
    files = images(maps)
    libc = _image(memory, files, _LIBC)
    loader = _image(memory, files, _LOADER)
    restore_rt, gadget = libc.find_code(_RESTORE_RT), libc.find_code(_SYSCALL_RET)
    if restore_rt is None or gadget is None:
        raise LookupError("rt_sigreturn in libc")
    allocator = any(_ALLOCATORS.search(name) for name in files)
    return Process(pid, memory, maps, libc, loader, glibc.arenas(memory, libc), restore_rt, gadget, allocator)


def _image(memory: Memory, files: dict[str, list[Mapping]], name: re.Pattern[str]) -> Image:
    for path, mappings in files.items():
        if name.search(path.removesuffix(" (deleted)")):
            return Image(memory, mappings)
    raise LookupError(name.pattern)


def candidates(pid: int) -> list[int]:
    """Thread ids, those first that sleep where they can be borrowed best. Raises OSError."""
    ranked = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        try:
            if (task / "comm").read_text(errors="replace").strip() == "udedup-agent":
                continue
            words = (task / "syscall").read_text().split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        rank = _RANK.get(int(words[0])) if len(words) > 2 else _RUNS
        if rank is not None:
            ranked.append((rank, int(task.name)))
    return [tid for _, tid in sorted(ranked)]


def why_not(process: Process, tracee: Tracee, regs: Registers) -> str | None:
    """None if the stopped thread can be borrowed now; else why not."""
    if (regs.cs & 0xFFFF) != 0x33:
        return "runs 32-bit code"
    asleep = frame.in_syscall(regs)
    reason = _asleep(process, regs) if asleep else _running(process, tracee, regs)
    room = len(tracee.xstate()) + _FRAMES_BYTES
    return reason or _stack(process, regs, room) or _locks(process, tracee)


def _asleep(process: Process, regs: Registers) -> str | None:
    number = regs.orig_rax
    if number not in _RANK:
        return f"is in system call {number}"
    if number == _FUTEX:
        data = process.libc.writable() + process.loader.writable()
        inside = any(m.start <= regs.rdi < m.end for m in data)
        if inside or regs.rdi in (process.arenas or ()):
            return "waits for a lock of libc"
    return None


def _running(process: Process, tracee: Tracee, regs: Registers) -> str | None:
    where = process.mapping_of(regs.rip)
    if process.arenas is None:
        return "runs, and malloc's locks are not known here"
    if where is None or where.name.startswith("[v") or _NEVER_INSIDE.search(where.name):
        return "runs inside libc"
    rseq = tracee.rseq_address()
    if rseq and process.memory.words(rseq + 8, 1)[0]:
        return "is in a restartable sequence"
    return None


def _stack(process: Process, regs: Registers, room: int) -> str | None:
    """Room for the frame, and no signal handler (which may have interrupted malloc) among its callers."""
    stack = process.mapping_of(regs.rsp)
    if stack is None or regs.rsp - stack.start < room:
        return "has no room on its stack"
    words = process.memory.words(regs.rsp & ~7, min(_STACK_LOOK, stack.end - (regs.rsp & ~7)) // 8)
    if process.restore_rt in words:
        return "is in a signal handler"
    if process.allocator:
        text = [m for m in process.maps if "x" in m.perms and _ALLOCATORS.search(m.name)]
        if any(m.start <= word < m.end for m in text for word in words[:2048]):
            return "is inside malloc"
    return None


def _locks(process: Process, tracee: Tracee) -> str | None:
    if glibc.owns_loader_lock(process.memory, process.loader, tracee.tid):
        return "is inside the dynamic loader"
    if process.arenas and not glibc.seen_free(process.memory, process.arenas, 0.02):
        return "may hold malloc's lock"
    return None
