"""`tandem feedback`: what a user thinks of one answer."""

from __future__ import annotations

from typing import Annotated

import typer

from engines.errors import BadRequest
from gateway.cli.console import print_json, say
from gateway.cli.options import ConfigOption, JsonOption, UrlOption, client


def feedback(
    completion_id: Annotated[str, typer.Argument(help="The answer's id, like chatcmpl-...")],
    correction: Annotated[str | None, typer.Option(help="What the answer should have been.")] = None,
    up: Annotated[bool, typer.Option("--up", help="Thumb up.")] = False,
    down: Annotated[bool, typer.Option("--down", help="Thumb down.")] = False,
    rating: Annotated[float | None, typer.Option(help="0 (useless) to 1 (perfect).", min=0.0, max=1.0)] = None,
    comment: Annotated[str | None, typer.Option(help="A remark, kept with the signal.")] = None,
    idempotency_key: Annotated[str | None, typer.Option(help="Sent twice under one key, it is stored once.")] = None,
    url: UrlOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send one signal about an answer: a correction, a thumb or a rating.

    tandem feedback chatcmpl-0198... --correction "teal"

    tandem feedback chatcmpl-0198... --down --comment "too long"
    """
    from gateway.client import FeedbackBody

    metric, value = _signal(correction, up=up, down=down, rating=rating)
    body = FeedbackBody(completion_id=completion_id, metric=metric, value=value, comment=comment)
    with client(url, config) as gateway:
        receipt = gateway.send_feedback(body, idempotency_key)
    if as_json:
        print_json(receipt)
    else:
        print(receipt.id)
    say(f"{metric} {receipt.status}. Corrections become training rows with `tandem data build`")


def _signal(correction: str | None, *, up: bool, down: bool, rating: float | None) -> tuple[str, bool | float | str]:
    given: list[tuple[str, bool | float | str]] = []
    if correction is not None:
        given.append(("correction", correction))
    if rating is not None:
        given.append(("rating", rating))
    if up or down:
        given.append(("thumb", up))
    if len(given) != 1 or (up and down):
        raise BadRequest("say one thing: --correction TEXT, --up, --down or --rating NUMBER", param="metric")
    return given[0]
