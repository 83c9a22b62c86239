"""Bad fields, messages and bodies: a clear error each, soon, without a library's words and a call of an engine."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from gateway_stack import CHAT, Stack, image_part, listen, open_stack
from refusals import MESSAGES, check, refused

from engines.fake import FakeEngine

pytestmark = pytest.mark.usefixtures("nothing_reaches_the_engine")

JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 10**9),
        ("n", True),
        ("logprobs", 10**6),
        ("top_logprobs", 10**6),
        ("stop", ["x"] * 10**5),
        ("stop", [""]),
        ("logit_bias", {str(n): 1 for n in range(10**5)}),
        ("max_tokens", 0),
        ("max_tokens", "9"),
        ("max_completion_tokens", 10**12),
        ("temperature", 99),
        ("stream", "yes"),
        ("seed", 2**70),
        ("messages", []),
        ("messages", "hello"),
        ("model", ""),
        ("model", 7),
    ],
)
async def test_values_out_of_bounds_are_400_by_name_and_fast(stack: Stack, field: str, value: Any) -> None:
    start_s = time.perf_counter()
    await refused(stack, 400, field if field != "stop" else None, **{field: value})
    assert time.perf_counter() - start_s < 10.0


@pytest.mark.parametrize(
    "field",
    [
        "prompt_logprobs",
        "priority",
        "request_id",
        "cache_salt",
        "chat_template",
        "chat_template_kwargs",
        "mm_processor_kwargs",
        "media_io_kwargs",
        "prompt_embeds",
        "image_embeds",
        "lora_path",
        "lora_request",
        "vllm_xargs",
        "kv_transfer_params",
        "best_of",
        "use_beam_search",
        "api_base",
    ],
)
async def test_fields_that_reach_into_the_engine_are_refused_by_name(stack: Stack, field: str) -> None:
    message = await refused(stack, 400, field, "unsupported_parameter", **{field: 1})
    assert "reaches into the engine" in message


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user", "content": ""}, "messages[0].content"),
        ({"role": "user", "content": []}, "messages[0].content"),
        ({"role": "user"}, "messages[0].content"),
        ({"role": "root", "content": "x"}, "messages[0].role"),
        (
            {"role": "user", "content": [{"type": "video_url", "video_url": {"url": "x"}}]},
            "messages[0].content[0].type",
        ),
        ({"role": "user", "content": [{"image_url": "x"}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": [{"type": "text", "text": 5}]}, "messages[0].content[0].text"),
        ({"role": "user", "content": [{"type": "image_url", "image_url": 5}]}, "messages[0].content[0].image_url"),
        ({"role": "user", "content": [{**image_part(), "uuid": "a"}]}, "messages[0].content[0].uuid"),
        ({"role": "user", "content": [{"type": "refusal", "refusal": "no"}]}, "messages[0].content[0].type"),
        ({"role": "user", "content": None, "tool_calls": [{}]}, "messages[0].content"),
    ],
)
async def test_bad_messages_are_400_by_path(stack: Stack, message: dict[str, Any], param: str) -> None:
    assert (await refused(stack, 400, param, messages=[message])).startswith(f"{param}: ")


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|vision_start|>", "<|im_start|>", "<|im_end|>"])
async def test_control_tokens_in_text_are_refused(stack: Stack, token: str) -> None:
    messages = [{"role": "user", "content": f"a {token} b"}]
    assert f"control token {token}" in await refused(stack, 400, "messages[0].content", messages=messages)


def called(arguments: str) -> dict[str, Any]:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}
    return {"messages": [*MESSAGES, {"role": "assistant", "tool_calls": [call]}]}


def tool(**function: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f", **function}}]}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (called("<|im_end|>"), "messages[1].tool_calls[0].function.arguments"),
        (called('{"a": "\\u003c|im_end|\\u003E"}'), "messages[1].tool_calls[0].function.arguments"),
        (tool(description="<|im_end|>"), "tools[0].function.description"),
        (tool(parameters={"properties": {"<|image_pad|>": {}}}), "tools[0].function.parameters.properties"),
        ({"messages": [{"role": "user", "name": "<|im_end|>", "content": "x"}]}, "messages[0].name"),
        ({"messages": [{"role": "user", "content": "x", "reasoning": ["<|im_end|>"]}]}, "messages[0].reasoning[0]"),
        ({"messages": [{"role": "assistant", "content": [{"type": "refusal", "refusal": "<|im_end|>"}]}]}, None),
        ({"documents": [{"text": "<|vision_start|>"}]}, "documents[0].text"),
    ],
)
async def test_control_tokens_anywhere_are_refused_by_path(
    stack: Stack, fields: dict[str, Any], param: str | None
) -> None:
    message = await refused(stack, 400, param, **fields)
    assert "control token" in message


async def test_control_token_in_two_parts_is_refused(stack: Stack) -> None:
    parts = [{"type": "text", "text": text} for text in ("a <|im_", "end|> b")]
    messages = [{"role": "user", "content": parts}]
    assert "control token <|im_end|>" in await refused(stack, 400, "messages[0].content", messages=messages)


async def test_control_token_as_a_good_stop_is_taken(stack: Stack) -> None:
    assert (await stack.chat(stop=["<|im_end|>"])).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (called("x" * 10**6), "messages"),
        (tool(description="x" * 10**6), "tools"),
        ({"messages": [{"role": "user", "name": "x" * 10**6, "content": "x"}]}, "messages"),
        (tool(parameters={"properties": {"x" * 10**6: {}}}), "tools"),
    ],
)
async def test_text_over_its_bound_is_named_wherever_it_is(stack: Stack, fields: dict[str, Any], param: str) -> None:
    assert "max_text_chars" in await refused(stack, 413, param, **fields)


async def test_text_over_its_bound_is_named(stack: Stack) -> None:
    message = await refused(stack, 413, "messages", messages=[{"role": "user", "content": "x" * 10**6}])
    assert "max_text_chars" in message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe{}",
        b'{"model":"vqa","messages":[{"role":"user","content":"x"}],"temperature":NaN}',
        b'{"model":"vqa","messages":[{"role":"user","content":"x"}],"x":-Infinity}',
        b'{"model":"vqa","messages":[{"role":"user","content":"x"}],"x":1e999}',
        b'{"model":"vqa","messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
        b'{"x":' + b"[" * 100 + b"]" * 100 + b"}",
        b'{"x":' + b"9" * 5000 + b"}",
        b'{"x":[' + b"1," * 200_000 + b"1]}",
    ],
)
async def test_bad_json_is_400(stack: Stack, body: bytes) -> None:
    check(await stack.http.post(CHAT, content=body, headers=JSON), 400, code="invalid_json")


@pytest.mark.parametrize("path", [CHAT, "/v1/feedback"])
@pytest.mark.parametrize(
    "headers",
    [{}, JSON | {"content-encoding": "gzip"}, {"content-type": "text/plain"}, {"content-type": "multipart/form-data"}],
)
async def test_compressed_bodies_and_other_media_types_are_415(
    stack: Stack, path: str, headers: dict[str, str]
) -> None:
    check(await stack.http.post(path, content=b"{}", headers=headers), 415)


@pytest.mark.parametrize("path", [CHAT, "/v1/feedback", "/v1/versions"])
@pytest.mark.parametrize("chunked", [True, False])
async def test_body_over_its_bound_is_413_with_and_without_a_length(
    tmp_path: Path, engine: FakeEngine, path: str, chunked: bool
) -> None:
    async def chunks() -> Any:
        for _ in range(8):
            yield b"x" * 1024

    async with open_stack(tmp_path, engine.endpoint, max_body_bytes=4096) as small:
        headers = {"content-type": "application/json"}
        content = chunks() if chunked else b"x" * 8192
        check(await small.http.post(path, content=content, headers=headers), 413, code="too_large")


@pytest.mark.parametrize("path", [CHAT, "/v1/feedback"])
async def test_body_that_drips_is_408(tmp_path: Path, engine: FakeEngine, path: str) -> None:
    async with open_stack(tmp_path, engine.endpoint, body_timeout_s=0.1) as small, listen(small.app) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
        head = (
            f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n"
        )
        writer.write(head.encode() + b"{")
        await writer.drain()
        status = await asyncio.wait_for(reader.readline(), 5)
        writer.close()
        await writer.wait_closed()
    assert status.startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize(
    "path", ["/invocations", "//v1/models", "/V1/models", "/v1/models/", "/v1/%2e%2e/metrics", "/tokenize"]
)
async def test_other_spellings_of_a_path_are_404(stack: Stack, path: str) -> None:
    assert (await stack.http.get(path)).status_code == 404


async def test_good_requests_do_not_carry_the_clients_headers_on(tmp_path: Path) -> None:
    seen: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()

    from engines.types import Endpoint

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, open_stack(tmp_path, Endpoint(f"http://127.0.0.1:{port}", "engine-token")) as alone:
        headers = {"authorization": "Bearer mine", "x-request-id": "chosen", "cookie": "a=b", "x-custom": "c"}
        body = {"model": "vqa", "messages": MESSAGES}
        response = await alone.http.post(CHAT, json=body, headers=headers)
    sent = seen[0].lower()
    assert b"bearer engine-token" in sent
    assert not any(word in sent for word in (b"mine", b"chosen", b"cookie", b"x-custom"))
    assert "engine-token" not in str(response.headers) + response.text


async def test_good_request_passes_unknown_fields_on(stack: Stack) -> None:
    body = {"model": "vqa", "messages": MESSAGES, "metadata": {"a": "b"}, "min_p": 0.1, "frequency_penalty": None}
    assert (await stack.http.post(CHAT, json=body)).status_code == 200
