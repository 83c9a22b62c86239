"""What `[engines.NAME]` may say of a server that runs elsewhere: where it is, and nothing of how it runs."""

from __future__ import annotations

from collections.abc import Set
from urllib.parse import SplitResult, urlsplit

REMOTE_ONLY = ("url", "api_key_env")
LOCAL_ONLY = (
    *("family", "replicas", "tensor_parallel", "max_loras", "reserved_for_rollout", "max_lora_rank", "dtype"),
    *("quantization", "max_model_len", "max_images", "python", "args", "env"),
)
_SUFFIX = "/v1"


def check_remote(kind: str, url: str, changed: Set[str]) -> None:
    """Raises `ValueError` for a URL that can't be used, and for keys that are not at their default and mean nothing."""
    if kind != "remote":
        _refuse(REMOTE_ONLY, changed, "is for kind = 'remote' only; set the kind, or leave it out")
        return
    _check_url(url)
    _refuse(LOCAL_ONLY, changed, "means nothing for a server that runs elsewhere; set it there, and leave it out here")


def root_of(url: str) -> str:
    """What `/v1/...` is appended to."""
    return url.rstrip("/").removesuffix(_SUFFIX)


def why_no_adapters(engine: str) -> str:
    """What whoever wants an adapter there is told."""
    return (
        f"engine '{engine}' is a remote server and takes no adapters: merge the adapter into its base and serve the "
        "merged model there"
    )


def _refuse(keys: tuple[str, ...], changed: Set[str], why: str) -> None:
    for key in keys:
        if key in changed:
            raise ValueError(f"{key}: {why}")


def _check_url(url: str) -> None:
    parts = _split(url)
    if parts is not None and "@" in parts.netloc:
        raise ValueError("url: no name or password in it; the key belongs into the variable that api_key_env names")
    is_usable = parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname)
    if not is_usable or not url.rstrip("/").endswith(_SUFFIX) or "?" in url or "#" in url:
        raise ValueError(f"url: '{url}' is no base URL of an OpenAI-compatible server, like http://host:port/v1")


def _split(url: str) -> SplitResult | None:
    """None for what is no URL: no number as port, half an IPv6 address."""
    try:
        parts = urlsplit(url)
        return None if parts.port == 0 else parts
    except ValueError:
        return None
