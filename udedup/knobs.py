"""The knobs' names, as csrc/wire.h has them, and how their values are written."""

from udedup.errors import UdedupError

#: Knobs and the range of each (inclusive).
RANGES: dict[str, tuple[int, int]] = {
    "run": (0, 2),
    "pages_to_scan": (1, 2**31 - 1),
    "sleep_millisecs": (0, 2**31 - 1),
    "use_zero_pages": (0, 1),
    "smart_scan": (0, 1),
    "max_page_sharing": (2, 2**31 - 1),
    "freeze_max_us": (1, 2**31 - 1),
    "min_run": (1, 2**16),
    "thp_split": (0, 1),
    "vma_share": (0, 90),
    "mode": (0, 1),
    "split": (0, 1),
    "idle_millisecs": (0, 2**31 - 1),
    "advisor_mode": (0, 2),
    "advisor_max_cpu": (1, 10000),
    "advisor_target_scan_time": (1, 2**31 - 1),
    "advisor_min_pages_to_scan": (1, 2**31 - 1),
    "advisor_max_pages_to_scan": (1, 2**31 - 1),
}

WORDS: dict[str, dict[str, int]] = {
    "mode": {"stop": 0, "trap": 1},
    "split": {"kernel": 0, "trap": 1},
    "advisor_mode": {"none": 0, "scan-time": 1, "cpu": 2},
}


def parse_value(knob: str, text: str) -> int:
    """The number that `text` means for `knob`. Raises UdedupError for an unknown knob or a bad value."""
    if knob not in RANGES:
        raise UdedupError(f"no knob {knob!r}; there are: {', '.join(RANGES)}")
    if text in WORDS.get(knob, {}):
        return WORDS[knob][text]
    low, high = RANGES[knob]
    try:
        number = int(text)
    except ValueError:
        number = low - 1
    if not low <= number <= high:
        raise UdedupError(f"bad value {text!r} for {knob}; it takes a whole number from {low} to {high}")
    return number


def parse_assignment(text: str) -> tuple[str, int]:
    """KNOB=VALUE as a pair. Raises UdedupError."""
    knob, equals, value = text.partition("=")
    if not equals:
        raise UdedupError(f"bad setting {text!r}; write KNOB=VALUE")
    return knob, parse_value(knob, value)
