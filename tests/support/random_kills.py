"""Kills at random instants, seeded, while versions are published, rolled back, asked and judged."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx2
from benchmark import Metric, write
from killing import Victim
from ledger import FeedbackLoad, stored
from load import Ending, Outcome, by_ending, errors
from replicas import find_replicas
from scene import Scene

PUBLISH_PAUSE_S = (0.5, 3.0)
ROLLBACK_SHARE = 0.3
ROW_DELAY_S = 5.0
"""A completion whose row a dying gateway took along ended at most so long before (a generous bound, for a busy box)."""


@dataclass(frozen=True)
class Plan:
    """`pause_s` is the range of the pauses between kills."""

    name: str
    seed: int
    duration_s: float
    pause_s: tuple[float, float]
    num_clients: int = 4


@dataclass(frozen=True)
class Kill:
    """`replica` is empty for the gateway. Down from `start_s` to `end_s`: for a gateway until it answers again."""

    victim: Victim
    replica: str
    start_s: float
    end_s: float

    def covers(self, outcome: Outcome, before_s: float = 0.0) -> bool:
        return outcome.start_s <= self.end_s and outcome.end_s >= self.start_s - before_s


@dataclass
class Figures:
    kills: list[Kill] = field(default_factory=list)
    publishes: Counter[str] = field(default_factory=Counter)
    in_service_s: float = 0.0
    """From the last kill until every replica takes traffic again."""
    published_s: float = 0.0
    """From the last kill until a version was published to all of them."""
    engine_start_s: float = 0.0


class Publishing(threading.Thread):
    """Publishes and rolls back at random until it is told to end."""

    def __init__(self, scene: Scene, seed: int, figures: Figures) -> None:
        super().__init__(name="publishing")
        self._scene = scene
        self._random = random.Random(seed)
        self._figures = figures
        self._ending = threading.Event()

    def run(self) -> None:
        while not self._ending.wait(self._random.uniform(*PUBLISH_PAUSE_S)):
            verb = "rollback" if self._random.random() < ROLLBACK_SHARE else "promote"
            self._figures.publishes[f"{verb}: {self._try(verb)}"] += 1

    def end(self) -> None:
        self._ending.set()
        self.join()

    def _try(self, verb: str) -> str:
        try:
            answer = self._scene.rollback() if verb == "rollback" else self._scene.promote(self._scene.register())
        except httpx2.TransportError:
            return "no connection"
        if answer.status in (0, 200):
            return "200" if answer.is_ok else "no connection"
        return f"{answer.status} {answer.body['error']['code']}"


def run(scene: Scene, plan: Plan) -> Figures:
    """All of it; raises on the first thing that must not be, and writes `bench-results/NAME.json` in any case."""
    figures = Figures()
    figures.engine_start_s = _time_an_engine_start(scene)
    load = FeedbackLoad(scene.stack, scene.oracle, plan.num_clients, plan.seed)
    publishing = Publishing(scene, plan.seed + 1, figures)
    load.start()
    publishing.start()
    try:
        _kill_at_random(scene, plan, figures)
        last_s = figures.kills[-1].start_s
        scene.stack.wait_in_service(scene.recovery_timeout_s)
        figures.in_service_s = time.monotonic() - last_s
        publishing.end()
        scene.publish()
        figures.published_s = time.monotonic() - last_s
        scene.wait_consistent()
        load.wait_answers(3)
    finally:
        publishing.end()
        load.stop()
        _report(plan, figures, load)
    _check(scene, figures, load)
    return figures


def _time_an_engine_start(scene: Scene) -> float:
    """From an engine's death until its replica is in service again, in quiet."""
    victim = find_replicas(scene.stack)[f"{scene.stack.engine}/0"]
    start_s = time.monotonic()
    victim.running.kill()
    scene.wait_consistent()
    return time.monotonic() - start_s


def _kill_at_random(scene: Scene, plan: Plan, figures: Figures) -> None:
    chance = random.Random(plan.seed)
    pause = threading.Event()
    end_s = time.monotonic() + plan.duration_s
    turns: list[Victim] = []
    while time.monotonic() < end_s:
        pause.wait(chance.uniform(*plan.pause_s))
        turns = turns or chance.sample(list(Victim), len(Victim))
        kill = _kill(scene, turns.pop(), chance.randrange(scene.stack.replicas))
        if kill is not None:
            figures.kills.append(kill)
    assert {kill.victim for kill in figures.kills} == set(Victim), f"too few kills: {figures.kills}"


def _kill(scene: Scene, victim: Victim, number: int) -> Kill | None:
    """None where there is nothing to kill: it is down already."""
    start_s = time.monotonic()
    if victim is Victim.GATEWAY:
        scene.stack.end_gateway_at_once()
        scene.start_gateway()
        return Kill(victim, "", start_s, time.monotonic())
    name = f"{scene.stack.engine}/{number}"
    process = find_replicas(scene.stack).get(name)
    if process is None or process.engine is None:
        return None
    start_s = time.monotonic()
    process.kill_actor() if victim is Victim.ACTOR else process.engine.kill()
    return Kill(victim, name, start_s, time.monotonic())


def _check(scene: Scene, figures: Figures, load: FeedbackLoad) -> None:
    outcomes = load.since()
    scene.judge(outcomes)
    unexplained = [one.short() for one in errors(outcomes) if not _is_explained(one, figures.kills)]
    assert not unexplained, f"{len(unexplained)} errors without a cause: {unexplained[:5]}"
    defects = [said for said in figures.publishes if "internal_error" in said]
    assert not defects, f"{figures.publishes}\n{scene.tail()}"
    ledger = load.ledger
    assert not ledger.wrong, ledger.wrong[:5]
    assert ledger.acknowledged
    gateway_kills = [kill for kill in figures.kills if kill.victim is Victim.GATEWAY]
    lost = [one for one in ledger.unknown if not any(kill.covers(one, ROW_DELAY_S) for kill in gateway_kills)]
    assert not lost, f"completions that no gateway took along: {[one.short() for one in lost[:5]]}"
    assert sorted(ledger.acknowledged) == stored(scene.stack.data)


def _is_explained(outcome: Outcome, kills: Sequence[Kill]) -> bool:
    """Connections break only with the gateway, streams with their replica; no replica is a 503 with Retry-After.

    A 502 is what an engine said while it was being killed, with no other replica to ask.
    """
    if outcome.ending in (Ending.CUT, Ending.REFUSED):
        return any(kill.victim is Victim.GATEWAY and kill.covers(outcome) for kill in kills)
    if outcome.ending is Ending.ERROR_EVENT:
        return any(kill.replica == outcome.replica and kill.covers(outcome) for kill in kills)
    if outcome.ending is Ending.STATUS and outcome.status == 502:
        return any(kill.victim is not Victim.GATEWAY and kill.covers(outcome) for kill in kills)
    return outcome.ending is Ending.STATUS and outcome.status == 503 and bool(outcome.retry_after)


def _report(plan: Plan, figures: Figures, load: FeedbackLoad) -> None:
    outcomes = load.since()
    counts = {f"kills, {victim}": sum(kill.victim is victim for kill in figures.kills) for victim in Victim}
    counts |= {"requests": len(outcomes)}
    counts |= {f"requests, {ending}": number for ending, number in by_ending(outcomes).items()}
    counts |= {f"publishes, {said}": number for said, number in figures.publishes.items()}
    counts |= {f"feedback retries, {why}": number for why, number in load.ledger.retries.items()}
    counts |= {"feedback acknowledged": len(load.ledger.acknowledged)}
    counts |= {"completions that died with a gateway": len(load.ledger.unknown)}
    gateways = [kill.end_s - kill.start_s for kill in figures.kills if kill.victim is Victim.GATEWAY]
    metrics = [Metric(name, "count", [float(number)]) for name, number in counts.items()]
    metrics += [Metric("gateway away", "s", gateways)] if gateways else []
    metrics += [
        Metric("all replicas in service after the last kill", "s", [figures.in_service_s]),
        Metric("a version published after the last kill", "s", [figures.published_s]),
        Metric("two engine starts, as they are in quiet", "s", [2 * figures.engine_start_s]),
    ]
    config = {"seed": plan.seed, "duration_s": plan.duration_s, "pause_s": plan.pause_s, "clients": plan.num_clients}
    write(plan.name, f"pytest -m slow tests/chaos/test_random_kills.py -k {plan.name.split('-')[1]}", config, metrics)
