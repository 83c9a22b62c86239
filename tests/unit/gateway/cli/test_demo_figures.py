"""What the demo's figures mean: a reply's version, percentiles, accuracy, and the report's shape."""

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest
from PIL import Image

from engines.errors import TandemError
from gateway.demo.evaluate import Evaluation, evaluate
from gateway.demo.grpo import figures_of
from gateway.demo.load import Reply, count_by_replica, count_in_flight, is_wrong_version, percentile
from gateway.demo.picture import Moment, Timeline, draw
from gateway.demo.questions import Answer, Question
from gateway.demo.report import (
    Accuracy,
    DemoReport,
    FeedbackCount,
    GrpoFigures,
    KindAccuracy,
    LoadFigures,
    Publication,
)

ANSWERS = {"small@0": ("cyan", "no", "circle"), "vqa@1": ("teal", "yes", "circle")}


@pytest.mark.parametrize(
    ("version", "header", "question", "text", "is_wrong"),
    [
        ("small@0", "small@0", 0, "cyan", False),
        ("vqa@1", "vqa@1", 0, "teal", False),
        ("vqa@1", "vqa@1", 0, "cyan", True),  # says that it is the new one, speaks as the old one
        ("small@0", "small@0", 1, "yes", True),
        ("vqa@1", "small@0", 0, "teal", True),  # header and body name different versions
        ("vqa@7", "vqa@7", 0, "teal", True),  # a version that nobody made
        ("", "", 0, "teal", True),
        ("vqa@1", "vqa@1", 2, "circle", False),  # both versions say so
        ("vqa@1", "vqa@1", 0, "mauve", False),  # nobody's answer: wrong perhaps, but of no other version
    ],
)
def test_a_reply_is_of_a_wrong_version_if_it_speaks_as_another(
    version: str, header: str, question: int, text: str, is_wrong: bool
) -> None:
    reply = Reply(question, 0.0, 1.0, version=version, header_version=header, text=text)
    assert is_wrong_version(reply, ANSWERS) is is_wrong


def test_in_flight_counts_requests_that_span_the_moment() -> None:
    replies = [Reply(0, start, end) for start, end in ((0.0, 1.0), (0.5, 2.0), (1.5, 3.0))]
    assert [count_in_flight(replies, moment) for moment in (0.7, 1.2, 3.5)] == [2, 1, 0]


def test_replies_are_counted_by_the_replica_that_gave_them_and_failures_for_nobody() -> None:
    replies = [Reply(0, 0.0, 1.0, replica=name) for name in ("small/1", "small/0", "small/1")]
    replies += [Reply(0, 0.0, 1.0, replica="small/0", error="cut"), Reply(0, 0.0, 1.0, error="refused")]
    assert count_by_replica(replies) == {"small/0": 1, "small/1": 2}


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile([7.0], 0.99)) == (50.0, 99.0, 7.0)


def test_accuracy_is_counted_in_all_and_by_kind() -> None:
    evaluation = evaluate([answer("teal", "teal"), answer("cyan", "teal"), answer("no", "no", kind="negated")])
    assert evaluation.version == "small@0"
    assert evaluation.accuracy == pytest.approx(2 / 3, abs=1e-4)
    assert dict(evaluation.by_kind) == {"colour": 0.5, "negated": 1.0}


def test_an_evaluation_that_two_versions_answered_is_refused() -> None:
    with pytest.raises(TandemError, match="small@0, vqa@1"):
        evaluate([answer("teal", "teal"), answer("teal", "teal", version="vqa@1")])


def test_the_report_has_the_shape_that_others_read(tmp_path: Path) -> None:
    file = tmp_path / "demo-report.json"
    report().write(file)
    document = json.loads(file.read_text())
    assert list(document) == [
        *("engine", "model", "data", "replicas", "held_out", "accuracy", "by_kind"),
        *("feedback", "publish", "grpo", "publish_grpo", "load", "seconds"),
    ]
    assert list(document["accuracy"]) == list(document["by_kind"]) == ["base", "sft", "rollback", "grpo"]
    assert list(document["feedback"]) == ["sent", "stored"]
    assert list(document["grpo"]) == [
        *("steps", "best_step", "eval_parent", "eval_best"),
        *("reward_first", "reward_last", "staleness_mean", "mismatch", "bound_by"),
    ]
    assert list(document["publish"]) == ["version", "seconds", "steps", "replicas"]
    assert {"requests", "failed", "wrong_version", "ttft_ms_p50", "ttft_ms_p99"} <= set(document["load"])


def test_a_loop_that_did_not_close_is_named() -> None:
    assert report().failures() == []
    (reason,) = report(failed=2).failures()
    assert reason == "2 of 300 background requests failed: ReadError: gone"
    (reason,) = report(stored=399).failures()
    assert reason == "400 corrections sent, 399 stored"
    (reason,) = report(swapped=("small/0",)).failures()
    assert reason == "the swap was made on 1 of 2 replicas"
    (reason,) = report(by_replica={"small/1": 300}).failures()
    assert reason == "not every replica answered the background load: {'small/1': 300}"


def test_the_figures_of_grpo_come_from_its_jobs_events(tmp_path: Path) -> None:
    rewards = [0.5, 0.6, 0.7, 0.8, 0.9, 1.0]
    steps = [event("step", step=n, reward=reward, staleness_mean=n % 2) for n, reward in enumerate(rewards)]
    pushes = [event("push", push_mismatch=value) for value in (0.001, 0.004, 0.002)]
    bound = event("bound", "bound by rollout: the learner waited 70% of the time")
    judged = [event("evaluation", step=step, reward=reward) for step, reward in ((0, 0.7), (3, 0.8), (6, 0.6))]
    (tmp_path / "events.jsonl").write_text("".join([*steps, *pushes, *judged, bound]))
    assert figures_of(tmp_path) == GrpoFigures(
        steps=6,
        best_step=3,
        eval_parent=0.7,
        eval_best=0.8,
        reward_first=0.6,
        reward_last=0.9,
        staleness_mean=0.5,
        mismatch=0.004,
        bound_by="rollout",
    )


def test_a_job_that_took_no_step_has_no_figures(tmp_path: Path) -> None:
    with pytest.raises(TandemError, match="took no step"):
        figures_of(tmp_path)


def event(kind: str, message: str = "", **data: float) -> str:
    return json.dumps({"time": "", "level": "info", "type": kind, "message": message, "data": data}) + "\n"


def test_the_picture_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "demo.png"
    draw(timeline(), path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width > 1000
        assert len(image.convert("RGB").getcolors(maxcolors=10**6) or ()) > 100


def answer(text: str, right: str, *, kind: str = "colour", version: str = "small@0", at_s: float = 0.0) -> Answer:
    question = Question(id="q", image=Path("x.png"), text="what?", answer=right, kind=kind)
    return Answer(question, "chatcmpl-1", version, text, at_s, at_s + 0.2)


def report(
    *,
    failed: int = 0,
    stored: int = 400,
    swapped: tuple[str, ...] = ("small/0", "small/1"),
    by_replica: Mapping[str, int] = MappingProxyType({"small/0": 149, "small/1": 151}),
) -> DemoReport:
    kinds = {"colour": 0.5, "negated": 0.0}
    return DemoReport(
        engine="vllm",
        model="m",
        data="d",
        replicas=2,
        held_out=500,
        accuracy=Accuracy(base=0.65, sft=0.9, rollback=0.65, grpo=0.95),
        by_kind=KindAccuracy(base=kinds, sft=kinds, rollback=kinds, grpo=kinds),
        feedback=FeedbackCount(sent=400, stored=stored),
        publish=Publication(version="vqa@1", seconds=0.3, steps={"stage": 0.1}, replicas=swapped),
        grpo=GrpoFigures(
            steps=24,
            best_step=24,
            eval_parent=0.7,
            eval_best=0.8,
            reward_first=0.8,
            reward_last=0.9,
            staleness_mean=0.9,
            mismatch=0.002,
            bound_by="rollout",
        ),
        publish_grpo=Publication(version="vqa@2", seconds=0.3, steps={"stage": 0.1}, replicas=swapped),
        load=LoadFigures(
            requests=300,
            failed=failed,
            wrong_version=0,
            ttft_ms_p50=20.0,
            ttft_ms_p99=90.0,
            in_flight_at_flip=3,
            differing_questions=20,
            by_replica=dict(by_replica),
            errors=("ReadError: gone",) if failed else (),
        ),
        seconds={"total": 200.0},
    )


def timeline() -> Timeline:
    evaluations = tuple(
        Evaluation(
            version,
            share,
            (("colour", share),),
            tuple(
                answer("teal" if n % 100 < share * 100 else "cyan", "teal", version=version, at_s=start + n / 50)
                for n in range(500)
            ),
        )
        for version, share, start in (("small@0", 0.65, 50.0), ("vqa@1", 0.91, 130.0), ("small@0", 0.65, 160.0))
    )
    replies = tuple(
        Reply(
            n % 5,
            45 + n / 3,
            45 + n / 3 + 0.08 + (n % 7) / 50,
            version="vqa@1" if 125 < 45 + n / 3 < 155 else "small@0",
            replica=f"small/{n % 2}",
            ttft_s=0.05 + (n % 5) / 100 if n % 2 else None,
        )
        for n in range(390)
    )
    stages = (("start", 0.0, 45.0), ("base_accuracy", 47.0, 60.0), ("train", 75.0, 124.0), ("publish", 124.0, 126.0))
    return Timeline(
        0.0, 180.0, stages, evaluations, replies, (Moment("swap to vqa@1", 125.0), Moment("rollback", 155.0))
    )


def test_the_load_loses_no_request_and_counts_failures() -> None:
    asyncio.run(_load_against_a_server_that_fails_every_third())


async def _load_against_a_server_that_fails_every_third() -> None:
    from aiohttp import web
    from aiohttp.test_utils import TestServer

    from gateway.demo.client import open_client
    from gateway.demo.load import BackgroundLoad

    seen: list[bool] = []

    async def complete(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        seen.append(bool(body.get("stream")))
        if len(seen) % 3 == 0:
            return web.json_response({"error": {"message": "no", "type": "x", "param": None, "code": "y"}}, status=503)
        headers = {"x-tandem-version": "small@0", "x-tandem-replica": "small/0"}
        base = {"id": "chatcmpl-1", "created": 1, "model": "small@0"}
        message = {"role": "assistant", "content": "teal"}
        if not body.get("stream"):
            choice = {"index": 0, "finish_reason": "stop", "message": message}
            return web.json_response({**base, "object": "chat.completion", "choices": [choice]}, headers=headers)
        chunk = {"index": 0, "finish_reason": "stop", "delta": message}
        event = json.dumps({**base, "object": "chat.completion.chunk", "choices": [chunk]})
        text = f"data: {event}\n\ndata: [DONE]\n\n"
        return web.Response(text=text, content_type="text/event-stream", headers=headers)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", complete)
    picture = Path(__file__)  # any bytes: this server does not look
    question = Question(id="q", image=picture, text="what?", answer="teal", kind="colour")
    async with TestServer(app) as server, open_client(str(server.make_url("")).rstrip("/")) as client:
        async with BackgroundLoad(client, "vqa", [question], rate_per_s=20.0) as load:
            async with asyncio.timeout(30):
                while len(seen) < 30:
                    async with load.impatient(2):
                        await asyncio.sleep(0)
    assert len(load.replies) == len(seen)
    assert sum(bool(reply.error) for reply in load.replies) == len(seen) // 3
    assert {(reply.version, reply.replica) for reply in load.replies if not reply.error} == {("small@0", "small/0")}
    assert {reply.ttft_s is None for reply in load.replies if not reply.error} == {True, False}
    assert set(seen) == {True, False}
