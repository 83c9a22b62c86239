"""Clients that give feedback on what they were answered, and remember what was acknowledged: a ledger of their own."""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
from load import BACK_OFF_S, Ending, Load, Outcome
from oracle import Oracle
from stack import Stack, wait_until

from gateway.store import open_store

ACKNOWLEDGED = (200, 201)
REPEATED_SHARE = 0.2


@dataclass(frozen=True, order=True)
class Entry:
    """One feedback as it was acknowledged, or as the store has it."""

    key: str
    id: str
    completion_id: str
    value: str


@dataclass
class Ledger:
    """What the clients know. Each list has one writer at a time: appending is atomic."""

    acknowledged: list[Entry] = field(default_factory=list)
    unknown: list[Outcome] = field(default_factory=list)
    """Completions that the gateway did not know any more: it died before their rows were written."""
    retries: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)


class FeedbackLoad(Load):
    """After each answer sends a correction, with one Idempotency-Key until it is acknowledged; some of them twice."""

    def __init__(self, stack: Stack, oracle: Oracle, num_clients: int, seed: int) -> None:
        super().__init__(stack, oracle, num_clients)
        self.ledger = Ledger()
        self._random = random.Random(seed)
        self._local = threading.local()

    def note(self, outcome: Outcome) -> None:
        if outcome.ending is not Ending.ANSWERED:
            return
        number = self._local.number = getattr(self._local, "number", 0) + 1
        key = f"{threading.current_thread().name}-{number}"
        repeated = self._random.random() < REPEATED_SHARE
        body = {"completion_id": outcome.id, "metric": "correction", "value": f"what {key} should have been"}
        with self._stack.client() as http:
            first = self._send(http, key, body, outcome)
            if first is None:
                return
            self.ledger.acknowledged.append(Entry(key, first, outcome.id, body["value"]))
            if repeated and self._send(http, key, body, outcome) != first:
                self.ledger.wrong.append(f"{key} was acknowledged twice, by different ids")

    def _send(self, http: httpx2.Client, key: str, body: dict[str, str], outcome: Outcome) -> str | None:
        """Returns the feedback's id; None for a completion that is not known."""
        found: list[httpx2.Response] = []

        def is_settled() -> bool:
            try:
                answer = http.post("/v1/feedback", json=body, headers={"Idempotency-Key": key})
            except httpx2.TransportError as error:
                self.ledger.retries[type(error).__name__] += 1
                self._stopping.wait(BACK_OFF_S)
                return False
            found.append(answer)
            if answer.status_code >= 500:
                self.ledger.retries[str(answer.status_code)] += 1
            return answer.status_code < 500

        wait_until(is_settled, f"feedback {key} is acknowledged", timeout_s=240.0)
        answer = found[-1]
        if answer.status_code == 404:
            self.ledger.unknown.append(outcome)
            return None
        if answer.status_code not in ACKNOWLEDGED:
            self.ledger.wrong.append(f"{key}: {answer.status_code} {answer.text}")
            return None
        return str(answer.json()["id"])


def stored(data: Path) -> list[Entry]:
    """All corrections of the store, sorted; it may be open in a gateway meanwhile."""
    store = open_store(f"sqlite:///{data}/tandem.db")
    try:
        rows = store.feedback.of_metric("correction")
        return sorted(Entry(str(row.idempotency_key), row.id, row.completion_id, json.loads(row.value)) for row in rows)
    finally:
        store.close()
