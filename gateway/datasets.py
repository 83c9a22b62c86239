"""Corrections become training rows: `tandem data build`.

One row for each corrected completion, `{"image", "text", "answer"}` plus the ids of the interaction and of the feedback
it comes from; a question of another shape (several images, a system message) becomes a `messages` row. Where a
completion was corrected more than once, the newest correction wins. Nothing is left out without being counted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from engines.adapter.files import write_atomic
from engines.errors import BadRequest, NotFound
from gateway.config import TandemConfig
from gateway.media import ImageStore
from gateway.store import open_store
from gateway.types import Feedback, Interaction

_IMAGE_REFERENCE = "sha256:"
_ENDINGS = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp"}


class DataSetReport(BaseModel):
    """What `build_corrections` wrote. `superseded` counts corrections that a newer one of the same answer replaced."""

    model_config = ConfigDict(frozen=True)

    path: str
    rows: int
    images: int
    superseded: int
    left_out: int
    reasons: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Unusable:
    reason: str


def build_corrections(config: TandemConfig, out: Path, alias: str | None = None) -> DataSetReport:
    """Writes `out` whole or not at all, its images into a folder beside it. Raises `BadRequest` without corrections."""
    store = open_store(config.store.url)
    try:
        corrections = store.feedback.of_metric("correction")
        newest = {row.completion_id: row for row in corrections}
        pairs = [(store.interactions.get(row.completion_id), row) for row in newest.values()]
    finally:
        store.close()
    chosen = [(asked, row) for asked, row in pairs if alias in (None, asked.alias)]
    if not chosen:
        raise BadRequest(
            "there is no correction to learn from yet: send some with `tandem feedback ID --correction TEXT`"
        )
    folder = out.with_name(f"{out.stem}-images")
    images = _export_images(ImageStore(config.store.media), (asked for asked, _ in chosen), folder)
    results = [_row(asked, row, images) for asked, row in chosen]
    rows = [result for result in results if not isinstance(result, _Unusable)]
    _write(out, rows)
    reasons = Counter(result.reason for result in results if isinstance(result, _Unusable))
    return DataSetReport(
        path=str(out.absolute()),
        rows=len(rows),
        images=len(images),
        superseded=len(corrections) - len(newest),
        left_out=reasons.total(),
        reasons=dict(reasons),
    )


def _export_images(store: ImageStore, asked: Iterable[Interaction], folder: Path) -> dict[str, str]:
    """Copies every image once; the answer maps its hash to its path relative to the data file."""
    folder.mkdir(parents=True, exist_ok=True)
    exported: dict[str, str] = {}
    for sha256 in sorted({sha256 for interaction in asked for sha256 in interaction.images}):
        try:
            content = store.read(sha256)
        except NotFound:
            continue
        file = folder / f"{sha256}{_ending(content)}"
        write_atomic(file, content)
        exported[sha256] = f"{folder.name}/{file.name}"
    return exported


def _ending(content: bytes) -> str:
    return next((ending for magic, ending in _ENDINGS.items() if content.startswith(magic)), ".img")


def _row(asked: Interaction, correction: Feedback, images: dict[str, str]) -> dict[str, Any] | _Unusable:
    messages = json.loads(asked.request)["messages"]
    if any(message["role"] not in ("system", "user") for message in messages):
        return _Unusable("a conversation of several turns: only its last answer was corrected")
    if any(sha256 not in images for sha256 in asked.images):
        return _Unusable("an image is not in the media store any more")
    answer = json.loads(correction.value)
    ids = {"completion_id": asked.id, "feedback_id": correction.id, "version": str(asked.version)}
    parts = [_parts(message, images) for message in messages]
    match messages, parts:
        case [{"role": "user"}], [[{"type": "image", "image": image}, {"type": "text", "text": text}]]:
            return {"image": image, "text": text, "answer": answer, **ids}
        case [{"role": "user"}], [[{"type": "text", "text": text}]]:
            return {"text": text, "answer": answer, **ids}
    turns = [{"role": message["role"], "content": content} for message, content in zip(messages, parts, strict=True)]
    return {"messages": [*turns, {"role": "assistant", "content": answer}], **ids}


def _parts(message: dict[str, Any], images: dict[str, str]) -> list[dict[str, str]]:
    content = message["content"]
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [_part(part, images) for part in content]


def _part(part: dict[str, Any], images: dict[str, str]) -> dict[str, str]:
    if part["type"] == "text":
        return {"type": "text", "text": part["text"]}
    source = part["image_url"]
    url = source if isinstance(source, str) else source["url"]
    return {"type": "image", "image": images[url.removeprefix(_IMAGE_REFERENCE)]}


def _write(out: Path, rows: list[dict[str, Any]]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
