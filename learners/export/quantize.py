"""Our side of quantizing: a request for the child in llm-compressor's environment, and what is kept of its work.

Of what it writes only the weights and the `quantization_config` are taken. Everything else is that of the merged model,
so that no other library's version of a tokenizer or a template gets in.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.adapter.base import COPY_FILE, INDEX_FILE, base_hash_of, weight_files
from engines.adapter.files import parse_object, read_bounded, write_atomic
from engines.adapter.tensors import tensor_hashes
from engines.errors import BadRequest, Internal, Unavailable
from engines.profiles import MAX_CONFIG_BYTES, FamilyProfile, read_config
from learners.export.recipe import SCALED_NORMS
from learners.merge import copy_texts

SCRIPT = Path(__file__).with_name("oneshot.py")
READABLE = 0o644
MAX_DETAIL_CHARS = 3000


@dataclass(frozen=True, slots=True)
class Request:
    """`calibration` is a directory of rows as `write_rows` leaves them, or None. `scales_inputs`: of its scheme."""

    model: Path
    recipe: Mapping[str, Any]
    calibration: Path | None
    scales_inputs: bool
    num_threads: int

    def document(self, out: Path) -> dict[str, Any]:
        return {
            "model": str(self.model),
            "out": str(out),
            "recipe": self.recipe,
            "calibration": str(self.calibration) if self.calibration else None,
            "scales_inputs": self.scales_inputs,
            "num_threads": self.num_threads,
        }


@dataclass(frozen=True, slots=True)
class Quantized:
    """What made it, and the modules that stayed as they were: by the checkpoint's names, and by the model's."""

    versions: Mapping[str, str]
    device: str
    ignore: tuple[str, ...]


def quantize(python: Path, request: Request, profile: FamilyProfile, out: Path, scratch: Path) -> Quantized:
    """Writes the quantized copy of `request.model` into the empty directory `out`.

    It is a base of its own where the scheme scales inputs, and else a copy that the model's adapters fit. Raises
    `BadRequest` if `python` can't be run, `Unavailable` with the end of what the child printed if it failed, `Internal`
    if it changed what was to be left alone.
    """
    made = scratch / "quantized"
    _run_child(python, request.document(made), scratch)
    said = parse_object(read_bounded(made / "quantized.json", MAX_CONFIG_BYTES), "quantized.json")
    check_left_alone(request.model, made, profile, scaled=SCALED_NORMS if request.scales_inputs else ())
    copy_texts(request.model, out)
    for path in (*weight_files(made), made / INDEX_FILE):
        if path.exists():
            path.rename(out / path.name).chmod(READABLE)
    quantization = read_config(made)["quantization_config"]
    quantization["ignore"] = list(_all_names(quantization["ignore"], profile))
    config = {**read_config(request.model), "quantization_config": quantization}
    write_atomic(out / "config.json", _json(config))
    if not request.scales_inputs:
        write_atomic(out / COPY_FILE, _json({"base_hash": base_hash_of(request.model)}))
    return Quantized(said["versions"], str(said["device"]), tuple(quantization["ignore"]))  # type: ignore[arg-type]


def check_left_alone(model: Path, made: Path, profile: FamilyProfile, scaled: Collection[str] = ()) -> None:
    """Raises `Internal` unless just the language linears were quantized, and nothing else has changed but modules of
    the language model that are called as in `scaled`."""
    before, after = _hashes(model), _hashes(made)
    for name, digest in before.items():
        module = profile.model_module(name).removesuffix(".weight")
        is_scaled = module.startswith(profile.language_prefixes) and module.rpartition(".")[2] in scaled
        if is_scaled and name in after:
            continue
        is_kept = after.get(name) == digest
        if is_kept == profile.is_target(module):
            raise Internal(
                f"llm-compressor {'did not quantize' if is_kept else 'changed'} {name}: the family profile "
                f"{profile.name} or the recipe is wrong, and nothing was kept"
            )


def _all_names(ignored: Iterable[str], profile: FamilyProfile) -> Iterator[str]:
    """Engines look modules up by a checkpoint's names, transformers by the model's."""
    for name in ignored:
        of_model = profile.model_module(f"{name}.weight").removesuffix(".weight")
        yield from dict.fromkeys((name, of_model))


def _run_child(python: Path, document: dict[str, Any], scratch: Path) -> None:
    request = scratch / "request.json"
    request.write_bytes(_json(document))
    command = (str(python), str(SCRIPT), str(request))
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False
        )
    except OSError as error:
        raise BadRequest(f"python: {python} cannot be run ({error.strerror})", param="python") from error
    if done.returncode:
        raise Unavailable(
            f"llm-compressor failed ({done.returncode}); nothing was written",
            detail=(done.stderr or done.stdout)[-MAX_DETAIL_CHARS:],
        )


def _hashes(model: Path) -> dict[str, str]:
    return {name: digest for path in weight_files(model) for name, digest in tensor_hashes(path.resolve()).items()}


def _json(value: object) -> bytes:
    return json.dumps(value, indent=2).encode() + b"\n"
