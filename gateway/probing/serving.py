"""Verdicts on what an engine does with a model: it answers, agrees with transformers, and serves an adapter."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engines.adapter import WEIGHTS_FILE, ProbeRecord
from engines.adapter.files import open_regular
from engines.adapter.tensors import read_header
from engines.errors import TandemError
from engines.inspection import Inspection
from engines.profiles import FamilyProfile
from engines.proof import check_agreement, check_delivery
from engines.protocol import Engine
from engines.types import AdapterRef, LoadedAdapter, ProbePrompt, ProbeScore, VersionName
from gateway.probing.engine import NAME, ask
from gateway.probing.parity import parity_of, same_tokens
from gateway.probing.profile import with_engine_names
from gateway.probing.verdict import Verdict, fails, unknown, works

BASE, TUNED = VersionName(NAME, 0), VersionName(NAME, 1)
SLOT_ID = 1
LORA_A = ".lora_A.weight"
_ERROR = re.compile(r"\w+(Error|Exception): .*")


@dataclass(frozen=True, slots=True)
class Model:
    """What the learner found, the profile to go by, and how far from float32 an engine of this format may be, in nats.

    `is_probed`: the profile was found by looking, so an engine's names of modules are learned from what it matched.
    """

    inspection: Inspection
    profile: FamilyProfile
    max_mean_error: float
    is_probed: bool

    @property
    def records(self) -> tuple[ProbeRecord, ...]:
        return self.inspection.records

    @property
    def prompts(self) -> tuple[ProbePrompt, ...]:
        return tuple(record.prompt() for record in self.records)


@dataclass(frozen=True, slots=True)
class Served:
    """What an engine did, and the profile with its names of modules in it."""

    verdicts: tuple[Verdict, ...]
    profile: FamilyProfile


async def serve(engine: Engine, model: Model) -> Served:
    """Starts the engine, asks it, and stops it. Whatever goes wrong there is a verdict."""
    try:
        await engine.start()
    except TandemError as error:
        return Served((fails("serves", _words_of(error)),), model.profile)
    try:
        return await _ask_all(engine, model)
    finally:
        await engine.stop()


async def _ask_all(engine: Engine, model: Model) -> Served:
    verdicts = [works("serves", "it started and answered"), *[await _answer(engine, one) for one in model.prompts]]
    if not model.records:
        missing = unknown("parity", "transformers scored no answers to compare with")
        return Served((*verdicts, missing, unknown("adapter", "there is none to load")), model.profile)
    try:
        base = await engine.probe(BASE, model.prompts)
    except TandemError as error:
        return Served((*verdicts, fails("parity", _words_of(error))), model.profile)
    verdicts.append(_parity(model, base))
    tuned = await _adapter(engine, model, base)
    return Served((*verdicts, *tuned.verdicts), tuned.profile)


async def _answer(engine: Engine, prompt: ProbePrompt) -> Verdict:
    subject = "text answer" if prompt.image is None else "image answer"
    try:
        return works(subject, repr(await ask(engine, prompt.text, prompt.image)))
    except TandemError as error:
        return fails(subject, _words_of(error))


def _parity(model: Model, base: Sequence[ProbeScore]) -> Verdict:
    if not same_tokens(model.records, base):
        return fails("parity", "the engine tokenizes an answer otherwise than transformers does")
    parity = parity_of(model.records, base)
    words = f"log-probabilities against transformers in float32: {parity}"
    if parity.mean > model.max_mean_error:
        return fails("parity", f"{words} (limit {model.max_mean_error:g} on average)")
    return works("parity", words)


async def _adapter(engine: Engine, model: Model, base: Sequence[ProbeScore]) -> Served:
    folder = Path(model.inspection.adapter)
    try:
        loaded = await engine.load_adapter(AdapterRef(TUNED, SLOT_ID, folder))
    except TandemError as error:
        return Served((fails("adapter loads", _words_of(error)),), model.profile)
    names = loaded.modules if model.is_probed else ()
    profile = with_engine_names(model.profile, model.inspection.layers, names) if names else model.profile
    return Served((_delivered(folder, loaded, profile), await _effect(engine, model, base)), profile)


def _delivered(folder: Path, loaded: LoadedAdapter, profile: FamilyProfile) -> Verdict:
    weights = folder / WEIGHTS_FILE
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    with open_regular(weights) as file:
        tensors = [tensor.name for tensor in read_header(file, WEIGHTS_FILE).tensors]
    modules = [name.removeprefix(profile.adapter_prefix).removesuffix(LORA_A) for name in tensors if LORA_A in name]
    try:
        return works("adapter loads", check_delivery(loaded, sha256, modules, profile))
    except TandemError as error:
        return fails("adapter loads", error.message)


async def _effect(engine: Engine, model: Model, base: Sequence[ProbeScore]) -> Verdict:
    try:
        agreement = check_agreement(model.records, base, await engine.probe(TUNED, model.prompts))
    except TandemError as error:
        return fails("adapter's effect", _words_of(error))
    return works(
        "adapter's effect", f"{agreement.effect:.3f} nats on average, {agreement.error:.4f} away from transformers"
    )


def _words_of(error: TandemError) -> str:
    """Our message, and what the library said: its first error, which is the cause of the others."""
    lines = [line.strip() for line in error.detail.splitlines() if line.strip()]
    said = next((match[0] for line in lines if (match := _ERROR.search(line))), lines[-1] if lines else "")
    return f"{error.message} ({said[:300]})" if said else error.message
