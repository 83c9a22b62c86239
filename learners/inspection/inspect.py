"""The steps of an inspection, one after the other; one that fails is a `Fault`, and the rest goes on without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from engines.adapter import ProbeRecord
from engines.adapter.base import weight_files
from engines.adapter.files import open_regular
from engines.adapter.tensors import TensorInfo, read_header
from engines.errors import TandemError
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
    config = read_config(model_dir)
    quiet.prepare(num_threads)
    steps = Steps()
    model = steps.run("load", lambda: _load(model_dir, config))
    reader = steps.run("processor", lambda: open_reader(model_dir))
    found: dict[str, Any] = {}
    if reader is not None:
        found |= _of_processor(steps, reader)
    if model is not None:
        found |= _of_model(steps, model, model_dir)
    if model is not None and reader is not None and (anatomy := steps.run("parts", lambda: anatomy_of(model))):
        found |= steps.run("adapter", lambda: _of_adapter(model, reader, anatomy, out / "adapter")) or {}
    return Inspection(path=str(model_dir), faults=tuple(_distinct(steps.faults)), **found)


def _load(model_dir: Path, config: dict[str, Any]) -> PreTrainedModel:
    """In float32 on the CPU, whatever the checkpoint's format is."""
    import torch
    from transformers import AutoModelForImageTextToText

    options: dict[str, Any] = {}
    if (config.get("quantization_config") or {}).get("quant_method") == "compressed-tensors":
        from transformers import CompressedTensorsConfig

        options["quantization_config"] = CompressedTensorsConfig(run_compressed=False)
    model = AutoModelForImageTextToText.from_pretrained(
        model_dir, dtype=torch.float32, local_files_only=True, **options
    )
    return model.float().eval()


def _of_processor(steps: Steps, reader: Reader) -> dict[str, Any]:
    shown = steps.run("template", lambda: renders_images(reader.processor))
    if not shown:
        return {"renders_images": False}
    text, image = (steps.run("prompt", partial(reader.encoder.encode_whole, example)) for example in examples())
    tokens = vision_tokens(reader.processor, text.prompt_ids, image.prompt_ids) if text and image else ()
    return {"renders_images": True, "vision_tokens": tokens}


def _of_model(steps: Steps, model: PreTrainedModel, model_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = {
        "architecture": type(model).__name__,
        "model_type": str(model.config.model_type),
        "num_parameters": model.num_parameters(),
    }
    anatomy = steps.run("parts", lambda: anatomy_of(model))
    if anatomy is not None:
        found |= {"parts": anatomy.parts(), "layers": anatomy.layers}
        saved = steps.run("names", lambda: _saved_modules(model_dir))
        found["names_differ"] = saved is not None and not set(anatomy.layered) <= saved
    return found


def _of_adapter(model: PreTrainedModel, reader: Reader, anatomy: Anatomy, folder: Path) -> dict[str, Any]:
    rows = [(example, reader.encoder.encode_whole(example)) for example in examples()]
    base = [score(model, reader, example, len(encoded.answer_ids)) for example, encoded in rows]
    adapted = put_adapter(model, anatomy.layered)

    def scores() -> list[Logprobs]:
        return [score(adapted, reader, example, len(encoded.answer_ids)) for example, encoded in rows]

    grow(adapted, lambda: _mean_change(base, scores()))
    save(adapted, folder)
    records = [_record(*row, plain, tuned) for row, plain, tuned in zip(rows, base, scores(), strict=True)]
    return {"adapter": str(folder), "records": tuple(records)}


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


def _saved_modules(model_dir: Path) -> frozenset[str]:
    """Of all modules in the weight files."""
    names = [tensor.name for path in weight_files(model_dir) for tensor in _tensors(path)]
    return frozenset(name.rpartition(".")[0] for name in names)


def _tensors(path: Path) -> Sequence[TensorInfo]:
    with open_regular(path, follow_symlinks=True) as file:
        return read_header(file, path.name).tensors


def _distinct(faults: list[Fault]) -> list[Fault]:
    return list({(fault.step, fault.reason): fault for fault in faults}.values())
