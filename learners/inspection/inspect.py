"""The steps of an inspection, one after the other; one that fails is a `Fault`, and the rest goes on without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from engines.adapter import ProbeRecord
from engines.adapter.base import stored_modules
from engines.errors import BadRequest, TandemError
from engines.inspection import Fault, Inspection
from engines.profiles import read_config
from learners import quiet
from learners.data.examples import Example, to_data_url
from learners.inspection.adapter import grow, put_adapter, save
from learners.inspection.parts import Anatomy, anatomy_of
from learners.inspection.prompts import Reader, examples, open_reader, renders_images, vision_tokens
from learners.inspection.scores import Logprobs, score

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from learners.data.collate import Encoded

MAX_REASON_CHARS = 400
T = TypeVar("T")


@dataclass(slots=True)
class Steps:
    """Runs steps and keeps what failed. What a library raises at an unknown model may be anything: caught here."""

    faults: list[Fault] = field(default_factory=list)

    def run(self, step: str, work: Callable[[], T]) -> T | None:
        try:
            return work()
        except TandemError as error:
            self.faults.append(Fault(step=step, reason=error.message[:MAX_REASON_CHARS]))
        except Exception as error:  # the boundary to transformers and peft
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            self.faults.append(Fault(step=step, reason=reason[:MAX_REASON_CHARS]))
        return None


def inspect(model_dir: Path, out: Path, num_threads: int) -> Inspection:
    """Writes a random adapter into `out`/adapter. Raises `BadRequest` if `model_dir` holds no model's config.json."""
    method = _quantization_method(read_config(model_dir))
    quiet.prepare(num_threads)
    steps, found = Steps(), Inspection(path=str(model_dir))
    model = steps.run("load", lambda: _load(model_dir, method))
    reader = steps.run("processor", lambda: open_reader(model_dir))
    if reader is not None:
        found = _with_processor(found, steps, reader)
    anatomy = None
    if model is not None:
        anatomy = steps.run("parts", lambda: anatomy_of(model))
        stored = steps.run("names", lambda: stored_modules(model_dir)) or frozenset()
        found = _with_model(found, model)
        found = found if anatomy is None else _with_anatomy(found, anatomy, stored)
    if model is not None and reader is not None and anatomy is not None:
        found = steps.run("adapter", lambda: _with_adapter(found, model, reader, anatomy, out / "adapter")) or found
    return found.model_copy(update={"faults": tuple(steps.faults)})


def _quantization_method(config: Mapping[str, Any]) -> str:
    quantization = config.get("quantization_config")
    return str(quantization.get("quant_method", "")) if isinstance(quantization, dict) else ""


def _load(model_dir: Path, quantization_method: str) -> PreTrainedModel:
    """In float32 on the CPU, whatever the checkpoint's format is. Raises `BadRequest` if it lacks weights."""
    import torch
    from transformers import AutoModelForImageTextToText

    options: dict[str, Any] = {"dtype": torch.float32, "local_files_only": True, "output_loading_info": True}
    if quantization_method == "compressed-tensors":
        from transformers import CompressedTensorsConfig

        options["quantization_config"] = CompressedTensorsConfig(run_compressed=False)
    model, info = AutoModelForImageTextToText.from_pretrained(model_dir, **options)
    if missing := sorted(info["missing_keys"]):
        raise BadRequest(
            f"{len(missing)} weights are missing, the first is {missing[0]}: transformers would make them up"
        )
    return model.float().eval()


def _with_processor(found: Inspection, steps: Steps, reader: Reader) -> Inspection:
    if not steps.run("template", lambda: renders_images(reader.processor)):
        return found
    text, image = (steps.run("prompt", partial(reader.encoder.encode_whole, example)) for example in examples())
    tokens = vision_tokens(reader.processor, text.prompt_ids, image.prompt_ids) if text and image else ()
    return found.model_copy(update={"renders_images": True, "vision_tokens": tokens})


def _with_model(found: Inspection, model: PreTrainedModel) -> Inspection:
    named = {
        "architecture": type(model).__name__,
        "model_type": str(model.config.model_type),
        "num_parameters": model.num_parameters(),
    }
    return found.model_copy(update=named)


def _with_anatomy(found: Inspection, anatomy: Anatomy, stored: frozenset[str]) -> Inspection:
    if not anatomy.layered:
        return found.model_copy(update={"parts": anatomy.parts()})
    return found.model_copy(
        update={
            "parts": anatomy.parts(),
            "layers": anatomy.layers,
            "peft_targets": anatomy.peft_targets,
            "stored_layers": anatomy.stored_layers(stored),
        }
    )


def _with_adapter(
    found: Inspection, model: PreTrainedModel, reader: Reader, anatomy: Anatomy, folder: Path
) -> Inspection:
    rows = [(example, reader.encoder.encode_whole(example)) for example in examples()]
    base = [score(model, reader, example, len(encoded.answer_ids)) for example, encoded in rows]
    adapted = put_adapter(model, anatomy.layered)

    def scores() -> list[Logprobs]:
        return [score(adapted, reader, example, len(encoded.answer_ids)) for example, encoded in rows]

    grow(adapted, lambda: _mean_change(base, scores()))
    save(adapted, folder)
    records = [_record(*row, plain, tuned) for row, plain, tuned in zip(rows, base, scores(), strict=True)]
    return found.model_copy(update={"adapter": str(folder), "records": tuple(records)})


def _mean_change(one: list[Logprobs], other: list[Logprobs]) -> float:
    changes = [abs(a - b) for xs, ys in zip(one, other, strict=True) for a, b in zip(xs, ys, strict=True)]
    return sum(changes) / len(changes)


def _record(example: Example, encoded: Encoded, base: Logprobs, adapted: Logprobs) -> ProbeRecord:
    image = example.images[0] if example.images else None
    return ProbeRecord(
        text=example.prompt[0].text,
        answer=example.answer,
        image=None if image is None else to_data_url(image.read()),
        num_tokens=len(encoded.answer_ids),
        token_ids=encoded.answer_ids,
        base_logprobs=base,
        adapter_logprobs=adapted,
    )
