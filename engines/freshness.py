"""Whether an engine serves the weights of a step or those of the step before.

Two steps of a job differ by less than a limit on the error could notice on a quantized engine, where a single token's
noise is larger than what the step changed. But the change is known token by token, and noise is not like it: over all
tokens, an engine's (adapter - base) log-probabilities lie nearer to those of the weights that it serves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from engines.adapter import ProbeRecord
from engines.errors import AdapterRefused
from engines.types import ProbeScore

STALE_EVIDENCE = 4.0
"""Log of the likelihood ratio, the weights before to these, over which they are taken for those before.

Measured on FP8, over 39 steps that changed 0.003 to 0.008 each and 16 prompts: -6.8 at most where the engine served the
newest weights, 4.7 or more where it served those before.
"""


def check_fresh(
    records: Sequence[ProbeRecord],
    previous: Sequence[ProbeRecord],
    base: Sequence[ProbeScore],
    adapter: Sequence[ProbeScore],
) -> None:
    """Where the two can be told apart. `previous` are the same prompts under the weights before.

    Raises `AdapterRefused` if the engine's pass is clearly nearer to those.
    """
    these, before, served = _learned(records), _learned(previous), _served(base, adapter)
    to_these, to_before = _distance(served, these), _distance(served, before)
    if to_these > to_before and _evidence(these, before, to_these, to_before) > STALE_EVIDENCE:
        raise AdapterRefused(
            f"the engine serves the weights before these: its log-probabilities differ from the learner's by "
            f"{to_these:.4f}, and from those of the version before by {to_before:.4f} (root mean squares)"
        )


def _evidence(these: Sequence[float], before: Sequence[float], to_these: float, to_before: float) -> float:
    """The log of the likelihood ratio for normal noise of unknown size: n/2 log of the ratio of mean squares.

    n counts the tokens by how much the step moved them: most answers' tokens are certain, stay so, and tell nothing.
    """
    if to_before == 0:
        return math.inf
    moved = [abs(a - b) for a, b in zip(these, before, strict=True)]
    num_moved = sum(moved) ** 2 / sum(x * x for x in moved)
    return num_moved * math.log(to_these / to_before)


def _learned(records: Sequence[ProbeRecord]) -> list[float]:
    return [
        after - before
        for record in records
        for after, before in zip(record.adapter_logprobs, record.base_logprobs, strict=True)
    ]


def _served(base: Sequence[ProbeScore], adapter: Sequence[ProbeScore]) -> list[float]:
    return [
        after - before
        for plain, tuned in zip(base, adapter, strict=True)
        for after, before in zip(tuned.logprobs, plain.logprobs, strict=True)
    ]


def _distance(served: Sequence[float], learned: Sequence[float]) -> float:
    """Root mean square over tokens, in nats."""
    squares = [(x - y) ** 2 for x, y in zip(served, learned, strict=True)]
    return math.sqrt(sum(squares) / len(squares)) if squares else 0.0
