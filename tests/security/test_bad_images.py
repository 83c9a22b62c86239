"""Bad images and their URLs: refused before they are fetched or unfold, and never seen by an engine."""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_stack import CHAT, Stack, data_url, image_part, open_stack, picture
from PIL import Image
from refusals import check, refused

from engines.fake import FakeEngine

pytestmark = pytest.mark.usefixtures("nothing_reaches_the_engine")


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/a.png",
        "https://example.com/a.png",
        "http://127.0.0.1:{port}/",
        "http://[::1]:{port}/",
        "http://[::ffff:127.0.0.1]:{port}/",
        "http://2130706433:{port}/",
        "http://0x7f.1:{port}/",
        "http://169.254.169.254/latest/meta-data",
        "http://metadata.google.internal/",
        "http://good.example\\@127.0.0.1:{port}/",
        "http://user:pass@127.0.0.1:{port}/",
        "file:///etc/passwd",
        "/etc/passwd",
        "gopher://127.0.0.1:{port}/",
        " data:image/png;base64,AAAA",
        "",
    ],
)
async def test_nothing_but_data_urls_is_taken_and_no_packet_leaves(stack: Stack, url: str) -> None:
    touched = asyncio.Event()
    server = await asyncio.start_server(lambda _reader, _writer: touched.set(), "127.0.0.1", 0)
    async with server:
        target = url.replace("{port}", str(server.sockets[0].getsockname()[1]))
        for source in (target, {"url": target}):
            part = {"type": "image_url", "image_url": source}
            await refused(stack, 400, code="image_url_forbidden", messages=[{"role": "user", "content": [part]}])
    assert not touched.is_set()


def bomb(side: int) -> bytes:
    """A one-bit PNG of `side` squared pixels in a few kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes(side * (side // 8 + 2)), 9)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def animation(kind: str) -> bytes:
    frames = [Image.new("RGB", (16, 16), color) for color in ("red", "blue")]
    return picture(kind, save_all=True, append_images=frames)


def bad_images() -> Iterator[tuple[str, bytes, int]]:
    whole = {kind: picture(kind, (64, 64)) for kind in ("PNG", "JPEG", "WEBP")}
    yield "bomb of 81 megapixels", bomb(9000), 413
    yield "over 16 megapixels", bomb(4008), 413
    yield "one pixel", picture(size=(1, 1)), 400
    yield "one pixel wide", picture(size=(1, 2000)), 400
    yield "too long", picture(size=(4, 8193)), 413
    yield "16 bits", picture(mode="I;16"), 415
    yield "no image", b"<html>", 415
    yield "nothing", b"", 415
    yield "SVG", b'<svg xmlns="http://www.w3.org/2000/svg"/>', 415
    yield "PDF", b"%PDF-1.7\n", 415
    yield "FITS", b"SIMPLE  =                    T", 415
    yield "PNG signature alone", whole["PNG"][:8], 415
    yield "animated WebP", animation("WEBP"), 415
    yield "animated PNG", animation("PNG"), 415
    for kind in ("TIFF", "GIF", "BMP", "JPEG2000", "ICO"):
        yield kind, picture(kind), 415
    for kind, content in whole.items():
        yield f"{kind} cut in half", content[: len(content) // 2], 415
        yield f"{kind} without its end", content[:-13], 415


@pytest.mark.parametrize(("content", "status"), [pytest.param(c, s, id=name) for name, c, s in bad_images()])
async def test_bad_images_are_refused_before_they_unfold(stack: Stack, content: bytes, status: int) -> None:
    path = "messages[0].content[0].image_url"
    message = await refused(stack, status, path, messages=[{"role": "user", "content": [image_part(content)]}])
    assert message.startswith(f"{path}: ")


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64,AAA",
        "data:image/png;base64,AA=A",
        "data:image/png;base64,AA\nAA",
        "data:image/png;base64," + " " * 10_000,
        "data:image/png;base64,\u00e4\u00e4\u00e4\u00e4",
        "data:image/png,AAAA",
        "data:video/jpeg;base64,AAAA,AAAA",
        "data:text/html;base64,AAAA",
        "data:;base64,AAAA",
        "data:",
    ],
)
async def test_broken_data_urls_are_4xx(stack: Stack, url: str) -> None:
    part = {"type": "image_url", "image_url": {"url": url}}
    response = await stack.http.post(CHAT, json={"model": "vqa", "messages": [{"role": "user", "content": [part]}]})
    check(response, response.status_code, "messages[0].content[0].image_url")
    assert response.status_code in (400, 415)


async def test_image_over_its_bytes_is_413_before_it_is_decoded(tmp_path: Path, engine: FakeEngine) -> None:
    async with open_stack(tmp_path, engine.endpoint, max_image_bytes=1000) as small:
        content = [{"type": "image_url", "image_url": {"url": data_url(b"\x00" * 5000)}}]
        message = await refused(small, 413, messages=[{"role": "user", "content": content}])
    assert "max_image_bytes" in message


async def test_more_images_than_allowed_are_refused(stack: Stack) -> None:
    messages = [{"role": "user", "content": [image_part()] * 9}]
    assert "max_images" in await refused(stack, 413, "messages[0].content[8]", messages=messages)


MODES = {"PNG": ("1", "L", "LA", "P", "RGB", "RGBA"), "JPEG": ("L", "RGB", "CMYK"), "WEBP": ("RGB", "RGBA")}


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind, modes in MODES.items() for mode in modes])
async def test_good_images_of_every_mode_pass(stack: Stack, kind: str, mode: str) -> None:
    assert (await stack.chat([image_part(picture(kind, mode=mode), kind.lower())])).status_code == 200
