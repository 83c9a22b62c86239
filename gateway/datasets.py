"""Corrections become training rows: `tandem data build`.

One row for each corrected completion, `{"image", "text", "answer"}` plus the ids of the interaction and of the feedback
it comes from; a question of another shape (several images, a system message) becomes a `messages` row. Where a
completion was corrected more than once, the newest correction wins. What is left out is counted, and named with its
reason in `<name>.rejected.jsonl`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from engines.adapter.files import write_atomic
from engines.errors import BadRequest, NotFound
from gateway.config import TandemConfig
from gateway.media import ImageStore
from gateway.messages import IMAGE_REFERENCE
from gateway.store import open_store
from gateway.types import Feedback, Interaction

_ENDINGS = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp"}


class DataSetReport(BaseModel):
    """What `build_corrections` wrote. `superseded` counts corrections that a newer one of the same answer replaced;
    `rejected_file` is there if some were left out."""

    model_config = ConfigDict(frozen=True)

    path: str
    rows: int
    images: int
    superseded: int
    left_out: int
    reasons: dict[str, int]
    rejected_file: str | None


@dataclass(frozen=True, slots=True)
class _Unusable:
    """A correction that makes no row: a line of `<name>.rejected.jsonl`."""

    completion_id: str
    feedback_id: str
    reason: str


def build_corrections(config: TandemConfig, out: Path, alias: str | None = None) -> DataSetReport:
    """Writes `out` whole or not at all, its images into a folder beside it. Raises `BadRequest` without corrections."""
    corrections = _corrections(config, alias)
    if not corrections:
        raise BadRequest(
            "there is no correction to learn from yet: send some with `tandem feedback ID --correction TEXT`"
        )
    chosen = {row.completion_id: (asked, row) for asked, row in corrections}.values()
    folder = out.with_name(f"{out.stem}-images")
    images = _export_images(ImageStore(config.store.media), (asked for asked, _ in chosen), folder)
    results = [_row(asked, row, images) for asked, row in chosen]
    rows = [result for result in results if not isinstance(result, _Unusable)]
    left_out = [result for result in results if isinstance(result, _Unusable)]
    rejected_file = _write_rejected(out, left_out)
    _write(out, rows)
    return DataSetReport(
        path=str(out.absolute()),
        rows=len(rows),
        images=len(images),
        superseded=len(corrections) - len(chosen),
        left_out=len(left_out),
        reasons=dict(Counter(result.reason for result in left_out)),
        rejected_file=None if rejected_file is None else str(rejected_file.absolute()),
    )


def _corrections(config: TandemConfig, alias: str | None) -> list[tuple[Interaction, Feedback]]:
    """Every correction of an answer of `alias` (None: of any), oldest first, with what was asked."""
    store = open_store(config.store.url)
    try:
        rows = store.feedback.of_metric("correction")
        asked = {name: store.interactions.get(name) for name in {row.completion_id for row in rows}}
    finally:
        store.close()
    pairs = [(asked[row.completion_id], row) for row in rows]
    return [(interaction, row) for interaction, row in pairs if alias in (None, interaction.alias)]


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
    reason = _why_unusable(asked, messages, images)
    if reason is not None:
        return _Unusable(asked.id, correction.id, reason)
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


def _why_unusable(asked: Interaction, messages: list[dict[str, Any]], images: dict[str, str]) -> str | None:
    if any(message["role"] not in ("system", "user") for message in messages):
        return "a conversation of several turns: only its last answer was corrected"
    contents = [message.get("content") for message in messages]
    if any(not isinstance(content, str | list) for content in contents):
        return "a message without content"
    kinds = {part["type"] for content in contents if isinstance(content, list) for part in content}
    if kinds - {"text", "image_url"}:
        return f"parts that no learner reads: {', '.join(sorted(kinds - {'text', 'image_url'}))}"
    if any(sha256 not in images for sha256 in asked.images):
        return "an image is not in the media store any more"
    return None


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
    return {"type": "image", "image": images[url.removeprefix(IMAGE_REFERENCE)]}


def _write_rejected(out: Path, left_out: list[_Unusable]) -> Path | None:
    file = out.with_name(f"{out.stem}.rejected.jsonl")
    if not left_out:
        file.unlink(missing_ok=True)
        return None
    _write(file, [asdict(result) for result in left_out])
    return file


def _write(out: Path, rows: list[dict[str, Any]]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
