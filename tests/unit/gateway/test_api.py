from __future__ import annotations

from pathlib import Path

import pytest
from gateway_stack import Stack, open_stack

from engines.fake import FakeEngine


async def test_promote_and_rollback_change_what_the_alias_names(tmp_path: Path, engine: FakeEngine) -> None:
    async with open_stack(tmp_path, engine.endpoint) as alone:
        http = alone.http
        made = await http.post("/v1/versions", json={"alias": "vqa", "path": str(tmp_path)})
        assert (made.status_code, made.json()["id"], made.json()["state"]) == (201, "vqa@1", "verified")
        promoted = (await http.post("/v1/aliases/vqa/promote", json={"version": "vqa@1"})).json()
        assert promoted.keys() == {
            "alias",
            "version",
            "previous",
            "generation",
            "seconds",
            "steps",
            "proof",
            "replicas",
        }
        assert (promoted["version"], promoted["previous"], promoted["generation"]) == ("vqa@1", "small@0", 1)
        models = [model["id"] for model in (await http.get("/v1/models")).json()["data"]]
        assert models == ["vqa", "small@0", "vqa@1"]
        (row,) = (await http.get("/v1/aliases")).json()["data"]
        assert (row["id"], row["live"], row["previous"]) == ("vqa", "vqa@1", "small@0")
        assert (await http.post("/v1/aliases/vqa/rollback", json={})).json()["version"] == "small@0"
        version = (await http.get("/v1/versions/vqa@1")).json()
        assert version["state"] == "rolled_back"
        assert [flip["action"] for flip in version["history"]] == ["promote", "promote"]
        assert 'tandem_alias_generation{alias="vqa"} 2.0' in (await http.get("/metrics")).text


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/v1/aliases/vqa/promote", {"version": "vqa@9"}, 404, "version"),
        ("/v1/aliases/vqa/promote", {"version": "latest"}, 400, "version"),
        ("/v1/aliases/vqa/promote", {"version": "vqa@1", "canary_percent": 5}, 400, "canary_percent"),
        ("/v1/aliases/vqa/promote", {}, 400, "version"),
        ("/v1/versions", {"alias": "nobody", "path": "/tmp/x"}, 404, "alias"),
        ("/v1/versions", {"alias": "vqa", "path": "relative"}, 400, "path"),
        ("/v1/versions", {"alias": "vqa"}, 400, "path"),
    ],
)
async def test_bad_calls_name_the_field(stack: Stack, path: str, body: dict[str, str], status: int, param: str) -> None:
    response = await stack.http.post(path, json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


@pytest.mark.parametrize(
    "path", ["/", "/v1/nothing", "/v1/versions/vqa@77", "/v1/aliases/none", "/v1/models/none", "/docs"]
)
async def test_what_is_not_there_is_404_in_the_one_shape(stack: Stack, path: str) -> None:
    response = await stack.http.get(path)
    assert response.status_code == 404
    assert response.json()["error"].keys() == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/chat/completions"), ("DELETE", "/v1/models"), ("PUT", "/v1/feedback")]
)
async def test_another_method_is_405_in_the_one_shape(stack: Stack, method: str, path: str) -> None:
    response = await stack.http.request(method, path, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["code"]) == (405, "method_not_allowed")


async def test_interactions_are_paged_newest_first_and_filtered(tmp_path: Path, engine: FakeEngine) -> None:
    async with open_stack(tmp_path, engine.endpoint) as alone:
        ids = [(await alone.chat(f"question {n}")).json()["id"] for n in range(5)]
        for identity in ids:
            await alone.services.recorder.wait_for(identity, 5)
        await alone.http.post("/v1/feedback", json={"completion_id": ids[1], "metric": "correction", "value": "red"})
        first = (await alone.http.get("/v1/interactions", params={"limit": 3})).json()
        rest = (await alone.http.get("/v1/interactions", params={"limit": 3, "after": first["last_id"]})).json()
        assert [row["id"] for row in first["data"] + rest["data"]] == ids[::-1]
        assert (first["has_more"], rest["has_more"]) == (True, False)
        corrected = (await alone.http.get("/v1/interactions", params={"metric": "correction"})).json()["data"]
        assert [(row["id"], row["feedback"][0]["value"]) for row in corrected] == [(ids[1], "red")]
        moment = first["data"][0]["created"]
        for filters, count in (({"alias": "x"}, 0), ({"version": "small@0"}, 5), ({"since": moment}, 1)):
            assert len((await alone.http.get("/v1/interactions", params=filters)).json()["data"]) == count


async def test_bad_query_is_400_naming_it(stack: Stack) -> None:
    response = await stack.http.get("/v1/interactions", params={"limit": 0})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "limit")


async def test_defect_is_500_without_a_library_word(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("secret detail of a library")

    monkeypatch.setattr("gateway.store.aliases.Aliases.all", fail)
    response = await stack.http.get("/v1/aliases")
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in response.text
