"""What is refused, by the codes that Tandem knows, in OpenAI's shape of an error.

A message is ours, but for a chat request that SGLang itself refuses: its own words are the message then, which the
gateway logs and replaces by ours. Elsewhere what SGLang said goes into `detail`, which no client of Tandem sees.
"""

from __future__ import annotations

from typing import Any

MAX_DETAIL_CHARS = 400


class Refusal(Exception):
    """An answer other than 200: HTTP status, Tandem's code, one sentence, the field at fault, and what SGLang said."""

    def __init__(self, status: int, code: str, message: str, detail: str = "", param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.detail = detail[:MAX_DETAIL_CHARS]
        self.param = param

    def body(self) -> dict[str, Any]:
        error = {"message": self.message, "type": "invalid_request_error", "param": self.param, "code": self.code}
        return {"error": {**error, "detail": self.detail} if self.detail else error}


def bad_request(message: str, param: str | None = None, detail: str = "") -> Refusal:
    return Refusal(400, "invalid_request", message, detail, param)


def too_late(message: str) -> Refusal:
    return Refusal(504, "deadline_exceeded", message)


def engine_down(message: str) -> Refusal:
    return Refusal(503, "engine_down", message)
