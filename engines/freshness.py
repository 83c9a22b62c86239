"""Whether an engine serves the weights of a step or those of the step before.

Two steps of a job differ by less than a limit on the error could notice on a quantized engine, where a single token's
noise is larger than what the step changed. But the change is known token by token, and noise is not like it: over all
tokens, an engine's (adapter - base) log-probabilities lie nearer to those of the weights that it serves. One step may
still look wrong by chance, so what several say is added up: the sequential test of Wald (1945), begun anew where it
speaks for these weights (CUSUM: Page, 1954).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from engines.adapter import ProbeRecord
from engines.errors import AdapterRefused
from engines.types import ProbeScore

STALE_EVIDENCE = 10.0
"""Log of the likelihood ratio, the weights before to these, over which they are taken for those before.

Were the noise normal and independent, false alarms would come some e^10 = 22,000 steps apart (Lorden, 1971). No limit
on one step alone would do: where noise covers what a step changed, good ones come over 2, and on FP8 one that is served
a step late may stay below 4.
"""


class FreshnessWatch:
    """Adds up what the versions say that one engine was brought."""

    def __init__(self) -> None:
        self._evidence = 0.0

    def check(
        self,
        records: Sequence[ProbeRecord],
        previous: Sequence[ProbeRecord],
        base: Sequence[ProbeScore],
        adapter: Sequence[ProbeScore],
    ) -> None:
        """`previous` are the same prompts under the weights before.

        Raises `AdapterRefused` once the engine's passes are clearly nearer to those: in one step where there is no
        noise, else in a few.
        """
        these, before, served = _learned(records), _learned(previous), _served(base, adapter)
        to_these, to_before = _distance(served, these), _distance(served, before)
        self._evidence = max(0.0, self._evidence + _evidence(these, before, to_these, to_before))
        if self._evidence > STALE_EVIDENCE:
            raise AdapterRefused(
                f"the engine serves the weights before these: its log-probabilities differ from the learner's by "
                f"{to_these:.4f}, and from those of the version before by {to_before:.4f} (root mean squares)"
            )


def _evidence(these: Sequence[float], before: Sequence[float], to_these: float, to_before: float) -> float:
    """The log of the likelihood ratio for normal noise of unknown size: n/2 log of the ratio of mean squares.

    n counts the tokens by how much the step moved them: most answers' tokens are certain, stay so, and tell nothing.
    """
    if to_these == to_before:
        return 0.0
    if min(to_these, to_before) == 0:
        return math.inf if to_before == 0 else -math.inf
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
