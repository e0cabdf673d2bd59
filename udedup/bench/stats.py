"""Small statistics of the bench: quantiles, spreads, and when a falling curve has fallen far enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Minimum, median and maximum of the repeats of one figure."""

    min: float
    median: float
    max: float
    n: int


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile (0..1) with linear interpolation. Raises ValueError on an empty sequence."""
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    at = q * (len(ordered) - 1)
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


def spread(values: Sequence[float]) -> Spread | None:
    """Spread of the values, or None when there are none."""
    if not values:
        return None
    return Spread(min(values), quantile(values, 0.5), max(values), len(values))


def time_to_fraction(
    times: Sequence[float], totals: Sequence[float], start: float, final: float, fraction: float
) -> float | None:
    """Seconds from times[0] until `fraction` of the fall from `start` to `final` is reached for good.

    "For good" means that no later sample is above the mark again by more than a hundredth of the whole fall.
    None when nothing fell, or when the mark was never reached.
    """
    fall = start - final
    if fall <= 0 or not times:
        return None
    mark = start - fraction * fall
    slack = 0.01 * fall
    reached: float | None = None
    for at, total in zip(times, totals, strict=True):
        if total <= mark:
            reached = at if reached is None else reached
        elif total > mark + slack:
            reached = None
    return None if reached is None else reached - times[0]


def value_at(times: Sequence[float], values: Sequence[float], at: float) -> float:
    """The value of a sampled curve at time `at`, linear between samples, flat outside them."""
    if not times:
        raise ValueError("no samples")
    if at <= times[0]:
        return values[0]
    for i in range(1, len(times)):
        if at <= times[i]:
            width = times[i] - times[i - 1]
            share = (at - times[i - 1]) / width if width else 1.0
            return values[i - 1] + (values[i] - values[i - 1]) * share
    return values[-1]


def ratio(value: float | None, base: float | None) -> float | None:
    """value / base, or None when either is missing or the base is zero."""
    if value is None or not base:
        return None
    return value / base
