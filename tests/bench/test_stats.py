"""The bench's arithmetic."""

import pytest

from udedup.bench.stats import quantile, ratio, spread, time_to_fraction, value_at


def test_quantile_interpolates():
    assert quantile([4, 1, 3, 2], 0.5) == 2.5
    assert quantile([7], 0.99) == 7
    assert quantile(range(101), 0.99) == 99
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


def test_spread_counts_its_values():
    found = spread([3, 1, 2])
    assert found and (found.min, found.median, found.max, found.n) == (1, 2, 3, 3)
    assert spread([]) is None


def test_time_to_fraction_is_the_first_sample_past_the_mark():
    times, totals = [0, 1, 2, 3, 4], [100, 90, 12, 5, 0]
    assert time_to_fraction(times, totals, 100, 0, 0.9) == 3
    assert time_to_fraction(times, totals, 100, 0, 0.99) == 4


def test_time_to_fraction_starts_again_after_a_rebound():
    assert time_to_fraction([0, 1, 2, 3], [100, 5, 50, 5], 100, 5, 0.9) == 3


@pytest.mark.parametrize(("start", "final"), [(100, 100), (100, 120)])
def test_no_time_without_a_saving(start, final):
    assert time_to_fraction([0, 1], [start, final], start, final, 0.9) is None


def test_value_at_is_linear_between_samples():
    assert value_at([0, 2], [0, 10], 1) == 5
    assert value_at([0, 2], [0, 10], 9) == 10
    assert value_at([1, 2], [3, 10], 0) == 3


def test_ratio_of_nothing_is_nothing():
    assert ratio(1, 0) is None
    assert ratio(None, 2) is None
    assert ratio(1, 2) == 0.5
