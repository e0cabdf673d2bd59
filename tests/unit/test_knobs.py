"""Knobs as users write them."""

import re
from pathlib import Path

import pytest

from udedup.errors import UdedupError
from udedup.knobs import RANGES, WORDS, parse_assignment, parse_value, show_value


def test_values() -> None:
    assert parse_value("run", "2") == 2
    assert parse_value("mode", "trap") == 1
    assert parse_value("split", "kernel") == 0
    assert parse_value("thp", "keep") == parse_value("thp", "0") == 0
    assert parse_value("thp", "split") == 1
    assert parse_assignment("sleep_millisecs=20") == ("sleep_millisecs", 20)


def test_words_are_read_as_they_are_written() -> None:
    for knob, words in WORDS.items():
        for word, number in words.items():
            assert show_value(knob, number) == word and parse_value(knob, word) == number
    assert show_value("run", 2) == "2"
    with pytest.raises(UdedupError, match="it takes keep, split or a whole number from 0 to 1"):
        parse_value("thp", "both")


@pytest.mark.parametrize("text", ["run=3", "run=-1", "run=x", "run=", "run", "nosuch=1", "=1", "run=1.5"])
def test_bad_settings_are_refused(text: str) -> None:
    with pytest.raises(UdedupError, match=";"):
        parse_assignment(text)


def test_names_are_those_of_the_wire() -> None:
    header = (Path(__file__).parents[2] / "csrc" / "wire.h").read_text()
    body = header.partition("struct ud_knobs {")[2].partition("};")[0]
    fields = re.findall(r"uint32_t (\w+);", body)
    assert list(RANGES)[: len(fields)] == fields  # what follows is the merger's own
