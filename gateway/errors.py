"""The one place that makes an HTTP answer of an error: OpenAI's shape, our own words.

`{"error": {"message", "type", "param", "code"}}`; in a stream the same object as a `data:` event. What a library says
goes to the log, never to a client.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import Send

from engines.errors import TandemError

log = logging.getLogger(__name__)

RETRY_AFTER_S = 1
_TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "refused_error",
    429: "rate_limit_error",
    503: "unavailable_error",
    504: "timeout_error",
}
_HTTP_MESSAGES: Mapping[int, tuple[str, str]] = {
    404: (
        "unknown_route",
        "No such route. See /v1/models, /v1/chat/completions, /v1/feedback, /v1/versions, /v1/aliases.",
    ),
    405: ("method_not_allowed", "This route does not take this method."),
    415: ("unsupported_media_type", "Send the body as application/json."),
}


def json_response(content: Mapping[str, Any], status: int, headers: Mapping[str, str] | None = None) -> Response:
    """JSON that can always be sent: half of a client's surrogate pair is escaped where a message quotes it."""
    payload = json.dumps(content, separators=(",", ":"), allow_nan=False)
    return Response(payload, status, headers, media_type="application/json")


class SlowBody(TandemError):
    """A request body that did not arrive in time."""

    status = 408
    code = "body_too_slow"


def error_body(status: int, code: str, message: str, param: str | None = None) -> dict[str, Any]:
    """The OpenAI error object."""
    return {"error": {"message": message, "type": _TYPES.get(status, "server_error"), "param": param, "code": code}}


def body_of(error: TandemError) -> dict[str, Any]:
    return error_body(error.status, error.code, error.message, error.param)


def log_error(error: TandemError) -> None:
    """What is ours to look at: answers of 500 and above, and whatever has a `detail`, which no client sees."""
    if error.status >= 500 or error.detail:
        detail = f"\n{error.detail}" if error.detail else ""
        log.warning("answered %d %s: %s%s", error.status, error.code, error.message, detail)


def headers_of(error: TandemError) -> dict[str, str]:
    return {"retry-after": str(RETRY_AFTER_S)} if error.status in (429, 503) else {}


def sse_event(error: TandemError) -> bytes:
    """The error as a stream's last event; the leading blank line ends whatever event was cut off."""
    return b"\n\ndata: " + json.dumps(body_of(error)).encode() + b"\n\n"


async def send_error(send: Send, error: TandemError, headers: Mapping[str, str] | None = None) -> None:
    """Answers with `error` on a bare ASGI `send`."""
    await send_json(send, error.status, body_of(error), {**headers_of(error), **(headers or {})})


async def send_json(send: Send, status: int, body: Mapping[str, Any], headers: Mapping[str, str]) -> None:
    payload = json.dumps(body).encode()
    raw = [(b"content-type", b"application/json"), (b"content-length", str(len(payload)).encode())]
    raw += [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": payload})


async def send_method_not_allowed(send: Send, allowed: str) -> None:
    code, message = _HTTP_MESSAGES[405]
    await send_json(send, 405, error_body(405, code, message), {"allow": allowed})


def install(app: FastAPI) -> None:
    """Every error of `app` leaves in the one shape."""
    app.add_exception_handler(TandemError, _on_tandem_error)
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_defect)


def _on_tandem_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, TandemError)  # noqa: S101  (the handler is registered for this class)
    log_error(error)
    return json_response(body_of(error), error.status, headers_of(error))


def _on_invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    problem = error.errors()[0]
    if problem["type"] == "json_invalid":
        return json_response(error_body(400, "invalid_json", "The body is not valid JSON."), 400)
    param = ".".join(str(part) for part in problem["loc"][1:]) or str(problem["loc"][0])
    return json_response(error_body(400, "invalid_request", f"{param}: {plain_message(problem)}", param), 400)


def plain_message(problem: Any) -> str:
    """Pydantic's reason in one plain sentence."""
    if problem["type"] == "extra_forbidden":
        return "unknown field"
    return str(problem["msg"]).removeprefix("Value error, ")


def _on_http_exception(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    code, message = _HTTP_MESSAGES.get(error.status_code, ("invalid_request", "The request could not be read."))
    return json_response(error_body(error.status_code, code, message), error.status_code, error.headers)


def _on_defect(_request: Request, error: Exception) -> Response:
    log.error("unhandled error", exc_info=error)
    return json_response(error_body(500, "internal_error", DEFECT_MESSAGE), 500)


DEFECT_MESSAGE = "Something went wrong in the gateway. It is logged; retry, and report it if it stays."
