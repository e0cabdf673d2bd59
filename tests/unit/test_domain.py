"""Domain names, directories and who may own them."""

import os
import stat
from pathlib import Path

import pytest

from udedup.domain import Domain, base_dir, default_name
from udedup.errors import UdedupError


@pytest.mark.parametrize("name", ["a", "default", "A.b_c-9", "x" * 64])
def test_good_names(name: str, domains: Path) -> None:
    assert Domain(name).socket == domains / f"{name}.sock"
    assert Domain(name).lock == domains / f"{name}.lock"


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "-x", "a/b", "a b", "x" * 65, "ü", "a\n"])
def test_bad_names_are_refused_with_a_remedy(name: str, domains: Path) -> None:
    with pytest.raises(UdedupError, match=r"bad domain name .*; use "):
        Domain(name)


def test_long_socket_path_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UDEDUP_DIR", "/tmp/" + "d" * 100)
    with pytest.raises(UdedupError, match="set UDEDUP_DIR to a shorter"):
        Domain("default")


def test_directory_is_made_closed_to_others(domains: Path) -> None:
    old = os.umask(0)
    try:
        Domain("d").ensure_dir()
    finally:
        os.umask(old)
    assert stat.S_IMODE(domains.stat().st_mode) == 0o700


def test_directory_open_to_others_is_refused(domains: Path) -> None:
    domains.mkdir(mode=0o755)
    domains.chmod(0o755)
    with pytest.raises(UdedupError, match=r"open to others .*; chmod 700"):
        Domain("d").ensure_dir()


def test_symlink_is_refused(domains: Path, tmp_path: Path) -> None:
    domains.symlink_to(tmp_path)
    with pytest.raises(UdedupError, match="not a directory"):
        Domain("d").ensure_dir()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a directory that belongs to another user")
def test_directory_of_another_user_is_refused(domains: Path) -> None:
    domains.mkdir(mode=0o700)
    os.chown(domains, 65534, 65534)
    with pytest.raises(UdedupError, match="belongs to uid 65534, not to you"):
        Domain("d").ensure_dir()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to make a socket that belongs to another user")
def test_socket_of_another_user_is_refused(domains: Path) -> None:
    Domain("d").ensure_dir()
    socket = domains / "d.sock"
    socket.touch()
    os.chown(socket, 65534, 65534)
    try:
        with pytest.raises(UdedupError, match="belongs to uid 65534"):
            Domain("d").check_socket()
    finally:
        socket.unlink()


def test_no_socket_is_no_error(domains: Path) -> None:
    assert Domain("d").check_socket() is False


def test_runtime_dir_of_another_user_is_not_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("UDEDUP_DIR", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert base_dir() == tmp_path / "udedup"
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/proc/1" if os.geteuid() else str(tmp_path / "missing"))
    assert base_dir() == Path(f"/tmp/udedup-{os.geteuid()}")


def test_default_name_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UDEDUP_DOMAIN", raising=False)
    assert default_name() == "default"
    monkeypatch.setenv("UDEDUP_DOMAIN", "pool")
    assert default_name() == "pool"
