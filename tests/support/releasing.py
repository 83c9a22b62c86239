"""A release on a whole stack under load: what is released, what goes wrong, and what must hold after it."""

from __future__ import annotations

import hashlib
import json
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmark import Metric, write
from load import Outcome, errors, wrong_answers
from oracle import weights_by_version
from replicas import find_replicas
from scene import Alias, Scene, check_no_errors, check_only_lost_connections
from stack import wait_until
from tiny_adapter import write_base

from engines.export_probe import EXPORT_FILE
from engines.fake.model import MODEL_FILE, FakeModel

RELEASE_TIMEOUT_S = 240.0
PROBE_TEXT, PROBE_ANSWER, NUM_TOKENS = "what is this?", "a circle", 2

Document = dict[str, Any]


def write_model(directory: Path, seed: int, *, starts: bool = True, probe: Sequence[float] = ()) -> Path:
    """Another base of the fake's. `probe`: the log-probabilities that its export recorded, of two tokens."""
    write_base(directory, seed)
    model = FakeModel(weights=f"weights-{seed}", starts=starts)
    (directory / MODEL_FILE).write_text(model.model_dump_json())
    if probe:
        record = {"text": PROBE_TEXT, "answer": PROBE_ANSWER, "num_tokens": NUM_TOKENS}
        record |= {"token_ids": probe_token_ids(), "logprobs": list(probe)}
        (directory / EXPORT_FILE).write_text(json.dumps({"scheme": "fp8", "probe": [record]}))
    return directory


def probe_token_ids() -> list[int]:
    """As the fake tokenizes the probe, whatever its weights."""
    return list(hashlib.sha256(f"{PROBE_TEXT}|{PROBE_ANSWER}|None".encode()).digest()[:NUM_TOKENS])


def new_model(root: Path, *, starts: bool = True, probe: tuple[float, ...] = ()) -> Path:
    """Another one for each directory."""
    return write_model(root / "model", seed=zlib.crc32(str(root).encode()), starts=starts, probe=probe)


def begin(scene: Scene, model: Path, *, in_place: bool = False) -> Document:
    with scene.stack.client() as http:
        body = {"path": str(model), "in_place": in_place}
        answer = http.post(f"/v1/engines/{scene.stack.engine}/release", json=body)
    assert answer.status_code == 202, answer.text
    document: Document = answer.json()
    return document


def generation(scene: Scene, name: str) -> Document:
    with scene.stack.client() as http:
        rows: list[Document] = http.get(f"/v1/engines/{scene.stack.engine}").json()["generations"]
    return next(row for row in rows if row["id"] == name)


def live(scene: Scene) -> str:
    """The generation that the alias is served by."""
    with scene.stack.client() as http:
        return str(http.get(f"/v1/aliases/{scene.stack.alias}").json()["engine"])


def release(scene: Scene, model: Path, *, in_place: bool = False) -> str:
    """The name of its generation, which is live."""
    name = str(begin(scene, model, in_place=in_place)["id"])
    wait_until(lambda: not generation(scene, name)["is_under_way"], f"{name} is released or not", RELEASE_TIMEOUT_S)
    ended = generation(scene, name)
    assert ended["state"] == "live", f"{ended}\n{scene.tail()}"
    return name


def wait_only(scene: Scene, engine: str) -> Alias:
    """Waits until the replicas of one generation, and no others, run and are in service."""
    actors = generation(scene, engine)["in_place_of"] or engine
    wanted, run = ({f"{name}/{number}" for number in range(scene.stack.replicas)} for name in (engine, actors))
    deadline_s = time.monotonic() + scene.recovery_timeout_s
    while set(find_replicas(scene.stack)) != run or scene.stack.ready_replicas() != wanted:
        seen = sorted(find_replicas(scene.stack)), sorted(scene.stack.ready_replicas())
        assert time.monotonic() < deadline_s, f"{seen}, not {sorted(wanted)}\n{scene.tail()}"
        time.sleep(0.1)
    return scene.wait_consistent()


def check_released(scene: Scene, model: Path, *arguments: str) -> Document:
    """By the command, under load: nobody is failed, and every answer is of the version that it names.

    The alias names an adapter before, and the new base after; the report is returned.
    """
    adapter = scene.publish()
    before = scene.alias()
    with scene.load() as load:
        load.wait_answers(2)
        done = scene.stack.tandem("engines", "release", "small", str(model), *arguments, *options(scene))
        load.wait_answers(3)
    report: Document = json.loads(done)
    assert report["state"] == "live", report
    after = wait_only(scene, report["id"])
    assert (after.live, after.previous, after.generation) == (report["version"], None, before.generation + 1)
    scene.judge(load.since())
    check_no_errors(load.since())
    assert versions_of(load.since()) == [adapter, report["version"]]
    return report


def check_nothing_changed(scene: Scene, model: Path, why: str, *arguments: str) -> None:
    """The command exits 4 and says why; aliases, replicas and answers are as before."""
    before, engine = scene.alias(), live(scene)
    with scene.load() as load:
        load.wait_answers(1)
        done = scene.stack.try_tandem("engines", "release", "small", str(model), *arguments, *options(scene))
        load.wait_answers(2)
    assert done.returncode == 4, done.stderr
    assert json.loads(done.stdout)["state"] == "failed"
    assert why in json.loads(done.stdout)["reason"] + done.stderr + scene.tail()
    assert wait_only(scene, engine) == before
    scene.judge(load.since())
    check_no_errors(load.since())


def kill_at(scene: Scene, model: Path, step: str, edge: str, *, in_place: bool = False) -> str:
    """SIGKILLs the gateway at a step under load, and starts it again; the name of the generation."""
    scene.stops.arm(step, edge)
    with scene.stops.released(), scene.load() as load:
        load.wait_answers(1)
        name = str(begin(scene, model, in_place=in_place)["id"])
        scene.stops.wait_reached(RELEASE_TIMEOUT_S)
        scene.stack.end_gateway_at_once()
        scene.start_gateway()
        load.wait_answers(2)
    scene.judge(load.since())
    check_only_lost_connections(load.since())
    return name


def options(scene: Scene) -> tuple[str, ...]:
    return ("-c", str(scene.stack.config), "--json")


def versions_of(outcomes: Sequence[Outcome]) -> list[str]:
    """In the order of their first answer."""
    return list(dict.fromkeys(one.version for one in sorted(outcomes, key=lambda one: one.end_s) if one.version))


def write_figures(
    name: str,
    command: str,
    config: Mapping[str, object],
    scene: Scene,
    releases: Mapping[str, str],
    outcomes: Sequence[Outcome],
) -> None:
    """`bench-results/NAME.json`: the seconds of each step, and how many requests failed. `releases`: by their kind."""
    wrong = wrong_answers(outcomes, scene.oracle, weights_by_version(scene.stack))
    counts = {
        "requests": len(outcomes),
        "requests failed": len(errors(outcomes)),
        "answers by another version than named": len(wrong),
    }
    metrics = [Metric(what, "count", [float(count)]) for what, count in counts.items()]
    for how, one in releases.items():
        metrics += [
            Metric(f"{how}: {step['step']}", "s", [step["seconds"]]) for step in generation(scene, one)["steps"]
        ]
    write(name, command, config, metrics)
