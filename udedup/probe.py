"""What this machine offers for merging: each thing is tried, not guessed from a version number."""

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
_SYS_USERFAULTFD = {"x86_64": 323, "aarch64": 282}.get(platform.machine(), -1)
_UFFD_USER_MODE_ONLY = 1
_UFFDIO_API = 0xC018AA3F
_UFFD_WP_ASYNC = 1 << 0 | 1 << 13 | 1 << 15
_PAGEMAP_SCAN = 0xC0606610
_PROCMAP_QUERY = 0xC0686611
_ADDR_NO_RANDOMIZE = 0x0040000
_SEALS = 0xF  # SEAL, SHRINK, GROW, WRITE


@dataclass(frozen=True)
class Finding:
    """One line of `doctor`. ok None: neither good nor bad. needed: nothing merges without it."""

    name: str
    ok: bool | None
    needed: bool
    found: str
    remedy: str = ""
    key: str = ""  # short and stable, for --json

    def as_dict(self) -> dict[str, object]:
        return {"key": self.key, **asdict(self)}


def findings() -> Iterator[Finding]:
    """Tries everything, in the order in which it matters."""
    for probe in _PROBES:
        key = probe.__name__.strip("_")
        try:
            yield replace(probe(), key=key)
        except OSError as error:
            yield Finding(key, None, False, f"cannot be told: {error.strerror}", key=key)


def _hold() -> Finding:
    from udedup.core import lib

    name = "write-stop (ptrace of own threads)"
    result = lib.ud_probe_hold()
    if result >= 0:
        return Finding(name, True, True, f"works, {result} us")
    why = os.strerror(-result)
    fallback = park_us() >= 0
    if fallback:
        why += "; SIGURG parks the threads instead, unless one blocks it"
    scope = _read("/proc/sys/kernel/yama/ptrace_scope")
    remedy = (
        "allow ptrace in the seccomp profile (docker run --security-opt seccomp=...), or leave the debugger"
    )
    if scope == "3":
        remedy = "kernel.yama.ptrace_scope=3 forbids all ptrace until the next boot: boot with a lower value"
    elif scope == "2":
        remedy = "kernel.yama.ptrace_scope=2 forbids it: sysctl kernel.yama.ptrace_scope=1"
    return Finding(name, False, not fallback, f"refused: {why}", remedy)


def park_us() -> int:
    """Parks a thread of this process by SIGURG and lets it go: microseconds, or -errno."""
    from udedup.core import lib

    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        return int(lib.ud_probe_park())
    finally:
        end.set()
        thread.join()


def _park() -> Finding:
    name = "write-stop by signals (the fallback)"
    result = park_us()
    if result >= 0:
        return Finding(name, True, False, f"works, {result} us")
    return Finding(name, None, False, f"does not work here: {os.strerror(-result)}")


def _memfd() -> Finding:
    name = "sealed shared memory (memfd)"
    remedy = "allow memfd_create in the seccomp profile; Linux 3.17 or later"
    try:
        fd = os.memfd_create("udedup-probe", os.MFD_ALLOW_SEALING | os.MFD_CLOEXEC)
    except OSError as error:
        return Finding(name, False, True, f"refused: {error.strerror}", remedy)
    try:
        os.write(fd, b"x" * mmap.PAGESIZE)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        with mmap.mmap(fd, mmap.PAGESIZE, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as copy:
            copy[0] = 65
            sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS and os.pread(fd, 1, 0) == b"x"
    except OSError as error:
        return Finding(name, False, True, f"refused: {error.strerror}", remedy)
    finally:
        os.close(fd)
    return Finding(name, sealed, True, "works" if sealed else "does not seal", "" if sealed else remedy)


def _layout() -> Finding:
    name = "one layout for a pool (personality)"
    now = _libc.personality(0xFFFFFFFF)
    if now < 0 or _libc.personality(now | _ADDR_NO_RANDOMIZE) < 0:
        return Finding(
            name, False, False, "refused: " + os.strerror(ctypes.get_errno()),
            "allow personality(0x0040000) in the seccomp profile; without it Python pools merge very little",
        )  # fmt: skip
    _libc.personality(now)
    from udedup.layout import choose_shift

    if choose_shift() is None:
        return Finding(
            name, None, False, "works, but the hard stack limit is below 256 MiB: the layout is not shifted",
            "raise it (ulimit -Hs unlimited) so that each pool gets a secret layout of its own",
        )  # fmt: skip
    return Finding(name, True, False, "works")


def _tracking() -> Finding:
    name = "write tracking (userfaultfd WP_ASYNC)"
    remedy = "Linux 6.7 or later, and userfaultfd allowed by seccomp; without it every pass reads all memory"
    fd = _libc.syscall(_SYS_USERFAULTFD, os.O_CLOEXEC | os.O_NONBLOCK | _UFFD_USER_MODE_ONLY)
    if fd < 0:
        return Finding(name, False, False, "refused: " + os.strerror(ctypes.get_errno()), remedy)
    try:
        fcntl.ioctl(fd, _UFFDIO_API, struct.pack("QQQ", 0xAA, _UFFD_WP_ASYNC, 0))
    except OSError as error:
        return Finding(name, False, False, f"not offered: {error.strerror}", remedy)
    finally:
        os.close(fd)
    return Finding(name, True, False, "works without privilege")


def _pagemap_scan() -> Finding:
    name = "page scan (PAGEMAP_SCAN)"
    fd = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    try:
        request = struct.pack("12Q", 96, 0, 0, mmap.PAGESIZE, 0, 0, 0, 0, 0, 8, 0, 8)
        fcntl.ioctl(fd, _PAGEMAP_SCAN, bytearray(request))
    except OSError as error:
        return Finding(
            name, False, False, f"not offered: {error.strerror}", "Linux 6.7 or later; else passes are slower"
        )
    finally:
        os.close(fd)
    return Finding(name, True, False, "works")


def _procmap() -> Finding:
    name = "mapping query (PROCMAP_QUERY)"
    fd = os.open("/proc/self/maps", os.O_RDONLY | os.O_CLOEXEC)
    try:
        request = bytearray(104)
        struct.pack_into("QQQ", request, 0, 104, 0x10, 0)  # COVERING_OR_NEXT_VMA of address 0
        fcntl.ioctl(fd, _PROCMAP_QUERY, request)
    except OSError as error:
        if error.errno not in (errno.ENOENT,):
            return Finding(
                name, None, False, f"not offered: {error.strerror}", "Linux 6.11 or later; else maps is read"
            )
    finally:
        os.close(fd)
    return Finding(name, True, False, "works")


def _yama() -> Finding:
    scope = _read("/proc/sys/kernel/yama/ptrace_scope")
    words = {
        "0": "0, open",
        "1": "1, children and by permission",
        "2": "2, administrators only",
        "3": "3, nobody",
    }
    if scope is None:
        return Finding("yama ptrace_scope", None, False, "no Yama in this kernel")
    remedy = "sysctl kernel.yama.ptrace_scope=1" if scope in ("2", "3") else ""
    return Finding("yama ptrace_scope", scope in ("0", "1"), False, words.get(scope, scope), remedy)


def _seccomp() -> Finding:
    mode = _status_field("Seccomp") or "0"
    words = {"0": "no filter", "1": "strict", "2": "a filter is active (container?)"}
    return Finding("seccomp", None, False, words.get(mode, mode))


def _max_map_count() -> Finding:
    count = int(_read("/proc/sys/vm/max_map_count") or 65530)
    remedy = (
        ""
        if count >= 65530
        else "sysctl vm.max_map_count=262144: merging may use a third of it in each process"
    )
    return Finding(
        "vm.max_map_count", count >= 65530, False, f"{count}, {count * 33 // 100} for merging", remedy
    )


def _cgroup() -> Finding:
    """The limits of all cgroups above count too: the lowest one is met first."""
    for line in (_read("/proc/self/cgroup") or "").splitlines():
        number, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            limit = _lowest_limit(Path("/sys/fs/cgroup/memory"), path, "memory.limit_in_bytes")
        elif number == "0" and Path("/sys/fs/cgroup/cgroup.controllers").exists():
            limit = _lowest_limit(Path("/sys/fs/cgroup"), path, "memory.max")
        else:
            continue
        return Finding("memory cgroup", None, False, f"limit {limit} bytes" if limit else "no limit")
    return Finding("memory cgroup", None, False, "none")


def _lowest_limit(base: Path, path: str, file: str) -> int | None:
    """Bytes; None if there is no limit. In a container the path may be hidden: the root counts then."""
    here = base / path.lstrip("/")
    folders = [here, *here.parents] if here.is_dir() else [base]
    words = [_read(str(folder / file)) or "" for folder in folders if folder.is_relative_to(base)]
    limits = [int(word) for word in words if word.isdigit() and int(word) < 1 << 60]
    return min(limits, default=None)


def _ksm() -> Finding:
    run = _read("/sys/kernel/mm/ksm/run")
    if run is None:
        return Finding("kernel KSM", None, False, "not in this kernel")
    if run == "1":
        return Finding(
            "kernel KSM", None, False, "on: it may merge the same pages first",
            "echo 0 > /sys/kernel/mm/ksm/run when you compare figures",
        )  # fmt: skip
    return Finding("kernel KSM", None, False, f"off (run={run}); udedup does not need it")


def _thp() -> Finding:
    text = _read("/sys/kernel/mm/transparent_hugepage/enabled") or "[never]"
    chosen = text.partition("[")[2].partition("]")[0]
    if chosen == "always":
        return Finding(
            "transparent huge pages", None, False, "always: merging splits huge pages",
            "`udedup set thp keep` leaves huge pages whole",
        )  # fmt: skip
    return Finding("transparent huge pages", None, False, chosen)


def _huge_store() -> Finding:
    from udedup.core import lib

    name = "store in huge pages"
    result = int(lib.ud_probe_huge_store())
    if result == 0:
        return Finding(name, True, False, "works")
    return Finding(
        name, False, False, f"refused: {os.strerror(-result)}",
        "Linux 6.1 or later, free memory, and no 'deny' in transparent_hugepage/shmem_enabled; else merging"
        " takes more CPU",
    )  # fmt: skip


def _container() -> Finding:
    kind = (_read("/run/systemd/container") or "").strip() or _of_init()
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        kind = "kubernetes"
    elif Path("/.dockerenv").exists():
        kind = "docker"
    elif Path("/run/.containerenv").exists():
        kind = "podman"
    return Finding("container", None, False, kind or "none seen")


def _of_init() -> str:
    """What the container's maker told its first process (readable by root only)."""
    for word in (_read("/proc/1/environ") or "").split("\0"):
        if word.startswith("container="):
            return word.partition("=")[2]
    return ""


def _socket_dir() -> Finding:
    from udedup.domain import Domain, default_name
    from udedup.errors import UdedupError

    try:
        domain = Domain(default_name())
        existed = domain.directory.exists()
        domain.ensure_dir()
        if not existed:
            domain.directory.rmdir()
    except UdedupError as error:
        cause, _, remedy = str(error).partition("; ")
        return Finding("socket directory", False, True, cause, remedy)
    return Finding("socket directory", True, True, str(domain.directory))


def _status_field(name: str) -> str | None:
    for line in (_read("/proc/self/status") or "").splitlines():
        if line.startswith(name + ":"):
            return line.split(":", 1)[1].strip()
    return None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None


_PROBES: tuple[Callable[[], Finding], ...] = (
    _hold, _park, _memfd, _socket_dir, _layout, _tracking, _pagemap_scan, _procmap, _yama, _seccomp,
    _max_map_count, _cgroup, _ksm, _thp, _huge_store, _container,
)  # fmt: skip
