"""A steady load of several clients. Each answer is judged: who gave it, of which version, its text, how it ended."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

import httpx2
from oracle import Messages, Oracle, ask_body
from stack import Stack

BACK_OFF_S = 0.2


class Ending(StrEnum):
    """How a request ended, as its client saw it."""

    ANSWERED = "answered"
    ERROR_EVENT = "error event"
    """A stream that began, said what is wrong in a `data:` event, and was closed in order."""
    TRUNCATED = "truncated"
    """A stream that was closed in order with neither an end nor an error: nobody may ever see one."""
    CUT = "cut"
    """The connection broke, before or in the answer."""
    REFUSED = "refused"
    """No connection."""
    STATUS = "status"
    """Another status than 200."""


@dataclass(frozen=True)
class Outcome:
    """One request. Times are monotonic seconds."""

    start_s: float
    question: int
    stream: bool
    ending: Ending = Ending.CUT
    end_s: float = 0.0
    status: int = 0
    id: str = ""
    version: str = ""
    model: str = ""
    replica: str = ""
    retry_after: str = ""
    text: str = ""
    detail: str = ""

    def short(self) -> str:
        kind = "stream" if self.stream else "whole"
        return f"{self.ending} ({kind}, {self.status}, {self.version} on {self.replica or '?'}): {self.detail[:300]}"


@dataclass
class _Reading:
    """What a stream has said so far."""

    texts: list[str] = field(default_factory=list)
    models: set[str] = field(default_factory=set)
    id: str = ""
    error: str = ""
    is_done: bool = False

    def read(self, line: str) -> None:
        if not line.startswith("data: "):
            return
        if line == "data: [DONE]":
            self.is_done = True
            return
        event = json.loads(line.removeprefix("data: "))
        if "error" in event:
            self.error = json.dumps(event["error"])
            return
        self.id, self.models = event["id"], self.models | {event["model"]}
        self.texts += [choice["delta"].get("content") or "" for choice in event["choices"]]


class Asker:
    """One client: asks, and says how it went. Belongs to one thread."""

    def __init__(self, stack: Stack, model: str, timeout_s: float = 120.0) -> None:
        self._model = model
        self._http = httpx2.Client(base_url=stack.url, timeout=timeout_s, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def ask(self, question: int, messages: Messages, *, stream: bool) -> Outcome:
        outcome = Outcome(time.monotonic(), question, stream)
        body = ask_body(self._model, messages, stream=stream)
        try:
            with self._http.stream("POST", "/v1/chat/completions", json=body) as answer:
                headers = answer.headers
                outcome = replace(
                    outcome,
                    status=answer.status_code,
                    version=headers.get("x-tandem-version", ""),
                    replica=headers.get("x-tandem-replica", ""),
                    retry_after=headers.get("retry-after", ""),
                )
                outcome = self._read(answer, outcome)
        except httpx2.ConnectError as error:
            outcome = replace(outcome, ending=Ending.REFUSED, detail=repr(error))
        except httpx2.TransportError as error:
            outcome = replace(outcome, ending=Ending.CUT, detail=repr(error))
        return replace(outcome, end_s=time.monotonic())

    def _read(self, answer: httpx2.Response, outcome: Outcome) -> Outcome:
        if answer.status_code != 200:
            return replace(outcome, ending=Ending.STATUS, detail=answer.read().decode(errors="replace"))
        if not outcome.stream:
            body = json.loads(answer.read())
            text = body["choices"][0]["message"]["content"]
            return replace(outcome, ending=Ending.ANSWERED, id=body["id"], model=body["model"], text=text)
        reading = _Reading()
        for line in answer.iter_lines():
            reading.read(line)
        ending = Ending.ERROR_EVENT if reading.error else Ending.ANSWERED if reading.is_done else Ending.TRUNCATED
        return replace(
            outcome,
            ending=ending,
            id=reading.id,
            model=",".join(sorted(reading.models)),
            text="".join(reading.texts),
            detail=reading.error,
        )


class Load:
    """Clients that ask one alias again and again, every other one by streams, from `start` to `stop`."""

    def __init__(self, stack: Stack, oracle: Oracle, num_clients: int = 4) -> None:
        self._stack = stack
        self._oracle = oracle
        self._stopping = threading.Event()
        self._outcomes: list[Outcome] = []
        self._troubles: list[Exception] = []
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"client-{number}") for number in range(num_clients)
        ]

    def start(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def stop(self) -> None:
        """Returns once every client has ended; raises what made one of them stop."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        if self._troubles:
            raise self._troubles[0]

    def mark(self) -> int:
        """A place among the outcomes, for `since`."""
        return len(self._outcomes)

    def since(self, mark: int = 0) -> tuple[Outcome, ...]:
        return tuple(self._outcomes[mark:])

    def wait_answers(self, number: int, timeout_s: float = 60.0) -> None:
        """Waits for so many more answers of each client."""
        wanted = self._num_answers() + number * len(self._threads)
        deadline_s = time.monotonic() + timeout_s
        while self._num_answers() < wanted:
            said = f"{by_ending(self._outcomes)}, {self._troubles}"
            assert time.monotonic() < deadline_s, f"no {number} more answers: {said}"
            self._stopping.wait(0.05)

    def note(self, outcome: Outcome) -> None:
        """For those who do more with an answer: called on the client's thread."""

    def _num_answers(self) -> int:
        return sum(outcome.ending is Ending.ANSWERED for outcome in self._outcomes)

    def _run(self, number: int) -> None:
        asker = Asker(self._stack, self._stack.alias)
        try:
            self._ask_until_stopped(asker, number)
        except Exception as error:
            self._troubles.append(error)
        finally:
            asker.close()

    def _ask_until_stopped(self, asker: Asker, number: int) -> None:
        questions = self._oracle.questions
        turn = number
        while not self._stopping.is_set():
            turn += 1
            question = turn % len(questions)
            outcome = asker.ask(question, questions[question], stream=number % 2 == 0)
            self._outcomes.append(outcome)
            self.note(outcome)
            if outcome.ending is Ending.REFUSED or outcome.status == 503:
                self._stopping.wait(BACK_OFF_S)


def wrong_answers(outcomes: Iterable[Outcome], oracle: Oracle, weights: Mapping[str, str]) -> list[str]:
    """Answers whose body and header differ in the version, or whose text is not that version's."""
    wrong = []
    for one in outcomes:
        if one.ending is Ending.TRUNCATED:
            wrong.append(f"truncated without a word: {one.short()}")
        if one.ending not in (Ending.ANSWERED, Ending.ERROR_EVENT):
            continue
        if one.ending is Ending.ANSWERED and one.model != one.version:
            wrong.append(f"the header says {one.version}, the body {one.model}")
        if one.version not in weights:
            wrong.append(f"nobody registered {one.version}")
            continue
        expected = oracle.text(weights[one.version], one.question)
        is_right = one.text == expected if one.ending is Ending.ANSWERED else expected.startswith(one.text)
        if not is_right:
            wrong.append(f"{one.version} on {one.replica} said {one.text!r}, not {expected!r}")
    return wrong


def errors(outcomes: Iterable[Outcome]) -> list[Outcome]:
    return [one for one in outcomes if one.ending is not Ending.ANSWERED]


def by_ending(outcomes: Iterable[Outcome]) -> Counter[str]:
    """For a report: how many ended how, statuses apart."""
    return Counter(f"{one.ending} {one.status}" if one.ending is Ending.STATUS else str(one.ending) for one in outcomes)
