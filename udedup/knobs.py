"""The knobs' names, as csrc/wire.h has them, and how their values are written."""

from udedup.errors import WrongUsage

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
    "thp": (0, 1),
    "vma_share": (0, 90),
    "mode": (0, 1),
    "split": (0, 1),
    "idle_millisecs": (0, 2**31 - 1),
    "merge_across_nodes": (0, 1),
    "agent_cpu_permille": (1, 1000),
    "pace_percent": (1, 100),
    "advisor_mode": (0, 2),
    "advisor_max_cpu": (1, 10000),
    "advisor_target_scan_time": (1, 2**31 - 1),
    "advisor_min_pages_to_scan": (1, 2**31 - 1),
    "advisor_max_pages_to_scan": (1, 2**31 - 1),
}

WORDS: dict[str, dict[str, int]] = {
    "mode": {"stop": 0, "trap": 1},
    "split": {"kernel": 0, "trap": 1},
    "thp": {"keep": 0, "split": 1},
    "advisor_mode": {"none": 0, "scan-time": 1, "cpu": 2},
}


def check_name(knob: str) -> None:
    """Raises WrongUsage if there is no such knob."""
    if knob not in RANGES:
        raise WrongUsage(f"no knob {knob!r}; there are: {', '.join(RANGES)}")


def parse_value(knob: str, text: str) -> int:
    """The number that `text` means for `knob`. Raises WrongUsage for an unknown knob or a bad value."""
    check_name(knob)
    if text in WORDS.get(knob, {}):
        return WORDS[knob][text]
    low, high = RANGES[knob]
    try:
        number = int(text)
    except ValueError:
        number = low - 1
    if not low <= number <= high:
        words = f"{', '.join(WORDS[knob])} or " if knob in WORDS else ""
        takes = f"{words}a whole number from {low} to {high}"
        raise WrongUsage(f"bad value {text!r} for {knob}; it takes {takes}")
    return number


def show_value(knob: str, number: int) -> str:
    """How `number` is written for `knob`: the word where it has one, as parse_value takes it."""
    return next((word for word, value in WORDS.get(knob, {}).items() if value == number), str(number))


def parse_assignment(text: str) -> tuple[str, int]:
    """KNOB=VALUE as a pair. Raises WrongUsage."""
    knob, equals, value = text.partition("=")
    if not equals:
        raise WrongUsage(f"bad setting {text!r}; write KNOB=VALUE")
    return knob, parse_value(knob, value)
