"""What a version must answer: by the hash of its weights, so that the same files under another name answer alike."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from stack import Stack

from engines.fake.chat import ChatRequest, complete, prompt_bytes
from engines.fake.model import MODEL_FILE

Messages = list[dict[str, Any]]
MAX_TOKENS = 24
BASE = ""


class Oracle(Protocol):
    @property
    def questions(self) -> Sequence[Messages]: ...

    def text(self, weights_sha256: str, question: int) -> str:
        """The answer to `questions[question]`; the bare base's hash is `BASE`."""


class FakeOracle:
    """Computes what the fake engine answers."""

    def __init__(self, num_questions: int = 8) -> None:
        self.questions: Sequence[Messages] = [
            [{"role": "user", "content": f"what is number {number}?"}] for number in range(num_questions)
        ]

    def text(self, weights_sha256: str, question: int) -> str:
        body = ask_body("any", self.questions[question], stream=False)
        prompt = prompt_bytes(self.questions[question])
        return complete(weights_sha256, prompt, ChatRequest.model_validate(body), 0).text


class LearnedOracle:
    """Knows what was answered in quiet; `learn` each weights' answers before there is any trouble."""

    def __init__(self, questions: Sequence[Messages]) -> None:
        self.questions = questions
        self._texts: dict[tuple[str, int], str] = {}

    def learn(self, stack: Stack, model: str, weights_sha256: str) -> None:
        with stack.client() as http:
            for number, messages in enumerate(self.questions):
                answer = http.post("/v1/chat/completions", json=ask_body(model, messages, stream=False))
                assert answer.status_code == 200, answer.text
                self._texts[weights_sha256, number] = answer.json()["choices"][0]["message"]["content"]

    def texts(self, weights_sha256: str) -> tuple[str, ...]:
        return tuple(self._texts[weights_sha256, number] for number in range(len(self.questions)))

    def text(self, weights_sha256: str, question: int) -> str:
        return self._texts[weights_sha256, question]


def ask_body(model: str, messages: Messages, *, stream: bool) -> dict[str, Any]:
    """Greedy, so that an answer is a function of the version."""
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": MAX_TOKENS, "stream": stream}


def weights_by_version(stack: Stack) -> Mapping[str, str]:
    """Version -> SHA-256 of its weights, the bare base included."""
    with stack.client() as http:
        rows = http.get("/v1/versions").json()["data"]
        generations = http.get(f"/v1/engines/{stack.engine}").json()["generations"]
    return {row["id"]: row["weights_sha256"] for row in rows} | {one["version"]: _base_key(one) for one in generations}


def _base_key(generation: Mapping[str, Any]) -> str:
    """What a generation's bare base is known by: a released model's directory, unless a fake one says more."""
    said = Path(generation["model"]) / MODEL_FILE
    if said.exists():
        return str(json.loads(said.read_text()).get("weights", BASE))
    return BASE if generation["number"] == 1 else str(generation["model"])
