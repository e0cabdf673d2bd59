"""Fixtures of the merger's tests."""

from collections.abc import Callable, Iterator

import pytest
from fake_agent import Bench, FakeProcess


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    for process in bench.processes.values():
        process.close()


@pytest.fixture
def make_process() -> Iterator[Callable[..., FakeProcess]]:
    made: list[FakeProcess] = []

    def make(**options: int) -> FakeProcess:
        made.append(FakeProcess(**options))
        return made[-1]

    yield make
    for process in made:
        process.close()
