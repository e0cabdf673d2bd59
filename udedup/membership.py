"""Taking part, from inside a Python process: join, leave, advise, stats, settle.

C comes in with the first call, not with the import.
"""

import errno
import os
import time
from typing import TYPE_CHECKING, Any, Literal

from udedup.domain import Domain, default_name
from udedup.errors import UdedupError

if TYPE_CHECKING:
    from typing_extensions import Buffer

#: Values of madvise(2), for advise().
MADV_MERGEABLE = 12
MADV_UNMERGEABLE = 13

_CONNECT_SECONDS = 2.0

#: The domain this process joined, and then the one that stats() and settle() mean.
_joined: str | None = None


def _domain(name: str | None) -> Domain:
    return Domain(name or _joined or default_name())


def join(domain: str | None = None, regions: Literal["all", "advised"] = "all") -> None:
    """Makes this process take part in `domain` (None: $UDEDUP_DOMAIN, else "default").

    Starts the domain's merger if none runs. Does nothing if the process takes part already, or if
    UDEDUP_DISABLE=1 is set. regions "advised" merges only what advise() or Arena names. Usable as the
    `initializer` of a pool. Raises UdedupError when the process cannot take part.
    """
    from udedup.client import ensure_merger
    from udedup.core import lib

    if os.environ.get("UDEDUP_DISABLE") == "1" or lib.ud_joined():
        return
    global _joined
    chosen = Domain(domain or default_name())
    # Held until the agent is connected, so that the merger cannot end in between.
    with ensure_merger(chosen):
        _check(
            lib.ud_join(os.fsencode(chosen.socket), regions == "advised"), "cannot join", ok=errno.EALREADY
        )
        deadline = time.monotonic() + _CONNECT_SECONDS  # a forked child may be about to connect by itself
        while not lib.ud_joined() and time.monotonic() < deadline:
            time.sleep(0.002)
    _joined = chosen.name


def leave() -> None:
    """Unmerges everything in this process and takes it out. Does nothing if it takes no part."""
    from udedup.core import lib

    _check(lib.ud_leave(), "cannot leave", ok=errno.ENOENT)


def joined() -> bool:
    """True if this process takes part and is connected to a merger."""
    from udedup.core import lib

    return bool(lib.ud_joined())


def advise(buffer: "Buffer", advice: int) -> int:
    """Registers (MADV_MERGEABLE) or unregisters (MADV_UNMERGEABLE) the whole pages inside `buffer`.

    Anything with the buffer protocol will do, read-only or not. Returns the bytes covered: 0 when the
    buffer holds no whole page. Raises UdedupError if the memory is not of a kind that can be merged.
    """
    from udedup.core import ffi, lib

    if advice not in (MADV_MERGEABLE, MADV_UNMERGEABLE):
        raise ValueError(f"advice is MADV_MERGEABLE or MADV_UNMERGEABLE, not {advice!r}")
    with memoryview(buffer) as view, ffi.from_buffer(view) as start:
        page = os.sysconf("SC_PAGE_SIZE")
        address = int(ffi.cast("uintptr_t", start))
        first = -(-address // page) * page
        length = (address + view.nbytes) // page * page - first
        if length <= 0:
            return 0
        _check(lib.ud_advise(ffi.cast("void *", first), length, advice), "cannot advise")
        return length


def stats(domain: str | None = None) -> dict[str, Any]:
    """The counters of a domain, as `udedup stat --json` prints them.

    "self" is this process's own entry of "processes", None if it takes no part. Raises UdedupError if
    no merger runs.
    """
    from udedup.client import Client

    with Client(_domain(domain)) as client:
        reply: dict[str, Any] = client.request("stat")
    mine = (entry for entry in reply["processes"] if entry["pid"] == os.getpid())
    return reply | {"self": next(mine, None)}


def settle(timeout: float = 60.0, domain: str | None = None) -> bool:
    """Waits until two full passes of every process have found nothing more to merge.

    Returns False if that has not come about within `timeout` seconds. Raises UdedupError.
    """
    from udedup.client import Client

    with Client(_domain(domain)) as client:
        return bool(client.request("settle", timeout=timeout + 10, seconds=timeout)["settled"])


def _check(result: int, what: str, ok: int = 0) -> None:
    if result >= 0 or -result == ok:
        return
    hints = {
        errno.ENOTCONN: "no agent runs here: call udedup.join() or use `udedup run`",
        errno.ENOENT: "no agent runs here: call udedup.join() or use `udedup run`",
        errno.ENOMEM: "the range is not mapped, or the machine has no memory left",
        errno.EINVAL: "the memory is not private and anonymous",
    }
    hint = hints.get(-result, "see `udedup doctor`")
    raise UdedupError(f"{what}: {os.strerror(-result)}; {hint}")
