"""What doctor says of settings this machine may not have: told from what the kernel would let us read."""

import errno
from pathlib import Path

import pytest

from udedup import probe

YAMA = "/proc/sys/kernel/yama/ptrace_scope"


@pytest.fixture
def files(monkeypatch):
    """Files by path that are read instead of the machine's."""
    given: dict[str, str] = {}
    monkeypatch.setattr(probe, "_read", given.get)
    return given


@pytest.mark.parametrize(
    "scope, fine, remedy",
    [(None, None, ""), ("0", True, ""), ("1", True, ""), ("2", False, "ptrace_scope=1"), ("3", False, "=1")],
)
def test_yama(files, scope, fine, remedy):
    files.update({YAMA: scope} if scope else {})
    found = probe._yama()
    assert found.ok is fine and remedy in found.remedy and bool(found.remedy) is (fine is False)


@pytest.mark.parametrize(
    "scope, words",
    [("0", "seccomp profile"), ("2", "kernel.yama.ptrace_scope=2 forbids it"), ("3", "until the next boot")],
)
def test_a_hold_that_is_refused(files, monkeypatch, scope, words):
    files[YAMA] = scope
    refusing = type("Refusing", (), dict.fromkeys(("ud_probe_hold", "ud_probe_park"), lambda _: -errno.EPERM))
    monkeypatch.setattr("udedup.core.lib", refusing())
    found = probe._hold()
    assert (found.ok, found.needed) == (False, True) and words in found.remedy


def test_too_few_mappings(files):
    files["/proc/sys/vm/max_map_count"] = "1000"
    assert probe._max_map_count().ok is False and "sysctl vm.max_map_count" in probe._max_map_count().remedy


@pytest.mark.parametrize(
    "limits, found",
    [({"a/b": "max", "a": "max"}, "no limit"), ({"a/b": "max", "a": "4096"}, "limit 4096 bytes"),
     ({"a/b": "8192", "a": "4096", "": "2048"}, "limit 2048 bytes")],
)  # fmt: skip
def test_the_lowest_limit_of_all_cgroups_above(tmp_path, limits, found):
    (tmp_path / "a/b").mkdir(parents=True)
    for folder, limit in limits.items():
        (tmp_path / folder / "memory.max").write_text(limit)
    lowest = probe._lowest_limit(tmp_path, "/a/b", "memory.max")
    assert (f"limit {lowest} bytes" if lowest else "no limit") == found
    assert probe._lowest_limit(tmp_path, "/../hidden", "memory.max") == (2048 if "" in limits else None)


@pytest.mark.parametrize(
    "run, words", [(None, "not in this kernel"), ("0", "off (run=0)"), ("1", "on"), ("2", "off (run=2)")]
)
def test_kernel_ksm(files, run, words):
    files.update({"/sys/kernel/mm/ksm/run": run} if run else {})
    assert probe._ksm().found.startswith(words)


def test_huge_pages(files):
    files["/sys/kernel/mm/transparent_hugepage/enabled"] = "[always] madvise never"
    assert "udedup set thp keep" in probe._thp().remedy


def test_container(files, monkeypatch):
    monkeypatch.setattr(Path, "exists", lambda self: False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert probe._container().found == "none seen"
    files["/proc/1/environ"] = "PATH=/bin\0container=lxc\0"
    assert probe._container().found == "lxc"
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert probe._container().found == "kubernetes"


def test_every_finding_has_a_key_of_its_own():
    keys = [finding.key for finding in probe.findings()]
    assert len(set(keys)) == len(keys) and {"hold", "memfd", "tracking", "yama", "seccomp", "cgroup"} <= {
        *keys
    }
