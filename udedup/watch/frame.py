"""What a borrowed thread runs: system calls and calls of ours that end by themselves in rt_sigreturn.

A frame as the kernel makes for a signal is laid below the thread's stack, with all its registers, vector
state and signal mask. Whatever we have the thread do, the return address it finds is libc's `__restore_rt`,
so it goes back to what it did even if we are killed at any instruction in between.

      thread's stack                          our area (mmap, gone at the end)
      ┌───────────────────────────┐           ┌───────────────────────────────┐
      │ its frames                │           │ code: page 0, read and execute │
      │ 128 bytes red zone        │           │ words and texts: page 1        │
      │ vector state (xsave)      │           │ stack of the call              │
      │ ucontext: its registers   │           └───────────────────────────────┘
      │ address of __restore_rt   │ ◀── rsp of every call
      └───────────────────────────┘

Between mmap and the start of our code a second frame stands before the first: it unmaps the area. So only a
kill in the instant after mmap leaves something, 256 KiB of address space without a page.
"""

import struct
from dataclasses import dataclass

from udedup.watch.tracer import Registers

_RED_ZONE = 128
_UC_FLAGS = 7  # UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS
_UC_BYTES = 304
_NO_ALTSTACK = 0x7FFFFFFF  # refused by sigaltstack(2): leaves the thread's own as it is
_FP_MAGIC1, _FP_MAGIC2 = 0x46505853, 0x46505845
_GREGS = [
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rdi",
    "rsi", "rbp", "rbx", "rdx", "rax", "rcx", "rsp", "rip", "eflags",
]  # fmt: skip
_RESTART = {-512, -513, -514, -516}  # ERESTARTSYS, NOINTR, NOHAND, RESTARTBLOCK
_RESTART_NOHAND, _RESTARTBLOCK = -514, -516
MARK = 39  # getpid
_EINTR = -4
_CLOSE = 3
_SYSCALL_BYTES = 2


def signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def copy(regs: Registers) -> Registers:
    return Registers.from_buffer_copy(regs)


def in_syscall(regs: Registers) -> bool:
    return signed(regs.orig_rax) >= 0


def original(regs: Registers) -> Registers:
    """What to give back at a stop, so that the interruption does not show.

    A call that our stop made return EINTR is told to be restarted unless a handler runs: what the kernel
    itself does with most calls. close(2) has closed its descriptor even when it says EINTR.
    """
    back = copy(regs)
    if in_syscall(regs) and signed(regs.rax) == _EINTR and regs.orig_rax != _CLOSE:
        back.rax = _RESTART_NOHAND & (1 << 64) - 1
    return back


def resumed(regs: Registers) -> Registers:
    """The same for rt_sigreturn, where the kernel restarts nothing: the call is made again from its start."""
    back = original(regs)
    if in_syscall(back) and signed(back.rax) in _RESTART:
        back.rax = back.orig_rax
        back.rip -= _SYSCALL_BYTES
    return back


@dataclass(frozen=True)
class Frame:
    """Bytes to lay at `address`; a call starts with rsp = address and returns through them."""

    address: int
    data: bytes


def build(regs: Registers, xstate: bytes, mask: int, restore_rt: int) -> Frame:
    """The frame that brings the thread back to `regs`."""
    state = _signal_xstate(xstate)
    state_at = (regs.rsp - _RED_ZONE - len(state)) & ~63
    context_at = (state_at - _UC_BYTES) & ~15
    data = struct.pack("<Q", restore_rt) + _context(resumed(regs), state_at, mask)
    data += bytes(state_at - context_at - _UC_BYTES) + state
    return Frame(context_at - 8, data)


def before(frame: Frame, regs: Registers, mask: int, restore_rt: int) -> Frame:
    """A frame to be gone through before `frame`: it sets `regs` (their rsp is taken from here), vectors
    cleared.
    """
    step = copy(regs)
    step.rsp = frame.address
    context_at = (frame.address - _UC_BYTES) & ~15
    data = struct.pack("<Q", restore_rt) + _context(step, 0, mask)
    return Frame(context_at - 8, data)


def _context(regs: Registers, state_at: int, mask: int) -> bytes:
    """struct ucontext of the kernel."""
    data = struct.pack("<QQQQQ", _UC_FLAGS if state_at else _UC_FLAGS & ~1, 0, 0, _NO_ALTSTACK, 0)
    data += struct.pack("<18Q", *(getattr(regs, name) & (1 << 64) - 1 for name in _GREGS))
    data += struct.pack("<4H", regs.cs, 0, 0, regs.ss)
    data += struct.pack("<4Q", 0, 0, 0, 0)  # err, trapno, oldmask, cr2
    data += struct.pack("<9Q", state_at, *[0] * 8)
    return data + struct.pack("<Q", mask)


def _signal_xstate(xstate: bytes) -> bytes:
    """The ptrace regset as sigreturn wants it: with its size, its features and two marks."""
    (features,) = struct.unpack_from("<Q", xstate, 464)
    marks = struct.pack("<IIQI", _FP_MAGIC1, len(xstate) + 4, features, len(xstate))
    return xstate[:464] + marks + xstate[464 + len(marks) :] + struct.pack("<I", _FP_MAGIC2)


# ---- the area
# ---------------------------------------------------------------------------------------------------

PAGE = 4096
AREA_BYTES = 64 * PAGE
# Words of the data page, by offset.
_WORDS = [
    "dlopen", "dlsym", "dlerror", "errno_location", "gadget", "back",
    "area", "length", "handle", "function", "result", "error",
    "mask", "frame_rax", "frame_rip", "rip",
]  # fmt: skip
WORD = {name: 8 * index for index, name in enumerate(_WORDS)}
_PATH, _SOCKET, _NAME = 512, 1536, 2048


def data_page(words: dict[str, int], path: str, socket: str, name: str) -> bytes:
    """The second page of the area. Raises ValueError for a text that is too long."""
    page = bytearray(PAGE)
    for key, value in words.items():
        struct.pack_into("<Q", page, WORD[key], value)
    for at, text, room in ((_PATH, path, 1024), (_SOCKET, socket, 512), (_NAME, name, 512)):
        data = text.encode() + b"\0"
        if len(data) > room:
            raise ValueError(f"path too long: {text}")
        page[at : at + len(data)] = data
    return bytes(page)


def _rbx(opcode: str, name: str) -> bytes:
    """An instruction on the word `name`, addressed by rbx with a 32-bit displacement."""
    return bytes.fromhex(opcode) + struct.pack("<i", WORD[name])


def _lea(opcode: str, offset: int) -> bytes:
    return bytes.fromhex(opcode) + struct.pack("<i", offset)


def _restart() -> bytes:
    """Sleeps on for what was left of the thread's time, and has the frame return what came of it."""
    return (
        _lea("488db3", WORD["mask"])  # rsi = &mask
        + bytes.fromhex(
            "bf02000000 31d2 41ba08000000 b80e000000 0f05"
        )  # rt_sigprocmask(SIG_SETMASK, rsi, 0, 8)
        + bytes.fromhex("b8db000000 0f05")  # restart_syscall()
        + _rbx("488b8b", "frame_rax")
        + bytes.fromhex("488901")  # [rcx] = rax
        + _rbx("488b8b", "frame_rip")
        + _rbx("488b93", "rip")
        + bytes.fromhex("488911")  # [rcx] = rdx
    )


def words_of(frame: Frame, regs: Registers, mask: int) -> dict[str, int]:
    """What the code has to know to restart the call the thread slept in."""
    context = frame.address + 8 + 40
    return {
        "mask": mask,
        "frame_rax": context + 8 * _GREGS.index("rax"),
        "frame_rip": context + 8 * _GREGS.index("rip"),
        "rip": regs.rip,
    }


def timed(regs: Registers) -> bool:
    """True if the rest of its sleep is known to the kernel alone (ERESTART_RESTARTBLOCK): poll, nanosleep."""
    return in_syscall(regs) and signed(regs.rax) == _RESTARTBLOCK


def code_page(data_at: int, restart: bool) -> bytes:
    """dlopen(path), dlsym(name), name(socket, 0), errno as it was, a mark, munmap(area), and back.

    The mark is getpid(): there the tracer, if it lives, takes the thread. If not, and if `restart`, the
    thread sleeps on before it goes back.
    """
    fail = _rbx("ff93", "dlerror") + _rbx("488983", "error")  # call dlerror; error = rax
    join = (
        _rbx("488983", "function")  # function = rax
        + _lea("488dbb", _SOCKET)  # rdi = socket
        + bytes.fromhex("31f6")  # esi = 0: all regions
        + _rbx("ff93", "function")
        + _rbx("488983", "result")
        + b"\xeb"
        + bytes([len(fail)])  # jmp over fail
    )
    sym = (
        _rbx("488983", "handle")
        + bytes.fromhex("4889c7")  # rdi = rax
        + _lea("488db3", _NAME)  # rsi = name
        + _rbx("ff93", "dlsym")
        + bytes.fromhex("4885c0")  # test rax, rax
        + b"\x74"
        + bytes([len(join)])  # je fail
    )
    start = (
        b"\x48\xbb"
        + struct.pack("<Q", data_at)  # rbx = data
        + _rbx("ff93", "errno_location")
        + bytes.fromhex("4989c5")  # r13 = rax
        + bytes.fromhex("458b6500")  # r12d = [r13]
        + _lea("488dbb", _PATH)
        + bytes.fromhex("be02000000")  # esi = RTLD_NOW
        + _rbx("ff93", "dlopen")
        + bytes.fromhex("4885c0")
        + b"\x74"
        + bytes([len(sym) + len(join)])
    )
    end = (
        bytes.fromhex("45896500")  # [r13] = r12d
        + b"\xb8"
        + struct.pack("<I", MARK)  # eax = getpid
        + bytes.fromhex("0f05")
        + (_restart() if restart else b"")
        + _rbx("488bbb", "area")  # rdi
        + _rbx("488bb3", "length")  # rsi
        + _rbx("488ba3", "back")  # rsp
        + bytes.fromhex("b80b000000")  # eax = munmap
        + _rbx("ffa3", "gadget")  # jmp: syscall; ret
    )
    return start + sym + join + fail + end
