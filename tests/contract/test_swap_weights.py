"""Another base model in the process that runs: served as a fresh engine would serve it, and nothing is left over."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from chatting import ask, eventually, picture, request, session, status_of
from evidence import Supports
from other_model import write_other
from peft_adapters import write_adapter
from safetensors.torch import load_file, save_file
from subjects import settings
from support_rows import Aspect
from toys import TOYS, Toy

from engines.backends import BACK_ENDS
from engines.config import EngineConfig
from engines.errors import Conflict, EngineFault, TandemError
from engines.fake.model import MODEL_FILE
from engines.served import ServedEngine
from engines.types import AdapterRef, ProbePrompt, VersionName

pytestmark = pytest.mark.timeout(500)

QUESTION = "what color is the shape?"
OLD, NEW = VersionName("small", 0), VersionName("small.g2", 0)
PROMPTS = (ProbePrompt(QUESTION, "red", picture("red"), 2), ProbePrompt("is there a circle?", "yes", None, 2))
SAME = 0.03 if shutil.which("nvidia-smi") else 1e-3
"""Nats by which two processes with the same weights may differ: their kernels add in another order, in bfloat16 on a
GPU."""
VLLM = (
    pytest.param("qwen3_vl", "none", marks=pytest.mark.slow),
    pytest.param("qwen3_vl", "fp8", marks=pytest.mark.slow),
    pytest.param("internvl", "none", marks=pytest.mark.slow),
    pytest.param("internvl", "fp8", marks=pytest.mark.slow),
    pytest.param("qwen3_vl", "w4a16", marks=pytest.mark.gpu),
    pytest.param("internvl", "w4a16", marks=pytest.mark.gpu),
)
"""Family and number format. All of them run on a GPU with `-k vllm`."""
TINY_TEXT = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "head_dim": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "num_hidden_layers": 1,
}
"""Of a model that only the fake serves: what an adapter's shapes are made from."""


async def test_the_fake_serves_another_model_in_place(tmp_path: Path, supports: Supports) -> None:
    models = [tmp_path / name for name in ("old", "new")]
    for number, model in enumerate(models):
        model.mkdir()
        (model / "config.json").write_text(json.dumps({"text_config": TINY_TEXT}))
        (model / MODEL_FILE).write_text(json.dumps({"weights": str(number)}))
    supports(EngineConfig(model=str(models[0]), kind="fake"), Aspect.SWAP)
    await check_swap("fake", *models, tmp_path)


@pytest.mark.vllm
@pytest.mark.parametrize(("family", "scheme"), VLLM)
async def test_vllm_serves_another_model_in_place(family: str, scheme: str, tmp_path: Path, supports: Supports) -> None:
    old, new = write_models(TOYS[family], scheme, tmp_path)
    supports(EngineConfig(model=str(old)), Aspect.SWAP)
    await check_swap("vllm", old, new, tmp_path)


def write_models(toy: Toy, scheme: str, root: Path) -> tuple[Path, Path]:
    """The base and another, both in `scheme`; their heads are tied."""
    models = toy.base, write_other(root / "other", toy)
    if scheme == "none":
        return models
    from learners.toy.quantize import quantize
    from learners.toy.schemes import SCHEMES

    copies = root / "old-copy", root / "other-copy"
    for model, copy in zip(models, copies, strict=True):
        quantize(model, copy, SCHEMES[scheme])
    return copies


async def check_swap(kind: str, old: Path, new: Path, root: Path) -> None:
    async with running(kind, new, root / "fresh", NEW.alias) as fresh:
        wanted = await logprobs(fresh, NEW)
        wanted_text = (await ask(fresh.endpoint, asked(NEW))).text
    async with running(kind, old, root / "swapped", OLD.alias) as engine:
        before = await logprobs(engine, OLD)
        assert (await ask(engine.endpoint, asked(OLD))).body["model"] == str(OLD)  # its picture is cached now
        adapter = AdapterRef(VersionName("vqa", 1), 1, write_adapter(root / "adapter", old, seed=1))
        await engine.load_adapter(adapter)
        assert await status_of(engine.endpoint, asked(adapter.version)) == 200
        with pytest.raises(Conflict, match="pause it first"):
            await engine.swap_weights(new, NEW)
        await engine.pause()
        queued = await queue_requests(engine, OLD, adapter.version) if kind == "vllm" else ()
        await engine.swap_weights(new, NEW)
        for one in queued:
            assert await one in ("abort", "error")
        await engine.resume()
        said = await ask(engine.endpoint, asked(NEW))
        assert (said.body["model"], said.text) == (str(NEW), wanted_text)
        assert said.body["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
        after = await logprobs(engine, NEW)
        assert distance(after, wanted) < SAME < distance(after, before)
        assert await status_of(engine.endpoint, asked(OLD)) == 404
        assert await engine.list_adapters() == ()
        assert await status_of(engine.endpoint, asked(adapter.version)) == 404
        await check_a_failed_load_serves_nothing(engine, old, write_broken(new, root / "broken"))


async def check_a_failed_load_serves_nothing(engine: ServedEngine, old: Path, broken: Path) -> None:
    """Not even the model that it served before, since some layers may hold parts of the other."""
    await engine.pause()
    with pytest.raises(TandemError):
        await engine.swap_weights(broken, VersionName("small.g3", 0))
    with pytest.raises(EngineFault, match="start the engine anew"):
        await engine.swap_weights(old, OLD)
    with pytest.raises(EngineFault, match="start the engine anew"):
        await engine.resume()


def write_broken(model: Path, directory: Path) -> Path:
    """`model` with one weight that is a row short, so that the load of it fails half way."""
    shutil.copytree(model, directory)
    (directory / MODEL_FILE).write_text(json.dumps({"starts": False}))
    weights = directory / "model.safetensors"
    if weights.exists():
        tensors = load_file(weights)
        name = max(name for name in tensors if "down_proj.weight" in name)
        save_file({**tensors, name: tensors[name][:-1].contiguous()}, weights, metadata={"format": "pt"})
    return directory


async def queue_requests(engine: ServedEngine, *versions: VersionName) -> tuple[asyncio.Task[str], ...]:
    """Requests that come while the engine is paused, each under its version; all are inside when this returns."""

    async def are_inside() -> bool:
        stats = await engine.stats()
        return stats is not None and stats.num_running + stats.num_waiting == len(versions)

    begun = tuple(asyncio.create_task(outcome_of(engine, version)) for version in versions)
    await eventually(are_inside)
    return begun


async def outcome_of(engine: ServedEngine, version: VersionName) -> str:
    """The finish reason, or `error` for an answer other than 200."""
    async with (
        session(engine.endpoint) as http,
        http.post("/v1/chat/completions", json=asked(version)) as answer,
    ):
        said = await answer.json()
        return str(said["choices"][0]["finish_reason"]) if answer.status == 200 else "error"


@asynccontextmanager
async def running(kind: str, model: Path, root: Path, name: str) -> AsyncIterator[ServedEngine]:
    config = EngineConfig(model=str(model), kind=kind, max_model_len=512, **settings(kind))
    engine = BACK_ENDS[kind](name, config, root)
    try:
        await engine.start()
        yield engine
    finally:
        await engine.stop()


def asked(version: VersionName) -> dict[str, object]:
    return request(str(version), QUESTION, picture("red"))


async def logprobs(engine: ServedEngine, version: VersionName) -> tuple[float, ...]:
    scores = await engine.probe(version, PROMPTS)
    return tuple(value for score in scores for value in score.logprobs)


def distance(these: tuple[float, ...], those: tuple[float, ...]) -> float:
    """The largest, in nats."""
    return max(abs(a - b) for a, b in zip(these, those, strict=True))
