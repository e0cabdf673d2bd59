"""The layout of a pool: equal inside one, different between two, gone with `random`."""

import resource
import subprocess
import sys

import pytest

from udedup import layout

SHOW = "grep -m1 'libc' /proc/self/maps | cut -d- -f1"


def mapped_at(chosen: layout.Layout) -> str:
    code = (
        "import os, sys; from udedup import layout\n"
        f"assert layout.apply(layout.Layout({chosen.shift!r}, None)) is None\n"
        f"os.execvp('sh', ['sh', '-c', {SHOW!r}])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_one_layout_is_one_place_and_two_are_two() -> None:
    first, second = layout.Layout(layout.SHIFT_MIN, None), layout.Layout(layout.SHIFT_MIN + 4096 * 1000, None)
    assert mapped_at(first) == mapped_at(first)
    assert int(mapped_at(first), 16) - int(mapped_at(second), 16) == 4096 * 1000


def test_shift_is_random_whole_pages_in_range() -> None:
    shifts = {layout.choose_shift() for _ in range(64)}
    assert len(shifts) > 60
    for shift in shifts:
        assert shift is not None
        assert shift % resource.getpagesize() == 0
        assert layout.SHIFT_MIN <= shift <= layout.SHIFT_MIN + layout.SHIFT_RANGE


def test_hard_limit_bounds_the_shift(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (8 << 20, 300 << 20))
    assert all((layout.choose_shift() or 0) <= 300 << 20 for _ in range(32))
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (8 << 20, 8 << 20))
    assert layout.choose_shift() is None


@pytest.mark.parametrize("soft", [2 << 30, (2 << 30) + 1, resource.RLIM_INFINITY])
def test_no_stack_gets_smaller(soft: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (soft, resource.RLIM_INFINITY))
    least = soft if soft != resource.RLIM_INFINITY else 1 << 30
    assert all((layout.choose_shift() or 0) >= least for _ in range(32))


def test_seed_of_the_user_stays() -> None:
    assert layout.choose({"PYTHONHASHSEED": "7"}).hash_seed is None
    seeds = {layout.choose({}).hash_seed for _ in range(8)}
    assert len(seeds) == 8 and None not in seeds
