"""Images: `data:` URLs checked from their headers alone, and kept once, by content hash.

Nothing is decoded here. A picture of a few kilobytes can unfold to gigabytes, so its size is read from its header and
refused before anybody unfolds it. What Pillow says of a broken file never reaches a client.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import re
import struct
import uuid
from dataclasses import dataclass
from pathlib import PurePosixPath

import fsspec
from PIL import Image, UnidentifiedImageError

from engines.errors import BadMediaType, BadRequest, NotFound, TooLarge
from gateway.config import GatewayConfig

FORMATS = ("PNG", "JPEG", "WEBP")
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"})
_DATA_URL = re.compile(r"data:image/(png|jpeg|jpg|webp);base64,", re.IGNORECASE)
_SHA256 = re.compile(r"^[0-9a-f]{64}$")


@dataclass(frozen=True, slots=True)
class CheckedImage:
    """An image within the bounds; `sha256` is that of its file's bytes."""

    sha256: str
    content: bytes


def read_data_url(url: str, param: str, config: GatewayConfig) -> CheckedImage:
    """Raises `BadRequest` (not a base64 `data:` URL), `TooLarge`, or `BadMediaType` (not a whole PNG, JPEG or WebP)."""
    header = _DATA_URL.match(url, 0, 64)
    if header is None:
        raise _not_a_data_url(url, param)
    # Base64 spends 4 characters on 3 bytes.
    if (len(url) - header.end()) * 3 // 4 > config.max_image_bytes + 2:
        raise _too_many_bytes(param, config)
    try:
        content = base64.b64decode(url[header.end() :].encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise BadRequest(f"{param}: the base64 is broken; encode the file without line breaks.", param=param) from None
    if len(content) > config.max_image_bytes:
        raise _too_many_bytes(param, config)
    check_image(content, param, config)
    return CheckedImage(hashlib.sha256(content).hexdigest(), content)


def check_image(content: bytes, param: str, config: GatewayConfig) -> None:
    """Reads the header only. Raises `BadMediaType`, `TooLarge` or `BadRequest`."""
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            kind, mode, (width, height) = image.format, image.mode, image.size
            num_frames = getattr(image, "n_frames", 1)
    except Image.DecompressionBombError:
        raise _too_many_pixels(param, config) from None
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, struct.error, EOFError, MemoryError):
        raise _unreadable(param) from None
    if width * height > config.max_image_pixels or max(width, height) > config.max_image_side:
        raise _too_many_pixels(param, config)
    if min(width, height) < config.min_image_side:
        raise BadRequest(f"{param}: sides must be at least {config.min_image_side} pixels.", param=param)
    if num_frames != 1:
        raise BadMediaType(f"{param}: animations are not accepted; send one frame.", param=param)
    if mode not in _MODES:
        raise BadMediaType(f"{param}: 8 bits a channel are accepted; convert the image to RGB.", param=param)
    if not _is_whole(kind or "", content):
        raise _unreadable(param)


class ImageStore:
    """Images under any fsspec URL, each put once, under its content's hash."""

    def __init__(self, url: str) -> None:
        self._fs, root = fsspec.core.url_to_fs(url)
        self._root = PurePosixPath(root)
        self._is_local = "file" in (self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,))

    def put(self, image: CheckedImage) -> None:
        """Durable on return. Putting what is there already does nothing."""
        path = self._path(image.sha256)
        if self._fs.exists(path):
            return
        self._fs.makedirs(str(PurePosixPath(path).parent), exist_ok=True)
        temporary = f"{path}.{uuid.uuid4().hex}.tmp"
        with self._fs.open(temporary, "wb") as file:
            file.write(image.content)
            if self._is_local:
                file.flush()
                os.fsync(file.fileno())
        self._fs.mv(temporary, path)
        if self._is_local:
            _sync_folder(os.path.dirname(path))

    def read(self, sha256: str) -> bytes:
        """Raises `NotFound`."""
        if not _SHA256.match(sha256):
            raise NotFound(f"'{sha256[:80]}' is not an image's hash", param="image")
        try:
            content: bytes = self._fs.cat_file(self._path(sha256))
        except FileNotFoundError:
            raise NotFound(f"No image {sha256} is stored", param="image") from None
        return content

    def _path(self, sha256: str) -> str:
        return str(self._root / sha256[:2] / sha256)


def _sync_folder(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_whole(kind: str, content: bytes) -> bool:
    """Whether the file has its end: a truncated one would only fail inside the engine."""
    match kind:
        case "PNG":
            return b"IEND" in content[-64:]
        case "JPEG":
            return b"\xff\xd9" in content[-4096:]
        case _:
            return len(content) >= 8 + int.from_bytes(content[4:8], "little")


def _not_a_data_url(url: str, param: str) -> BadRequest | BadMediaType:
    if url[:5].lower() == "data:":
        return BadMediaType(f"{param}: use data:image/png, image/jpeg or image/webp with ;base64.", param=param)
    error = BadRequest(f"{param}: only data: URLs are taken; the gateway fetches nothing. Send the bytes.", param=param)
    error.code = "image_url_forbidden"
    return error


def _too_many_bytes(param: str, config: GatewayConfig) -> TooLarge:
    return TooLarge(
        f"{param}: an image may have {config.max_image_bytes} bytes (gateway.max_image_bytes).", param=param
    )


def _too_many_pixels(param: str, config: GatewayConfig) -> TooLarge:
    return TooLarge(
        f"{param}: an image may have {config.max_image_pixels} pixels, {config.max_image_side} a side; scale it down.",
        param=param,
    )


def _unreadable(param: str) -> BadMediaType:
    return BadMediaType(f"{param}: not a whole PNG, JPEG or WebP file.", param=param)
