"""A trust domain: its name, its directory, its socket and lock. One uid, one merger for each name."""

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from udedup.errors import UdedupError, WrongUsage

DEFAULT_DOMAIN = "default"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
_SOCKET_PATH_MAX = 107  # sun_path, with its closing NUL


def default_name() -> str:
    """Name of the domain that is used when none is given: $UDEDUP_DOMAIN, else "default"."""
    return os.environ.get("UDEDUP_DOMAIN") or DEFAULT_DOMAIN


def base_dir() -> Path:
    """Directory of all domains of this user; it need not exist yet."""
    chosen = os.environ.get("UDEDUP_DIR")
    if chosen:
        return Path(chosen).absolute()
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    # su and sudo leave the variable of the other user behind: take it only if it is ours.
    if runtime and _is_own_dir(Path(runtime)):
        return Path(runtime) / "udedup"
    return Path(f"/tmp/udedup-{os.geteuid()}")


def how_to_start(domain: "Domain | None" = None, options: str = "") -> str:
    """The remedy where nothing runs in a domain, None: in any."""
    named = "" if domain is None or domain.name == default_name() else f" --domain {domain.name}"
    remedy = f"start a program with `udedup run{named}{options} -- CMD`"
    if os.environ.get("UDEDUP_DIR") and not base_dir().exists():
        remedy += f", or set UDEDUP_DIR as your programs have it: {base_dir()} does not exist"
    return remedy


def _is_own_dir(path: Path) -> bool:
    try:
        info = path.stat()
    except OSError:
        return False
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.geteuid()


@dataclass(frozen=True)
class Domain:
    """Paths of one domain. Raises WrongUsage for a bad name, UdedupError for a path too long for a socket."""

    name: str

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise WrongUsage(
                f"bad domain name {self.name!r}; use up to 64 letters, digits, '_', '-' or '.', "
                "the first a letter, a digit or '_'"
            )
        if len(os.fsencode(self.socket)) > _SOCKET_PATH_MAX:
            raise UdedupError(
                f"socket path {self.socket} is longer than {_SOCKET_PATH_MAX} bytes; "
                "set UDEDUP_DIR to a shorter directory"
            )

    @property
    def directory(self) -> Path:
        return base_dir()

    @property
    def socket(self) -> Path:
        return self.directory / f"{self.name}.sock"

    @property
    def lock(self) -> Path:
        return self.directory / f"{self.name}.lock"

    def ensure_dir(self) -> Path:
        """Makes the directory (mode 0700) if it is missing, checks it, and returns it.

        Raises UdedupError when it cannot be made or is not safely ours.
        """
        try:
            self.directory.mkdir(mode=0o700, parents=False, exist_ok=True)
        except OSError as error:
            raise UdedupError(
                f"cannot make {self.directory}: {error.strerror}; "
                "set UDEDUP_DIR to a directory you can write to"
            ) from None
        self.check_dir()
        return self.directory

    def check_dir(self) -> None:
        """Raises UdedupError unless the directory is a real one, ours, and closed to others."""
        info = self.directory.lstat()
        if not stat.S_ISDIR(info.st_mode):
            raise UdedupError(f"{self.directory} is not a directory; remove it or set UDEDUP_DIR")
        if info.st_uid != os.geteuid():
            raise UdedupError(
                f"{self.directory} belongs to uid {info.st_uid}, not to you (uid {os.geteuid()}); "
                "set UDEDUP_DIR to a directory of your own"
            )
        if info.st_mode & 0o077:
            raise UdedupError(
                f"{self.directory} is open to others (mode {stat.S_IMODE(info.st_mode):04o}); "
                "chmod 700 it or set UDEDUP_DIR"
            )

    def check_socket(self) -> bool:
        """True if the socket's file exists and is ours, False if there is none.

        Raises UdedupError when somebody else's file lies there.
        """
        try:
            self.check_dir()
            info = self.socket.lstat()
        except FileNotFoundError:
            return False
        if info.st_uid != os.geteuid():
            raise UdedupError(
                f"{self.socket} belongs to uid {info.st_uid}, not to you (uid {os.geteuid()}); "
                "remove it or choose another --domain"
            )
        if not stat.S_ISSOCK(info.st_mode):
            raise UdedupError(f"{self.socket} is not a socket; remove it or choose another --domain")
        return True
