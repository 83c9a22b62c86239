"""A publish that goes wrong, on a whole stack under load: what a test does to it, and what must hold afterwards."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
from load import Ending, Load, Outcome, by_ending, errors, wrong_answers
from oracle import Oracle, weights_by_version
from replicas import ReplicaProcess, engine_groups, find_replicas
from stack import Stack, wait_until
from stepping import Stops

PUBLISH_TIMEOUT_S = 240.0
FAKE_RECOVERY_TIMEOUT_S = 120.0
VLLM_RECOVERY_TIMEOUT_S = 400.0


@dataclass(frozen=True)
class Alias:
    """What the alias names, as `GET /v1/aliases` says it."""

    live: str
    previous: str | None
    generation: int

    def adapters(self) -> frozenset[str]:
        """What every replica must hold: the bare base goes without saying."""
        return frozenset(name for name in (self.live, self.previous) if name and not name.endswith("@0"))


@dataclass(frozen=True)
class Answer:
    """Of a publish or a rollback: status 0 if the gateway went away before it answered."""

    status: int
    body: dict[str, Any]

    @property
    def is_ok(self) -> bool:
        return self.status == 200


class Publish(threading.Thread):
    """`POST promote` on a thread of its own; `answer` once it has ended."""

    def __init__(self, scene: Scene, version: str) -> None:
        super().__init__(name=f"publish-{version}")
        self.version = version
        self._scene = scene
        self._answer: Answer | None = None
        self.start()

    def run(self) -> None:
        self._answer = self._scene.promote(self.version)

    def answer(self) -> Answer:
        self.join(PUBLISH_TIMEOUT_S)
        assert self._answer is not None, f"the publish of {self.version} has not ended"
        return self._answer


class Scene:
    """One stack whose gateway can be stopped at a step, adapters to publish in turn, and who knows their answers."""

    def __init__(
        self, stack: Stack, stops: Stops, adapters: Sequence[Path], oracle: Oracle, recovery_timeout_s: float
    ) -> None:
        self.stack = stack
        self.stops = stops
        self.oracle = oracle
        self.recovery_timeout_s = recovery_timeout_s
        self._adapters = adapters
        self._turn = 0

    def start_gateway(self) -> None:
        """Starts it, or starts it again, so that it stops where `stops` says; returns once it answers."""
        self.stops.clear()
        self.stack.launch(*self.stops.command(), environment=self.stops.environment())

    def register(self) -> str:
        """A new version: the adapters take turns."""
        self._turn += 1
        path = self._adapters[self._turn % len(self._adapters)]
        with self.stack.client() as http:
            answer = http.post("/v1/versions", json={"alias": self.stack.alias, "path": str(path)})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def promote(self, version: str) -> Answer:
        return self._change("promote", {"version": version})

    def rollback(self) -> Answer:
        return self._change("rollback", {})

    def publish(self) -> str:
        """Registers and promotes a new version, which must work."""
        version = self.register()
        answer = self.promote(version)
        assert answer.is_ok, f"{version} was not published: {answer}\n{self.tail()}"
        return version

    def replicas(self) -> Mapping[str, ReplicaProcess]:
        return find_replicas(self.stack)

    def alias(self) -> Alias:
        with self.stack.client() as http:
            (row,) = http.get("/v1/aliases").json()["data"]
        return Alias(row["live"], row["previous"], row["generation"])

    def wait_consistent(self) -> Alias:
        """Waits until all replicas are in service and each engine holds what the alias names, and nothing else."""
        deadline_s = time.monotonic() + self.recovery_timeout_s
        self.stack.wait_in_service(self.recovery_timeout_s)
        alias = self.alias()
        held = self._held()
        while set(held.values()) != {alias.adapters()} or len(held) != self.stack.replicas:
            assert time.monotonic() < deadline_s, f"{alias}, but the engines hold {held}\n{self.tail()}"
            time.sleep(0.1)
            held = self._held()
        self._check_no_orphans()
        return alias

    def tail(self) -> str:
        """The end of the gateway's log, for a message."""
        return self.stack.gateway_log()[-4000:]

    def judge(self, outcomes: Sequence[Outcome]) -> None:
        """No answer may be of another version than it names, and no replica be asked for what it does not hold."""
        wrong = wrong_answers(outcomes, self.oracle, weights_by_version(self.stack))
        assert not wrong, f"{len(wrong)} of {len(outcomes)}: {wrong[:5]}"
        with self.stack.client() as http:
            metrics = http.get("/metrics").text.splitlines()
        in_vain = [line for line in metrics if line.startswith("tandem_retries_total{") and "not_held" in line]
        assert not in_vain, f"a replica was asked for a version that it did not hold: {in_vain}"

    @contextmanager
    def load(self, num_clients: int = 4) -> Iterator[Load]:
        load = Load(self.stack, self.oracle, num_clients)
        load.start()
        try:
            yield load
        finally:
            load.stop()

    def _change(self, verb: str, body: dict[str, str]) -> Answer:
        with httpx2.Client(base_url=self.stack.url, timeout=PUBLISH_TIMEOUT_S, trust_env=False) as http:
            try:
                answer = http.post(f"/v1/aliases/{self.stack.alias}/{verb}", json=body)
            except httpx2.TransportError as error:
                return Answer(0, {"transport": repr(error)})
        is_json = answer.headers.get("content-type", "").startswith("application/json")
        return Answer(answer.status_code, answer.json() if is_json else {"text": answer.text})

    def _held(self) -> dict[str, frozenset[str] | None]:
        found = {}
        for name, one in find_replicas(self.stack).items():
            try:
                found[name] = None if one.engine is None else one.engine.adapters()
            except httpx2.TransportError:  # on its way up or down
                found[name] = None
        return found

    def _check_no_orphans(self) -> None:
        def mine() -> frozenset[int]:
            found = find_replicas(self.stack).values()
            return frozenset(one.engine.group for one in found if one.engine is not None)

        wait_until(lambda: engine_groups(self.stack) == mine(), "no engine without its actor", self.recovery_timeout_s)


@contextmanager
def running(scene: Scene) -> Iterator[Scene]:
    """Starts it, all replicas in service; stops all of it at the end."""
    try:
        scene.start_gateway()
        scene.stack.wait_in_service()
        yield scene
    finally:
        scene.stack.stop()


def check_only_broken_streams(outcomes: Sequence[Outcome], replica: str) -> None:
    """A replica was killed: nobody but who was in mid-stream on it may have seen an error."""
    bad = [one for one in errors(outcomes) if one.ending is not Ending.ERROR_EVENT or one.replica != replica]
    assert not bad, f"{by_ending(outcomes)}: {[one.short() for one in bad[:5]]}"


def check_only_lost_connections(outcomes: Sequence[Outcome]) -> None:
    """The gateway was killed: connections broke or were refused, and nothing else."""
    bad = [one for one in errors(outcomes) if one.ending not in (Ending.CUT, Ending.REFUSED)]
    assert not bad, f"{by_ending(outcomes)}: {[one.short() for one in bad[:5]]}"


def check_no_errors(outcomes: Sequence[Outcome]) -> None:
    bad = errors(outcomes)
    assert not bad, f"{by_ending(outcomes)}: {[one.short() for one in bad[:5]]}"
