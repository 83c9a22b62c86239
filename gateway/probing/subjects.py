"""Verdicts on what transformers says of a model: its family, its parts, its chat template."""

from __future__ import annotations

from engines.inspection import Inspection, Part
from engines.profiles import PROFILES
from gateway.probing.verdict import Verdict, fails, unknown, works

NO_TOUCH = {
    Part.VISION: "none is served from an adapter: merge it into the base (tandem versions export)",
    Part.PROJECTOR: "none is served from an adapter: merge it into the base (tandem versions export)",
    Part.HEAD: "none is served from an adapter",
}


def family_verdict(architectures: tuple[str, ...]) -> Verdict:
    known = next((p.name for p in PROFILES.values() if set(p.architectures) & set(architectures)), None)
    named = ", ".join(architectures)
    if known is not None:
        return works("family", f"{known} ({named})")
    return unknown("family", f"{named} is of no known family: it is probed with a profile found by looking")


def inspection_verdicts(found: Inspection) -> list[Verdict]:
    verdicts = [_loads(found)]
    if found.architecture:
        verdicts += [_language(found), *([_training(found)] if found.layers else []), *_untouched(found)]
    verdicts.append(_template(found))
    return verdicts


def _loads(found: Inspection) -> Verdict:
    if not found.architecture:
        return fails("transformers", found.fault("load"))
    return works("transformers", f"{found.architecture}, {found.num_parameters / 1e6:.1f} million parameters, float32")


def _language(found: Inspection) -> Verdict:
    language = found.linears(Part.LANGUAGE)
    if language is None or not found.layers:
        return fails("language linears", found.fault("parts") or "the language model has no linears in numbered layers")
    words = f"{language.num_modules} under {found.layers}: {', '.join(language.leaves)}"
    return works("language linears", words)


def _training(found: Inspection) -> Verdict:
    if not found.peft_targets:
        return fails(
            "training", "the ends of their names do not tell them from the vision tower's: PEFT would take both"
        )
    return works("training", f"PEFT finds the language linears, and no other, by {', '.join(found.peft_targets)}")


def _untouched(found: Inspection) -> list[Verdict]:
    return [
        works(f"{part} linears", f"{linears.num_modules} under {linears.prefix or '-'}; {NO_TOUCH[part]}")
        for part in NO_TOUCH
        if (linears := found.linears(part)) is not None
    ]


def _template(found: Inspection) -> Verdict:
    fault = found.fault("processor") or found.fault("template") or found.fault("prompt")
    if fault:
        return fails("chat template", fault)
    if not found.renders_images:
        return fails("chat template", "it leaves an image part out")
    tokens = " ".join(found.vision_tokens)
    return works("chat template", f"renders images; image tokens: {tokens or 'none of their own'}")
