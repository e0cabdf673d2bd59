"""Fixtures of the merger's tests."""

from collections.abc import Iterator

import pytest
from fake_agent import Bench


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    for process in bench.processes.values():
        process.close()
