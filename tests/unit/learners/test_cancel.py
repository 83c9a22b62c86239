import os
import signal

import pytest

from learners.cancel import Cancelled, listening


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_run_at_once_unless_deferred(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with listening() as request:
        with request.deferred():
            os.kill(os.getpid(), number)
            assert request.is_requested
        with pytest.raises(Cancelled):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before
