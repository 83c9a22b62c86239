"""Whether a server can do what a request asks for: what a remote one can't is refused here, and said."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from engines.capabilities import Ability, in_order
from engines.errors import BadRequest
from gateway.route import Target
from gateway.schemas import ChatRequest

_REFUSALS: Mapping[Ability, tuple[str, str]] = MappingProxyType(
    {
        Ability.IMAGES: ("messages", "takes no images"),
        Ability.STREAMING: ("stream", "does not stream"),
        Ability.LOGPROBS: ("logprobs", "gives no log-probabilities for `logprobs` alone"),
        Ability.TOP_LOGPROBS: ("top_logprobs", "gives no log-probabilities"),
        Ability.N: ("n", "gives one answer to a request"),
        Ability.SEED: ("seed", "takes no seed"),
        Ability.TOKEN_IDS: ("return_token_ids", "gives no token ids"),
    }
)
"""By what is missing: the field that asks for it, and what the server does instead."""


def check_needs(request: ChatRequest, target: Target) -> None:
    """Raises `BadRequest` that names the field, if the target's server lacks what the request needs."""
    missing = target.replica.endpoint.capabilities.missing
    if missing and (lacking := request.needs() & missing):
        param, words = _REFUSALS[in_order(lacking)[0]]
        raise BadRequest(
            f"{param}: the server behind {target.version} {words}; leave it out, or ask another model.", param=param
        )
