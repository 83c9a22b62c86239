import itertools

import pytest

from engines.errors import Conflict
from learners.status import TRANSITIONS, JobStatus, check_transition

LEGAL = {
    ("running", "running"),
    ("running", "succeeded"),
    ("running", "failed"),
    ("running", "cancelled"),
    ("failed", "running"),
    ("cancelled", "running"),
}


@pytest.mark.parametrize(("old", "new"), list(itertools.product(JobStatus, JobStatus)))
def test_only_the_drawn_transitions_are_legal(old: JobStatus, new: JobStatus) -> None:
    if (old.value, new.value) in LEGAL:
        check_transition(old, new)
        assert new in TRANSITIONS[old]
    else:
        with pytest.raises(Conflict):
            check_transition(old, new)
