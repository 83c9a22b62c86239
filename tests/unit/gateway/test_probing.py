"""`tandem doctor MODEL` without a model: profiles found by looking, comparisons, and what is no model at all."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from engines.adapter import ProbeRecord
from engines.config import EngineConfig
from engines.errors import BadRequest
from engines.fake import FakeEngine
from engines.inspection import Fault, Inspection, Part, PartLinears, parse_inspection
from engines.profiles import PROFILES, FamilyProfile
from engines.schemes import MachineKind, Scheme
from engines.types import Endpoint, ProbePrompt, ProbeScore
from gateway.doctor.machine import Machine
from gateway.probing import engine, learner
from gateway.probing.examine import Examination, examine
from gateway.probing.parity import parity_of, same_tokens
from gateway.probing.profile import profile_for, row_of, with_engine_names
from gateway.probing.room import why_no_room
from gateway.probing.serving import _answer
from gateway.probing.subjects import family_verdict, inspection_verdicts
from gateway.probing.verdict import Outcome

LEAVES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ROOT = Path(__file__).parents[3]


def inspection(**values: object) -> Inspection:
    parts = (
        PartLinears(part=Part.LANGUAGE, prefix="model.language_model.layers.", leaves=LEAVES, num_modules=14),
        PartLinears(part=Part.VISION, prefix="model.tower.", leaves=("q_proj", "fc1"), num_modules=4),
        PartLinears(part=Part.PROJECTOR, prefix="model.connector.", leaves=("linear_1",), num_modules=1),
    )
    found = {
        "path": "m",
        "architecture": "NewForConditionalGeneration",
        "model_type": "new",
        "parts": parts,
        "layers": "model.language_model.layers.",
        "stored_layers": "language_model.model.layers.",
        "peft_targets": ("self_attn.q_proj", "k_proj"),
        "renders_images": True,
        "vision_tokens": ("<image>",),
    }
    return Inspection.model_validate({**found, **values})


def profile(found: Inspection | None = None) -> FamilyProfile:
    made = profile_for(found or inspection(), ("NewForConditionalGeneration",))
    assert made is not None
    return made


def outcomes(found: Inspection) -> dict[str, Outcome]:
    return {verdict.subject: verdict.outcome for verdict in inspection_verdicts(found)}


def test_a_profile_is_made_of_what_was_found() -> None:
    found = profile()
    assert found.language_prefixes == ("model.language_model.",)
    assert found.vision_prefixes == ("model.tower.", "model.connector.")
    assert found.is_target("model.language_model.layers.1.mlp.up_proj")
    assert not found.is_target("model.tower.layers.1.q_proj")
    assert (
        found.model_module("language_model.model.layers.1.mlp.up_proj") == "model.language_model.layers.1.mlp.up_proj"
    )


def test_without_language_linears_there_is_no_profile() -> None:
    assert profile_for(inspection(parts=(), layers=""), ("X",)) is None


def test_an_engines_names_are_learned_from_what_it_matched() -> None:
    matched = [f"language_model.model.layers.0.{name}" for name in ("self_attn.qkv_proj", "mlp.down_proj")]
    found = with_engine_names(profile(), inspection().layers, matched)
    assert found.engine_prefixes == ("language_model.model.",)
    for name in ("q_proj", "k_proj", "v_proj"):
        assert found.engine_module(f"model.language_model.layers.0.self_attn.{name}") == "layers.0.self_attn.qkv_proj"
    assert found.engine_module(matched[1]) == "layers.0.mlp.down_proj"
    assert ("gate_proj", "gate_up_proj") not in found.fused_modules


def test_the_printed_row_is_the_profile() -> None:
    found = with_engine_names(profile(), inspection().layers, ["language_model.model.layers.0.self_attn.qkv_proj"])
    assert eval(row_of(found), {"FamilyProfile": FamilyProfile}) == found  # noqa: S307  our own text


def test_a_known_architecture_is_named_and_another_is_not_known() -> None:
    known = PROFILES["qwen3_vl"]
    assert family_verdict(known.architectures).outcome is Outcome.WORKS
    assert family_verdict(("NewForConditionalGeneration",)).outcome is Outcome.UNKNOWN


def test_what_adapters_may_not_touch_is_said_with_the_reason() -> None:
    found = {verdict.subject: verdict.found for verdict in inspection_verdicts(inspection())}
    assert "tandem versions export" in found["vision linears"]
    assert "tandem versions export" in found["projector linears"]


def test_what_failed_is_said_with_its_reason() -> None:
    faults = (Fault(step="load", reason="no class for it"), Fault(step="template", reason="no template"))
    found = {verdict.subject: verdict for verdict in inspection_verdicts(Inspection(path="m", faults=faults))}
    assert (found["transformers"].outcome, found["transformers"].found) == (Outcome.FAILS, "no class for it")
    assert (found["chat template"].outcome, found["chat template"].found) == (Outcome.FAILS, "no template")


def test_without_names_of_their_own_the_linears_cannot_be_trained() -> None:
    assert outcomes(inspection(peft_targets=()))["training"] is Outcome.FAILS
    assert outcomes(inspection())["training"] is Outcome.WORKS


def test_a_template_without_images_fails() -> None:
    assert outcomes(inspection(renders_images=False))["chat template"] is Outcome.FAILS


def record(*logprobs: float) -> ProbeRecord:
    ids = tuple(range(len(logprobs)))
    return ProbeRecord(
        text="q", answer="a", num_tokens=len(ids), token_ids=ids, base_logprobs=logprobs, adapter_logprobs=logprobs
    )


def test_parity_is_the_mean_and_the_largest_difference_over_all_tokens() -> None:
    parity = parity_of(
        [record(-1.0, -2.0), record(-3.0)], [ProbeScore((0, 1), (-1.5, -2.0)), ProbeScore((0,), (-2.9,))]
    )
    assert parity.num_tokens == 3
    assert parity.mean == pytest.approx(0.2)
    assert parity.largest == pytest.approx(0.5)


def test_other_tokens_are_no_parity() -> None:
    assert same_tokens([record(-1.0)], [ProbeScore((0,), (-1.0,))])
    assert not same_tokens([record(-1.0)], [ProbeScore((7,), (-1.0,))])


def test_a_model_too_large_for_the_memory_is_not_loaded(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemAvailable: 1024 kB\n")
    (tmp_path / "model.safetensors").write_bytes(bytes(600 * 1024))
    machine = Machine(proc=tmp_path, cgroup=tmp_path)
    assert "in float32 it takes about" in why_no_room(tmp_path, Scheme.UNQUANTIZED, machine)
    (tmp_path / "model.safetensors").write_bytes(bytes(110 * 1024))
    assert why_no_room(tmp_path, Scheme.UNQUANTIZED, machine) == ""
    assert why_no_room(tmp_path, Scheme.GPTQ, machine) != ""
    assert why_no_room(tmp_path, Scheme.FP8, machine) == ""


def test_an_inspection_that_is_no_such_document_is_refused() -> None:
    with pytest.raises(BadRequest, match="cannot be read"):
        parse_inspection('{"path": 3}')


@pytest.mark.parametrize("text", [None, "", "[]", '{"model_type": "x"}'])
def test_a_directory_that_is_no_model_is_a_usage_error(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(BadRequest, match=r"config\.json"):
        asyncio.run(examine(EngineConfig(model=str(tmp_path)), MachineKind.CPU_AVX2, print))


@pytest.mark.parametrize(
    ("script", "why"),
    [("kill -9 $$", "signal 9"), ("exec sleep 600", "did not load it within 0.2 s"), ("exit 1", "exit code 1")],
)
def test_a_learner_that_says_nothing_is_a_fault_of_loading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, why: str
) -> None:
    found = asyncio.run(inspect_by(script, tmp_path, monkeypatch))
    assert why in found.fault("load")
    assert outcomes(found)["transformers"] is Outcome.FAILS


def test_a_model_that_the_learner_refuses_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadRequest, match="it says above why"):
        asyncio.run(inspect_by("exit 2", tmp_path, monkeypatch))


async def inspect_by(script: str, folder: Path, patch: pytest.MonkeyPatch) -> Inspection:
    python = folder / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    patch.setattr(sys, "executable", str(python))
    patch.setattr(learner, "TIMEOUT_S", 0.2 if "sleep" in script else 30.0)
    return await learner.inspect(folder, folder)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "its connection broke"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "is no chat completion"),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", "it answered 500"),
        (None, "did not answer within 0.2 s"),
    ],
)
async def test_whatever_an_engine_answers_is_a_verdict(
    monkeypatch: pytest.MonkeyPatch, answer: bytes | None, why: str
) -> None:
    monkeypatch.setattr(engine, "ANSWER_TIMEOUT_S", 0.2 if answer is None else 30.0)
    async with answering(answer) as endpoint:
        verdict = await _answer(Answering(endpoint), ProbePrompt("q", "a", None, 1))
    assert (verdict.subject, verdict.outcome) == ("text answer", Outcome.FAILS)
    assert why in verdict.found


class Answering(FakeEngine):
    """Only its endpoint is asked for."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    @property
    def endpoint(self) -> Endpoint:
        return self._endpoint


@asynccontextmanager
async def answering(answer: bytes | None) -> AsyncIterator[Endpoint]:
    """A server that says these bytes once it was asked, or nothing."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if answer is None:
            await reader.read()  # until the client has gone
        else:
            writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield Endpoint(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "token")


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_text_model_without_files_is_told_apart_step_by_step(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    found = asyncio.run(examine(EngineConfig(model=str(tmp_path)), MachineKind.CPU_AVX2, print))
    assert _of(found, "transformers") is Outcome.FAILS
    assert _of(found, "chat template") is Outcome.FAILS
    assert _of(found, "serves") is Outcome.UNKNOWN
    assert not found.profile_row


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_refused_scheme_starts_no_engine(tmp_path: Path) -> None:
    config = {"architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl"}
    quantization = {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (tmp_path / "config.json").write_text(json.dumps(config | quantization))
    found = asyncio.run(examine(EngineConfig(model=str(tmp_path)), MachineKind.CPU_AVX2, print))
    assert _of(found, "scheme") is Outcome.FAILS
    (serves,) = [verdict for verdict in found.verdicts if verdict.subject == "serves"]
    assert "cpu_gemm_wna16" in serves.found


def test_what_is_not_there_exits_2_and_says_what_to_do(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gateway.cli", "doctor", str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    assert "give a model's directory or a hub id" in done.stderr


def _of(found: Examination, subject: str) -> Outcome:
    return next(verdict.outcome for verdict in found.verdicts if verdict.subject == subject)
