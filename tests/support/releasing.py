"""A release on a whole stack under load: what is released, what goes wrong, and what must hold after it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from load import Outcome
from replicas import find_replicas
from scene import Alias, Scene
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
    import hashlib

    return list(hashlib.sha256(f"{PROBE_TEXT}|{PROBE_ANSWER}|None".encode()).digest()[:NUM_TOKENS])


def begin(scene: Scene, model: Path) -> Document:
    with scene.stack.client() as http:
        answer = http.post(f"/v1/engines/{scene.stack.engine}/release", json={"path": str(model)})
    assert answer.status_code == 202, answer.text
    document: Document = answer.json()
    return document


def generation(scene: Scene, name: str) -> Document:
    with scene.stack.client() as http:
        rows: list[Document] = http.get(f"/v1/engines/{scene.stack.engine}").json()["generations"]
    return next(row for row in rows if row["id"] == name)


def wait_ended(scene: Scene, name: str) -> Document:
    wait_until(lambda: not generation(scene, name)["is_under_way"], f"{name} is released or not", RELEASE_TIMEOUT_S)
    return generation(scene, name)


def wait_only(scene: Scene, engine: str) -> Alias:
    """Waits until the replicas of one generation, and no others, run and are in service."""
    names = {f"{engine}/{number}" for number in range(scene.stack.replicas)}
    deadline_s = time.monotonic() + scene.recovery_timeout_s
    while set(find_replicas(scene.stack)) != names or scene.stack.ready_replicas() != names:
        seen = sorted(find_replicas(scene.stack)), sorted(scene.stack.ready_replicas())
        assert time.monotonic() < deadline_s, f"{seen}, not {sorted(names)}\n{scene.tail()}"
        time.sleep(0.1)
    return scene.wait_consistent()


def versions_of(outcomes: Sequence[Outcome]) -> list[str]:
    """In the order of their first answer."""
    return list(dict.fromkeys(one.version for one in sorted(outcomes, key=lambda one: one.end_s) if one.version))
