"""What each refusal of a request must be: of its status, in our words, and named."""

from __future__ import annotations

from typing import Any

from gateway_stack import CHAT, Stack

MESSAGES = [{"role": "user", "content": "x"}]
LIBRARY_WORDS = ("pillow", "PIL", "pydantic", "Traceback", "validation error", "cannot identify", "binascii", "0x")


async def refused(stack: Stack, status: int, param: str | None = None, code: str | None = None, **fields: Any) -> str:
    body = {"model": "vqa", "messages": MESSAGES, **fields}
    response = await stack.http.post(CHAT, json=body)
    return check(response, status, param, code)


def check(response: Any, status: int, param: str | None = None, code: str | None = None) -> str:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert not any(word in error["message"] for word in LIBRARY_WORDS), error["message"]
    if param is not None:
        assert error["param"] == param
    if code is not None:
        assert error["code"] == code
    return str(error["message"])
