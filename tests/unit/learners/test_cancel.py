import os
import signal

import pytest

from learners.cancel import Cancelled, keeping_handlers, listening

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


def hear_in_others_hands(number: signal.Signals) -> None:
    with keeping_handlers():
        signal.signal(number, end_the_process)
        os.kill(os.getpid(), number)


def end_the_process(number: int, _: object) -> None:
    raise SystemExit(number)


@pytest.mark.parametrize("number", NUMBERS)
def test_what_sets_handlers_of_its_own_does_not_keep_them(number: signal.Signals) -> None:
    with listening() as request:
        with keeping_handlers():
            signal.signal(number, end_the_process)
        os.kill(os.getpid(), number)
        assert request.is_requested


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_while_others_handlers_are_set_cancels(number: signal.Signals) -> None:
    with listening():
        with pytest.raises(Cancelled):
            hear_in_others_hands(number)
        os.kill(os.getpid(), number)
