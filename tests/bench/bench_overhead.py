"""What the gateway adds to a completion: the same request to the fake engine, directly and through it, in turn.

The engine, the gateway and the client share this machine's cores, so absolute times are upper bounds.
"""

import asyncio
import base64
import io
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import aiohttp
import numpy as np
from benchmark import Metric, write
from PIL import Image
from stack import Stack

from engines.config import EngineConfig
from engines.fake import FakeEngine

NUM_PAIRS = 200
NUM_LARGE_PAIRS = 40


async def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        stack = Stack.make(root, "fake", root)
        await asyncio.to_thread(stack.start)
        engine = FakeEngine("small", EngineConfig(model=str(root), kind="fake"), root)
        endpoint = await engine.start()
        try:
            async with aiohttp.ClientSession() as session:
                direct = (
                    f"{endpoint.url}/v1/chat/completions",
                    {"Authorization": f"Bearer {endpoint.token}"},
                    "small@0",
                )
                gateway = (f"{stack.url}/v1/chat/completions", {}, "vqa")
                metrics = []
                for name, image, num in (("tiny", picture(64), NUM_PAIRS), ("2.5 MB", picture(900), NUM_LARGE_PAIRS)):
                    metrics += await compare(session, name, image, num, direct, gateway)
        finally:
            await engine.stop()
            await asyncio.to_thread(stack.stop)
    config = {"pairs": NUM_PAIRS, "large_pairs": NUM_LARGE_PAIRS, "engine": "fake", "stream": True}
    write("overhead", "python tests/bench/bench_overhead.py", config, metrics)


async def compare(session, name, image, num, direct, gateway):  # type: ignore[no-untyped-def]
    times: dict[str, list[float]] = {"direct": [], "gateway": []}
    for number in range(num + 5):
        for label, (url, headers, model) in (("direct", direct), ("gateway", gateway)):
            seconds = await first_byte(session, url, headers, model, image)
            if number >= 5:
                times[label].append(seconds * 1000)
    ratio = [g / d for d, g in zip(times["direct"], times["gateway"], strict=True)]
    return [
        Metric(f"first byte, {name} image, direct", "ms", times["direct"]),
        Metric(f"first byte, {name} image, gateway", "ms", times["gateway"]),
        Metric(f"first byte, {name} image, gateway / direct", "x", ratio),
    ]


async def first_byte(session, url, headers, model, image) -> float:  # type: ignore[no-untyped-def]
    content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": "what is this?"}]
    body = {"model": model, "messages": [{"role": "user", "content": content}], "stream": True, "max_tokens": 4}
    start = time.perf_counter()
    async with session.post(url, json=body, headers=headers) as answer:
        answer.raise_for_status()
        await answer.content.readany()
        seconds = time.perf_counter() - start
        await answer.read()
    return seconds


def picture(side: int) -> str:
    """A PNG of noise as a `data:` URL."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


if __name__ == "__main__":
    asyncio.run(main())
