"""The one error tree of Tandem.

    TandemError
    |- BadRequest            400  the caller's input is wrong; `param` names the field
    |  |- UnsupportedField   400  a field that reaches into the engine
    |  `- ConfigError        400  a configuration that cannot be used; commands exit 2
    |- NotFound              404  an unknown model, version or id
    |- Conflict              409  another body under the same key, another publisher at work
    |- TooLarge              413  a body or an image over its bound
    |- BadMediaType          415  an image of a format that is not accepted
    |- Refused               422  a gate or `verify()` said no
    |  `- AdapterRefused     422  an adapter directory that no engine may see
    |- Unavailable           503  nothing can answer now; retryable
    |  |- EngineDown         503  an engine's process died or never became ready
    |  |- OtherVersion       503  an engine answered for another version than asked
    |  `- NoSlot             503  all adapter slots are leased
    |- DeadlineExceeded      504  a remote call did not end in time; retryable
    `- Internal              500  a defect of ours
       `- EngineFault        502  an engine answered what it should not

`message` is ours and may reach a client; what a library, an engine or its log said goes into `detail`, which is for
operators: it is logged, and shown in tracebacks, but is never part of an HTTP body.

Each class carries `status`, `code` and `retryable`; `gateway/errors.py` holds the one table that makes an HTTP
answer of them. All are picklable, since they cross Ray. To add one: subclass the nearest family, set `code`, and add it
to the drawing.
"""

from __future__ import annotations


class TandemError(Exception):
    """The root. `message` says what went wrong, why, and what to do next; `param` names the input at fault.

    `detail` is what somebody else said of it, word for word: for operators only.
    """

    status = 500
    code = "internal_error"
    retryable = False

    def __init__(self, message: str, *, param: str | None = None, detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.detail = detail
        if detail:
            self.add_note(detail)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.param, self.detail)


def _rebuild(kind: type[TandemError], message: str, param: str | None, detail: str) -> TandemError:
    return kind(message, param=param, detail=detail)


class BadRequest(TandemError):
    """The caller's input is wrong."""

    status = 400
    code = "invalid_request"


class UnsupportedField(BadRequest):
    """A field that reaches into the engine, or that Tandem does not take yet."""

    code = "unsupported_parameter"


class ConfigError(BadRequest):
    """A configuration that cannot be used: one `path.to.key: reason` a line. Commands exit 2 on it."""

    code = "invalid_config"


class NotFound(TandemError):
    """No such model, version, completion or job."""

    status = 404
    code = "not_found"


class Conflict(TandemError):
    """The same key with another body, or two publishers at once."""

    status = 409
    code = "conflict"


class TooLarge(TandemError):
    """A body or an image over its bound."""

    status = 413
    code = "too_large"


class BadMediaType(TandemError):
    """An image that cannot be read as one of the accepted formats."""

    status = 415
    code = "unsupported_media_type"


class Refused(TandemError):
    """A gate said no."""

    status = 422
    code = "refused"


class AdapterRefused(Refused):
    """An adapter directory that `verify()`, or the probe, does not let pass."""

    code = "adapter_refused"


class Unavailable(TandemError):
    """Nothing can answer this now."""

    status = 503
    code = "unavailable"
    retryable = True


class EngineDown(Unavailable):
    """An engine's process died, or never answered its first request."""

    code = "engine_down"


class OtherVersion(Unavailable):
    """An engine answered for another version than it was asked for; another replica may hold that one."""

    code = "other_version"


class NoSlot(Unavailable):
    """Every adapter slot is leased; the message says to whom."""

    code = "no_adapter_slot"


class DeadlineExceeded(TandemError):
    """A remote call did not end in time."""

    status = 504
    code = "deadline_exceeded"
    retryable = True


class Internal(TandemError):
    """A defect of Tandem's own."""


class EngineFault(Internal):
    """An engine answered what it should not: an unknown shape, or an error to a well-formed call."""

    status = 502
    code = "engine_fault"
