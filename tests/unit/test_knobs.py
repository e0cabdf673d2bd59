"""Knobs as users write them."""

import re
from pathlib import Path

import pytest

from udedup.errors import UdedupError
from udedup.knobs import RANGES, parse_assignment, parse_value


def test_values() -> None:
    assert parse_value("run", "2") == 2
    assert parse_value("mode", "trap") == 1
    assert parse_value("split", "kernel") == 0
    assert parse_assignment("sleep_millisecs=20") == ("sleep_millisecs", 20)


@pytest.mark.parametrize("text", ["run=3", "run=-1", "run=x", "run=", "run", "nosuch=1", "=1", "run=1.5"])
def test_bad_settings_are_refused(text: str) -> None:
    with pytest.raises(UdedupError, match=";"):
        parse_assignment(text)


def test_names_are_those_of_the_wire() -> None:
    header = (Path(__file__).parents[2] / "csrc" / "wire.h").read_text()
    body = header.partition("struct ud_knobs {")[2].partition("};")[0]
    fields = re.findall(r"uint32_t (\w+);", body)
    assert list(RANGES)[: len(fields)] == fields  # what follows is the merger's own
