"""How many requests may be asked a second time; pure.

A bucket that each request fills by a part of a retry and each retry empties by one: when everything fails, engines get
a fifth more work, not twice as much. What is saved is enough for all that one replica works on when it dies.
"""

from __future__ import annotations


class RetryBudget:
    """`share` retries a request, and up to `max_saved` at once, which are there from the start."""

    def __init__(self, share: float = 0.2, max_saved: float = 100.0) -> None:
        self._share = share
        self._max_saved = max_saved
        self._saved = max_saved

    def deposit(self) -> None:
        """A request came."""
        self._saved = min(self._max_saved, self._saved + self._share)

    def withdraw(self) -> bool:
        """Takes one retry; False if there is none left."""
        # Sums of a share that binary floats cannot hold: a whole retry less a rounding error is a whole one.
        if self._saved < 1.0 - 1e-9:
            return False
        self._saved = max(0.0, self._saved - 1.0)
        return True
