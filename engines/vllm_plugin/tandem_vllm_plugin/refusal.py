"""The errors of the control routes, by the codes that Tandem knows.

A message is ours; what vLLM said of it goes into `detail`, which no client of Tandem sees.
"""

from __future__ import annotations

MAX_DETAIL_CHARS = 400


class Refusal(Exception):
    """An answer other than 200: HTTP status, Tandem's code, one sentence, and what vLLM said."""

    def __init__(self, status: int, code: str, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.detail = detail


def reason_of(error: BaseException) -> str:
    """One line of a library's exception: no stack, no wrapper of the call that carried it."""
    text = str(error).strip() or type(error).__name__
    line = text.splitlines()[-1] if text.startswith("Traceback") else text.splitlines()[0]
    return line.removeprefix("Call to collective_rpc method failed: ")[:MAX_DETAIL_CHARS]
