from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from gateway_stack import Stack


async def answered(stack: Stack) -> str:
    return str((await stack.chat()).json()["id"])


async def send(stack: Stack, key: str | None = None, **body: Any) -> Any:
    headers = {"Idempotency-Key": key} if key else {}
    return await stack.http.post("/v1/feedback", json=body, headers=headers)


@pytest.mark.parametrize(
    ("metric", "value"),
    [("thumb", True), ("thumb", False), ("rating", 0), ("rating", 0.75), ("correction", "red"), ("comment", "fine")],
)
async def test_reserved_metrics_take_their_kind_of_value(stack: Stack, metric: str, value: Any) -> None:
    identity = await answered(stack)
    response = await send(stack, completion_id=identity, metric=metric, value=value, tags={"who": "me"})
    assert response.status_code == 201
    assert response.json()["object"] == "feedback"
    assert response.json()["status"] == "accepted"
    (stored,) = (await stack.http.get(f"/v1/interactions/{identity}")).json()["feedback"]
    assert (stored["id"], stored["metric"], stored["value"]) == (response.json()["id"], metric, value)


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("thumb", 1),
        ("thumb", "yes"),
        ("rating", 1.5),
        ("rating", True),
        ("rating", "1"),
        ("correction", ""),
        ("comment", 3),
    ],
)
async def test_another_kind_of_value_is_refused_by_name(stack: Stack, metric: str, value: Any) -> None:
    response = await send(stack, completion_id=await answered(stack), metric=metric, value=value)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "value"


async def test_preference_names_two_answers_that_are_recorded(stack: Stack) -> None:
    first, second = await answered(stack), await answered(stack)
    assert (await send(stack, completion_id=first, metric="preference", value=second)).status_code == 201
    unknown = await send(stack, completion_id=first, metric="preference", value="chatcmpl-none")
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (404, "value")
    assert (await send(stack, completion_id=first, metric="preference", value=first)).status_code == 400


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({"metric": "thumb", "value": True}, 400, "completion_id"),
        ({"completion_id": "chatcmpl-none", "metric": "thumb", "value": True}, 404, "completion_id"),
        ({"completion_id": "x", "metric": "stars", "value": 1}, 400, "metric"),
        ({"completion_id": "x", "value": 1}, 400, "metric"),
        ({"completion_id": "x", "metric": "thumb", "value": True, "valeu": 1}, 400, "valeu"),
        ({"episode_id": "e", "metric": "thumb", "value": True}, 400, "episode_id"),
        ({"completion_id": "x", "metric": "comment", "value": "a\x00"}, 400, "value"),
        ({"completion_id": "x", "metric": "\ud800", "value": 1}, 400, "metric"),
        ({"completion_id": "x", "metric": "thumb", "value": True, "\ud800": 1}, 400, "body"),
        ({"completion_id": "\ud800", "metric": "thumb", "value": True}, 400, "completion_id"),
    ],
)
async def test_bad_feedback_is_refused_by_the_name_of_its_field(
    stack: Stack, body: dict[str, Any], status: int, param: str
) -> None:
    headers = {"content-type": "application/json"}
    response = await stack.http.post("/v1/feedback", content=json.dumps(body), headers=headers)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


async def test_same_key_same_body_gives_the_first_answer(stack: Stack) -> None:
    body = {"completion_id": await answered(stack), "metric": "thumb", "value": True}
    first, again = await send(stack, "key-1", **body), await send(stack, "key-1", **body)
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()


async def test_same_key_other_body_is_a_conflict(stack: Stack) -> None:
    body = {"completion_id": await answered(stack), "metric": "thumb"}
    await send(stack, "key-2", **body, value=True)
    assert (await send(stack, "key-2", **body, value=False)).status_code == 409


async def test_hundred_at_once_with_one_key_are_one_row(stack: Stack) -> None:
    identity = await answered(stack)
    body = {"completion_id": identity, "metric": "thumb", "value": True}
    responses = await asyncio.gather(*(send(stack, "key-3", **body) for _ in range(100)))
    assert sorted(response.status_code for response in responses) == [200] * 99 + [201]
    assert len({response.json()["id"] for response in responses}) == 1
    assert len((await stack.http.get(f"/v1/interactions/{identity}")).json()["feedback"]) == 1


async def test_one_bad_item_of_a_batch_leaves_the_others_alone(stack: Stack) -> None:
    good = {"completion_id": await answered(stack), "metric": "thumb", "value": True}
    items = [
        good,
        {**good, "value": "x"},
        "nonsense",
        {**good, "completion_id": "chatcmpl-none"},
        {**good, "x": 1},
        good,
    ]
    response = await stack.http.post(
        "/v1/feedback/batch", json={"items": items}, headers={"Idempotency-Key": "batch-1"}
    )
    assert response.status_code == 200
    assert [item["status_code"] for item in response.json()["data"]] == [201, 400, 400, 404, 400, 201]
    again = await stack.http.post("/v1/feedback/batch", json={"items": items}, headers={"Idempotency-Key": "batch-1"})
    assert [item["status_code"] for item in again.json()["data"]] == [200, 400, 400, 404, 400, 200]
    assert response.json()["data"][0]["feedback"] == again.json()["data"][0]["feedback"]


async def test_batch_answers_what_it_cannot_even_quote(stack: Stack) -> None:
    content = b'{"items": [{"completion_id": "x", "metric": "\\ud800", "value": 1}]}'
    headers = {"content-type": "application/json"}
    response = await stack.http.post("/v1/feedback/batch", content=content, headers=headers)
    assert [item["status_code"] for item in response.json()["data"]] == [400]


async def test_batch_takes_a_thousand_and_no_more(stack: Stack) -> None:
    item = {"completion_id": await answered(stack), "metric": "thumb", "value": True}
    full = await stack.http.post("/v1/feedback/batch", json={"items": [item] * 1000})
    assert {one["status_code"] for one in full.json()["data"]} == {201}
    assert (await stack.http.post("/v1/feedback/batch", json={"items": [item] * 1001})).status_code == 400


async def test_feedback_is_counted_by_metric_and_outcome(stack: Stack) -> None:
    await send(stack, completion_id=await answered(stack), metric="rating", value=0.5)
    await send(stack, completion_id="chatcmpl-none", metric="rating", value=0.5)
    text = (await stack.http.get("/metrics")).text
    assert 'tandem_feedback_total{metric="rating",status="accepted"}' in text
    assert 'tandem_feedback_total{metric="rating",status="not_found"}' in text
