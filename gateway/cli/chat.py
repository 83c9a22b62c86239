"""`tandem chat`: one question to a model, through the OpenAI SDK."""

from __future__ import annotations

import base64
import mimetypes
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engines.errors import BadRequest, TandemError
from gateway.cli.console import print_json, say
from gateway.cli.options import ConfigOption, JsonOption, UrlOption, client

if TYPE_CHECKING:
    from openai import OpenAI

    from gateway.client import GatewayClient

_TIMEOUT_S = 120.0


def chat(
    question: Annotated[str, typer.Argument(help="What to ask.")],
    image: Annotated[list[Path] | None, typer.Option("--image", "-i", help="An image file. May be repeated.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Alias or version. Default: the only alias.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream/--no-stream", help="Print the answer as it comes.")] = True,
    max_tokens: Annotated[int, typer.Option(help="Tokens of the answer at most.", min=1)] = 256,
    temperature: Annotated[float, typer.Option(help="0: the likeliest answer.", min=0.0, max=2.0)] = 0.0,
    url: UrlOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a question, with or without images.

    tandem chat "what is in the picture?" -i image.png

    tandem chat "is there a circle?" -i image.png --model vqa@1 --no-stream
    """
    content = [_image_part(path) for path in image or ()] + [{"type": "text", "text": question}]
    with client(url, config) as gateway:
        request = {
            "model": model or only_alias(gateway),
            "messages": [{"role": "user", "content": content}],
            "max_tokens": max_tokens,
            "temperature": temperature,
        }
        _answer(gateway, request, stream=stream and not as_json, as_json=as_json)


def only_alias(gateway: GatewayClient) -> str:
    """The name to ask for when the user named none. Raises `BadRequest` unless there is exactly one."""
    names = [alias.id for alias in gateway.aliases()]
    if len(names) != 1:
        raise BadRequest(
            f"which model? Name one with --model: {', '.join(names) or 'none is configured'}", param="model"
        )
    return names[0]


def _image_part(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise BadRequest(f"--image {path}: no such file", param="image")
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    data = base64.b64encode(path.read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}}


def _answer(gateway: GatewayClient, request: dict[str, Any], *, stream: bool, as_json: bool) -> None:
    import openai

    sdk = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="none", timeout=_TIMEOUT_S, max_retries=0)
    try:
        completion_id, version = _stream(sdk, request) if stream else _whole(sdk, request, as_json=as_json)
    except openai.APIStatusError as error:
        from gateway.client import error_of

        raise error_of(error.response) from None
    except openai.APIError as error:
        raise TandemError(
            f"the answer broke off: {error.message}. `tandem status` says whether the engine lives"
        ) from None
    say(f'{version} answered as {completion_id}; correct it: tandem feedback {completion_id} --correction "..."')


def _stream(sdk: OpenAI, request: dict[str, Any]) -> tuple[str, str]:
    completion_id = version = ""
    with sdk.chat.completions.create(**request, stream=True) as chunks:
        for chunk in chunks:
            completion_id, version = chunk.id, chunk.model
            if chunk.choices:
                print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()
    return completion_id, version


def _whole(sdk: OpenAI, request: dict[str, Any], *, as_json: bool) -> tuple[str, str]:
    completion = sdk.chat.completions.create(**request)
    if as_json:
        print_json(completion.model_dump(mode="json", exclude_unset=True))
    else:
        print(completion.choices[0].message.content or "")
    return completion.id, completion.model
