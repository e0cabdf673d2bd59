"""A process somebody named: is it there, may we look, can a library be brought in? Every no has its remedy.

Raises udedup.errors.UdedupError ("cause; remedy") everywhere.
"""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from udedup.errors import UdedupError
from udedup.program import why_not_preloadable

_KERNEL_THREAD = 0x00200000  # PF_KTHREAD, field 9 of stat
PROC = Path("/proc")
_YAMA = Path("/proc/sys/kernel/yama/ptrace_scope")
_SCOPES = {
    1: "kernel.yama.ptrace_scope is 1, so only its parents may; "
    "start it under `udedup run`, be root, or set the sysctl to 0",
    2: "kernel.yama.ptrace_scope is 2, so only root may; use sudo, or start it under `udedup run`",
    3: "kernel.yama.ptrace_scope is 3, so nobody may until reboot; start it under `udedup run`",
}


@dataclass(frozen=True)
class Target:
    """A living process of user space. `started` (clock ticks since boot) tells it from a later one of its
    pid.
    """

    pid: int
    comm: str
    uid: int
    started: int

    @property
    def proc(self) -> Path:
        return PROC / str(self.pid)

    def alive(self) -> bool:
        """True while the process runs and is no zombie."""
        try:
            _, state, _, started = _stat(self.pid)
        except OSError:
            return False
        return started == self.started and state not in "ZX"


def status(pid: int) -> dict[str, str]:
    """The fields of /proc/PID/status. Raises OSError."""
    text = (PROC / str(pid) / "status").read_text(errors="replace")
    return {key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}


def _stat(pid: int) -> tuple[str, str, int, int]:
    """comm, state, flags, start time of /proc/PID/stat."""
    text = (PROC / str(pid) / "stat").read_text(errors="replace")
    head, _, rest = text.rpartition(")")
    fields = rest.split()
    return head.partition("(")[2], fields[0], int(fields[6]), int(fields[19])


def find(pid: int) -> Target:
    """The process, if it can be looked at: not gone, no kernel thread, no zombie, no mere thread."""
    try:
        comm, state, flags, started = _stat(pid)
        fields = status(pid)
    except (FileNotFoundError, ProcessLookupError):
        raise UdedupError(f"no process {pid}; `udedup ps --all` lists what there is") from None
    if flags & _KERNEL_THREAD:
        raise UdedupError(f"{pid} ({comm}) is a kernel thread; it has no memory to merge, choose a program")
    if int(fields["Tgid"]) != pid:
        raise UdedupError(f"{pid} is a thread; watch its process, {fields['Tgid']}")
    if state in "ZX":
        raise UdedupError(
            f"{pid} ({comm}) is a zombie; its memory is gone, its parent {fields['PPid']} has to reap it"
        )
    return Target(pid, comm, int(fields["Uid"].split()[1]), started)


@contextlib.contextmanager
def guarded(pid: int) -> Iterator[None]:
    """Turns what the kernel says when a process ends or is not ours into an UdedupError."""
    try:
        yield
    except (FileNotFoundError, ProcessLookupError) as error:
        if isinstance(error, FileNotFoundError) and (PROC / str(pid)).exists() and not _is_ending(pid):
            raise
        raise UdedupError(f"process {pid} ended meanwhile; nothing was left behind in it") from None
    except PermissionError:
        raise UdedupError(why_refused(pid)) from None


def check_readable(pid: int) -> None:
    """Raises UdedupError unless the process's memory may be read."""
    with guarded(pid):
        (PROC / str(pid) / "pagemap").open("rb").close()


def _is_ending(pid: int) -> bool:
    try:
        return _stat(pid)[1] in "ZX"
    except OSError:
        return True


def ptrace_scope() -> int:
    """Yama's setting; 0 where there is no Yama."""
    try:
        return int(_YAMA.read_text())
    except (OSError, ValueError):
        return 0


def why_refused(pid: int) -> str:
    """Cause and remedy when the kernel does not let us read or trace the process."""
    try:
        fields = status(pid)
    except OSError:
        return f"process {pid} ended meanwhile; nothing was left behind in it"
    uids = {int(uid) for uid in fields["Uid"].split()}
    if os.geteuid() != 0 and uids != {os.geteuid()}:
        return (
            f"process {pid} belongs to uid {min(uids - {os.geteuid()})}, not to you; run udedup "
            "as that user or root"
        )
    scope = ptrace_scope()
    if scope in _SCOPES:
        return f"may not look into process {pid}: {_SCOPES[scope]}"
    if os.geteuid() == 0:
        return f"root is refused to look into process {pid}; give this container CAP_SYS_PTRACE"
    return f"process {pid} is protected (setuid or PR_SET_DUMPABLE 0); run udedup as root"


def check_injectable(target: Target, library: Path) -> None:
    """Raises unless `library` can be loaded into the running process by ptrace."""
    pid = target.pid
    with guarded(pid):
        fields = status(pid)
        _check_tracer(target, fields)
        _check_namespaces(target, library)
        reason = why_not_preloadable(target.proc / "exe")
        if reason and "setuid" not in reason and "capabilities" not in reason:
            raise UdedupError(
                f"nothing can be loaded into {pid} ({target.comm}): {reason}; build it with glibc, 64 bit"
            )
        if fields["State"].startswith(("T", "t")):
            raise UdedupError(f"process {pid} is stopped; `kill -CONT {pid}` first")
        if "shstk" in fields.get("x86_Thread_features", ""):
            raise UdedupError(f"process {pid} runs with a shadow stack; start it under `udedup run`")
        if os.uname().machine != "x86_64":
            raise UdedupError(
                "loading into a running process is written for x86-64; start it under `udedup run`"
            )


def _check_tracer(target: Target, fields: dict[str, str]) -> None:
    tracer = int(fields.get("TracerPid", "0"))
    if not tracer:
        return
    try:
        name = f"{_stat(tracer)[0]}, pid {tracer}"
    except OSError:
        name = f"pid {tracer}"
    raise UdedupError(f"process {target.pid} is traced by {name}; detach or quit that first")


def _check_namespaces(target: Target, library: Path) -> None:
    for kind in ("pid", "mnt"):
        if (target.proc / "ns" / kind).readlink() == (PROC / "self" / "ns" / kind).readlink():
            continue
        if kind == "pid":
            raise UdedupError(
                f"process {target.pid} is in another pid namespace (a container); run udedup "
                "inside that container"
            )
        if not _same_file(target.proc / "root" / library.relative_to("/"), library):
            raise UdedupError(
                f"process {target.pid} is in another mount namespace and cannot see {library}; "
                "install and run udedup inside it"
            )


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """Pids of all living descendants, oldest first within a parent. Those that end meanwhile are left out."""
    found: list[int] = []
    queue = [pid]
    while queue:
        parent = queue.pop(0)
        for task in _list(PROC / str(parent) / "task"):
            try:
                queue_more = [int(word) for word in (task / "children").read_text().split()]
            except OSError:
                continue
            found += queue_more
            queue += queue_more
    return found


def _list(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
