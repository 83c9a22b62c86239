"""How far sampling may run ahead of learning: pure logic, no clock, no threads.

The admission rule is that of AReaL (Fu et al., 2025, arXiv:2505.24298, section 5.1): with S = `max_staleness`, B =
`groups_per_step` and d steps whose version the engines hold, running + accepted groups never exceed (S + d + 1) B.
S = 0 is synchronous training, S = 1 is one step off. Version number n is what n - 1 optimizer steps made.
"""

from __future__ import annotations

from engines.errors import BadRequest, Internal


class Staleness:
    """Counts groups: `accepted` are all that were ever accepted and not dropped, those learned from among them."""

    def __init__(
        self,
        max_staleness: int,
        groups_per_step: int,
        max_running: int,
        learner_version: int = 1,
        delivered_version: int = 1,
        num_accepted: int = 0,
    ) -> None:
        """Raises `BadRequest` for bounds with which nothing could ever run."""
        if max_staleness < 0 or groups_per_step < 1 or max_running < 0:
            raise BadRequest("max_staleness and max_running must be at least 0, groups_per_step at least 1")
        self.max_staleness = max_staleness
        self.groups_per_step = groups_per_step
        self.learner_version = learner_version
        self.delivered_version = delivered_version
        self.num_accepted = num_accepted
        self.num_running = 0
        self._max_running = max_running

    @property
    def bound(self) -> int:
        """The most groups, running and accepted, that the delivered version allows."""
        return (self.max_staleness + self.delivered_version) * self.groups_per_step

    def capacity(self) -> int:
        """How many groups may start now, of the delivered version; none while that is itself too stale."""
        if not self.is_fresh(self.delivered_version):
            return 0
        by_staleness = self.bound - self.num_accepted - self.num_running
        return max(0, min(self._max_running - self.num_running, by_staleness))

    def is_fresh(self, version: int) -> bool:
        """Whether a group of this version may be learned from in the learner's next step."""
        return self.learner_version - version <= self.max_staleness

    def limit(self, max_running: int) -> None:
        """What runs over it goes on; nothing new starts."""
        self._max_running = max_running

    def started(self) -> None:
        self.num_running += 1

    def accepted(self) -> None:
        """A running group is one to learn from."""
        self._end()
        self.num_accepted += 1

    def lost(self) -> None:
        """A running group came to nothing."""
        self._end()

    def dropped(self) -> None:
        """An accepted group is not learned from after all."""
        if self.num_accepted == 0:
            raise Internal("a group was dropped that was never accepted; this is a defect, please report it")
        self.num_accepted -= 1

    def learned(self) -> None:
        """An optimizer step made the next version."""
        self.learner_version += 1

    def delivered(self, version: int) -> None:
        """The engines hold it; older news changes nothing."""
        self.delivered_version = max(self.delivered_version, version)

    def _end(self) -> None:
        if self.num_running == 0:
            raise Internal("a group ended that never started; this is a defect, please report it")
        self.num_running -= 1
