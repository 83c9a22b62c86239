"""A web page in the browser of whoever runs the gateway can neither change it nor read from it."""

from __future__ import annotations

import aiohttp
import pytest
from gateway_stack import CHAT, Stack

CHANGES = ["/v1/aliases/vqa/rollback", "/v1/aliases/vqa/promote", "/v1/versions", "/v1/feedback", CHAT]


@pytest.mark.parametrize("path", CHANGES)
@pytest.mark.parametrize("headers", [{}, {"content-type": "text/plain"}, {"content-length": "0"}])
async def test_what_a_page_can_send_unasked_changes_nothing(stack: Stack, path: str, headers: dict[str, str]) -> None:
    response = await stack.http.post(path, headers=headers)
    assert (response.status_code, response.json()["error"]["param"]) == (415, "content-type")


@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
@pytest.mark.parametrize("path", [*CHANGES, "/v1/interactions", "/metrics"])
@pytest.mark.parametrize("origin", ["https://evil.example", "http://127.0.0.1:8001", "null", "http://localhost"])
async def test_foreign_origins_are_403(stack: Stack, method: str, path: str, origin: str) -> None:
    response = await stack.http.request(method, path, headers={"origin": origin, "content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["code"]) == (403, "foreign_origin")


@pytest.mark.parametrize("path", ["/v1/interactions", "/v1/models", "/healthz", CHAT])
@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "127.0.0.1.evil.example",
        "localhost.evil.example:80",
        "10.0.0.1",
        "[::2]",
        "",
    ],
)
async def test_rebound_names_are_400(stack: Stack, path: str, host: str) -> None:
    response = await stack.http.get(path, headers={"host": host})
    assert (response.status_code, response.json()["error"]["code"]) == (400, "foreign_host")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:8000", "localhost:1", "LocalHost", "[::1]:65535"])
async def test_loopback_hosts_and_the_own_origin_are_answered(stack: Stack, host: str) -> None:
    for headers in ({"host": host}, {"host": host, "origin": f"http://{host}"}):
        assert (await stack.http.get("/v1/models", headers=headers)).status_code == 200


async def test_second_host_header_hides_nothing(url: str) -> None:
    headers = [("Host", "127.0.0.1"), ("Host", "evil.example")]
    async with aiohttp.ClientSession() as session, session.get(f"{url}/v1/interactions", headers=headers) as response:
        assert response.status == 400
