"""Images of rows: where one comes from, and whether it can be read. Nothing is fetched over a network."""

from __future__ import annotations

import base64
import binascii
import io
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from engines.errors import BadRequest
from learners.data.examples import Picture

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 16_000_000
MIN_SIDE, MAX_SIDE = 4, 8192
MAX_BYTES = 64 * 2**20
_DATA_URL = re.compile(r"^data:image/[a-z+.-]+;base64,", re.IGNORECASE)


def find_picture(value: object, folder: Path) -> Picture:
    """A path (relative ones start at `folder`), a `data:` URL, or `{"bytes": ..., "path": ...}`, as a `Picture`.

    Raises `BadRequest`.
    """
    if isinstance(value, str):
        return _from_text(value, folder)
    if isinstance(value, dict) and value.get("bytes") is not None:
        return Picture(content=_from_bytes(value["bytes"]))
    if isinstance(value, dict) and isinstance(value.get("path"), str):
        return _from_text(value["path"], folder)
    if isinstance(value, bytes):
        return Picture(content=value)
    raise BadRequest(f'an image is a path, a data: URL or {{"bytes": ...}}, not {type(value).__name__}')


def open_picture(picture: Picture) -> Image.Image:
    """The image as RGB, fully decoded. Raises `BadRequest` where it is no PNG, JPEG or WebP within the bounds."""
    from PIL import Image

    content = _read_bounded(picture)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own bound is the lower one
            warnings.simplefilter("ignore", UserWarning)  # of EXIF data, which engines do not mind either
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            _check_size(*image.size)
            return _to_rgb(image)
    except BadRequest:
        raise
    except Exception as error:  # the boundary of PIL, whose decoders raise anything from struct.error to KeyError
        raise BadRequest(f"{_name(picture)} cannot be read as {', '.join(FORMATS)}") from error


def _from_text(text: str, folder: Path) -> Picture:
    match = _DATA_URL.match(text)
    if match:
        return Picture(content=_decode(text[match.end() :]))
    if text.startswith("data:"):
        raise BadRequest("a data: URL of an image starts with data:image/png;base64,")
    if re.match(r"^[A-Za-z][A-Za-z0-9+.-]+://", text):
        raise BadRequest(f"{text[:80]}: images are not fetched; save the file and name its path")
    path = folder / text
    if not text or not _is_file(path):
        raise BadRequest(f"no image file at {str(path)[:200]}")
    return Picture(path=path)


def _is_file(path: Path) -> bool:
    """False also for what cannot be a path: base64 without `data:` before it is longer than a file's name may be."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _from_bytes(value: object) -> bytes:
    """Parquet holds bytes; JSON can hold them in base64 only."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return _decode(value)
    raise BadRequest(f"an image's bytes are bytes, or base64 text, not {type(value).__name__}")


def _decode(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadRequest("an image's base64 text is broken") from error


def _read_bounded(picture: Picture) -> bytes:
    try:
        if picture.path is not None and picture.path.stat().st_size > MAX_BYTES:
            raise BadRequest(f"{picture.path} has more than {MAX_BYTES} bytes")
        return picture.read()
    except OSError as error:
        raise BadRequest(f"{_name(picture)} cannot be read: {error.strerror}") from error


def _check_size(width: int, height: int) -> None:
    if min(width, height) < MIN_SIDE or max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise BadRequest(
            f"an image of {width}x{height} is out of bounds: sides of {MIN_SIDE} to {MAX_SIDE}, "
            f"at most {MAX_PIXELS} pixels"
        )


def _to_rgb(image: Image.Image) -> Image.Image:
    """As engines see it: turned as its EXIF says, transparency on white."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" or not (image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info):
        return image.convert("RGB")
    image = image.convert("RGBA")
    background = Image.new("RGB", image.size, "white")
    background.paste(image, mask=image.getchannel("A"))
    return background


def _name(picture: Picture) -> str:
    return str(picture.path) if picture.path else "an embedded image"
