import os
import signal

import pytest

from learners.cancel import Cancelled, listening

NUMBERS = [signal.SIGTERM, signal.SIGINT]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_ends_what_is_interruptible_and_only_notes_itself_elsewhere(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with listening() as request:
        with pytest.raises(Cancelled), request.interruptible():
            os.kill(os.getpid(), number)
        assert request.is_requested
    with listening() as request:
        os.kill(os.getpid(), number)
        assert request.is_requested
    with listening() as request, request.interruptible(), request.deferred():
        os.kill(os.getpid(), number)
        assert request.is_requested
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_that_came_before_ends_what_becomes_interruptible(number: signal.Signals) -> None:
    with listening() as request:
        os.kill(os.getpid(), number)
        with pytest.raises(Cancelled), request.interruptible():
            pytest.fail("this must not run")


@pytest.mark.parametrize("number", NUMBERS)
def test_later_signals_change_nothing(number: signal.Signals) -> None:
    with listening() as request, request.interruptible():
        with pytest.raises(Cancelled):
            os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
