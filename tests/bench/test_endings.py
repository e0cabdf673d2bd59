"""Whoever asks the bench to end is heard, but not in the middle of cleaning up."""

import signal
import threading

import pytest

from udedup.bench import endings


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_request_to_end_is_raised(number):
    before = signal.getsignal(number)
    with pytest.raises(endings.Ended, match=number.name), endings.raised():
        signal.raise_signal(number)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, endings.Ended)]
)
def test_an_impatient_one_waits_for_the_cleanup(number, error):
    done = []
    with pytest.raises(error), endings.raised(), endings.postponed():
        signal.raise_signal(number)
        signal.raise_signal(number)
        done.append("cleaned up")
    assert done == ["cleaned up"]


def test_other_threads_clean_up_as_well():
    def clean() -> None:
        with endings.postponed():
            done.append(True)

    done: list[bool] = []
    thread = threading.Thread(target=clean)
    thread.start()
    thread.join()
    assert done == [True]
