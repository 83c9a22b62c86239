"""What goes wrong at a step of a publish, and what must hold after it: one logic for every step, victim and engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from load import Outcome
from replicas import ReplicaProcess, replica
from scene import (
    Alias,
    Answer,
    Publish,
    Scene,
    check_no_errors,
    check_only_broken_streams,
    check_only_lost_connections,
)
from stepping import STEPS

REACH_TIMEOUT_S = 120.0
ANSWERS_BETWEEN = 3


class Victim(StrEnum):
    GATEWAY = "gateway"
    ACTOR = "actor"
    ENGINE = "engine"


@dataclass(frozen=True)
class Case:
    """`victim` is killed (SIGKILL) while the publish stands at the `edge` (entry or exit) of `step`."""

    step: str
    edge: str
    victim: Victim

    def __str__(self) -> str:
        return f"{self.victim}-at-{self.step}-{self.edge}"

    @property
    def is_flipped(self) -> bool:
        """The database has the new version as live by then."""
        return (STEPS.index(self.step), self.edge) >= (STEPS.index("flip"), "exit")

    @property
    def replica_name(self) -> str:
        """Which one is killed: the steps take turns."""
        return f"small/{STEPS.index(self.step) % 2}"


def every_case() -> list[Case]:
    """Each step's entry for each victim; for the gateway also the exits whose entry says nothing of them."""
    entries = [Case(step, "entry", victim) for step in STEPS for victim in Victim]
    return [*entries, Case("flip", "exit", Victim.GATEWAY), Case("retire", "exit", Victim.GATEWAY)]


def kill_at_step(scene: Scene, case: Case) -> str:
    """Kills, lets the publish go on, and checks the clients, the alias and the engines.

    Returns the version that was published after it.
    """
    before = scene.alias()
    version = scene.register()
    scene.stops.arm(case.step, case.edge)
    with scene.stops.released(), scene.load() as load:
        publish = Publish(scene, version)
        scene.stops.wait_reached(REACH_TIMEOUT_S)
        load.wait_answers(ANSWERS_BETWEEN)
        _kill(scene, case)
        answer = publish.answer()
        after = scene.wait_consistent()
        load.wait_answers(ANSWERS_BETWEEN)
        _check_alias(case, before, version, answer, after)
        further = scene.publish()
        scene.wait_consistent()
        load.wait_answers(ANSWERS_BETWEEN)
    _check_clients(scene, case, load.since())
    return further


def fail_at_stage(
    scene: Scene,
    name: str,
    break_it: Callable[[ReplicaProcess, str], None],
    heal: Callable[[ReplicaProcess], None] = lambda _: None,
) -> str:
    """`break_it(replica, version)` runs between `copy` and `stage`: nothing may have changed, for nobody.

    Once healed the same version is published. Returns what the first publish answered.
    """
    before = scene.alias()
    version = scene.register()
    scene.stops.arm("stage", "entry")
    with scene.stops.released(), scene.load() as load:
        publish = Publish(scene, version)
        scene.stops.wait_reached(REACH_TIMEOUT_S)
        broken = replica(scene.stack, name)
        break_it(broken, version)
        scene.stops.let_go()
        answer = publish.answer()
        assert not answer.is_ok
        assert scene.wait_consistent() == before
        load.wait_answers(ANSWERS_BETWEEN)
        heal(broken)
        again = scene.promote(version)
        assert again.is_ok, again
        assert scene.wait_consistent().live == version
        load.wait_answers(ANSWERS_BETWEEN)
    scene.judge(load.since())
    check_no_errors(load.since())
    return str(answer.body["error"]["message"])


def _kill(scene: Scene, case: Case) -> None:
    if case.victim is Victim.GATEWAY:
        scene.stack.end_gateway_at_once()
        scene.start_gateway()
        return
    victim = replica(scene.stack, case.replica_name)
    if case.victim is Victim.ACTOR:
        victim.kill_actor()
    else:
        victim.running.kill()
    scene.stops.let_go()


def _check_alias(case: Case, before: Alias, version: str, answer: Answer, after: Alias) -> None:
    """Old or new, and nothing between; what a caller was told is what it is."""
    if case.is_flipped or answer.is_ok:
        assert (after.live, after.previous) == (version, before.live), f"{before} became {after}, answered {answer}"
    else:
        assert after == before, f"{before} became {after}, answered {answer}"
    if case.victim is Victim.GATEWAY:
        assert answer.status == 0, f"a gateway that was killed answered {answer}"
    elif case.is_flipped:
        assert answer.is_ok, f"it was live already, and yet: {answer}"
    elif not answer.is_ok:
        assert set(answer.body["error"]) == {"message", "type", "param", "code"}, answer


def _check_clients(scene: Scene, case: Case, outcomes: Sequence[Outcome]) -> None:
    scene.judge(outcomes)
    if case.victim is Victim.GATEWAY:
        check_only_lost_connections(outcomes)
    else:
        check_only_broken_streams(outcomes, case.replica_name)
