"""Names of segments, and finding one whose content is not what its name says."""

import os
import time

import pytest
from fake_agent import PAGE, page, sealed

from udedup.merger import scrub
from udedup.merger.planner import Planner
from udedup.merger.scrub import CHUNK, Scrubber
from udedup.merger.settings import Settings
from udedup.merger.store import Store


class Host:
    """As much of a server as the scrubber needs."""

    def __init__(self) -> None:
        self.planner = Planner()
        self.planner.configure((1, 2), Settings())
        self.store = Store(self.planner)

    def add(self, content: bytes) -> int:
        fd = sealed(content)
        return self.store.add(fd, os.fstat(fd).st_ino, 1)


@pytest.fixture
def host() -> Host:
    return Host()


def test_sound_store_passes(host: Host) -> None:
    scrubber = Scrubber(host)  # type: ignore[arg-type]
    for gid in (host.add(b"".join(page(i) for i in range(600))), host.add(page(7))):
        scrubber.added(gid)
    first = scrubber.run_all()
    assert (first["segments"], first["pages"], first["newly_named"], first["bad"]) == (2, 601, 2, [])
    assert (scrubber.run_all()["newly_named"], scrubber.report()["checked_bytes"]) == (0, 601 * PAGE)
    host.store.close()


def test_bad_chunk_is_found_by_both_scrubs(host: Host) -> None:
    """The segment is sealed, so the name is what the test can spoil."""
    scrubber = Scrubber(host)  # type: ignore[arg-type]
    gid = host.add(b"".join(page(i) for i in range(600)))
    scrubber.run_all()
    scrubber._names[gid][1] = b"\0" * 32
    bad = scrubber.run_all()["bad"]
    assert [(one["page"], one["pages"]) for one in bad] == [(CHUNK // PAGE, CHUNK // PAGE)]
    now = time.monotonic() + 10
    for step in range(3):
        scrubber.tick(now + step * Scrubber.PERIOD)
    assert scrubber.report()["bad_chunks"] == 2
    host.store.close()


def test_names_are_taken_late_and_forgotten(host: Host) -> None:
    scrubber = Scrubber(host)  # type: ignore[arg-type]
    gid = host.add(page(1))
    scrubber.added(gid)
    scrubber.tick(time.monotonic())
    assert scrubber.report()["named_segments"] == 0
    scrubber.tick(time.monotonic() + Scrubber.NAME_AFTER)
    assert scrubber.report()["named_segments"] == 1
    scrubber.forget(gid)
    assert scrubber.wait(0) is None
    host.store.close()


def test_names_are_blake3_of_the_chunks() -> None:
    from blake3 import blake3

    content = os.urandom(CHUNK + 3 * PAGE)
    fd = sealed(content)
    names = scrub.names_of(fd, len(content))
    assert names == [blake3(content[:CHUNK]).digest(), blake3(content[CHUNK:]).digest()]
    os.close(fd)
