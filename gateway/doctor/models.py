"""Checks of the models: the directory is there, whole, and of a family that we know."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from engines.adapter.base import INDEX_FILE, MAX_INDEX_BYTES, WEIGHTS_FILE
from engines.adapter.files import read_bounded
from engines.errors import TandemError
from engines.model import family_of
from gateway.doctor.context import Context
from gateway.doctor.finding import Finding, fail, ok, worst


def check_models(context: Context) -> Finding:
    engines = context.engines("vllm")
    if not engines:
        return ok("no engine needs a model: fake engines take any directory, remote servers have their own")
    return worst([_check_model(name, context) for name in engines])


def _check_model(name: str, context: Context) -> Finding:
    engine = context.config.engines[name]
    path = engine.model_path()
    if not path.is_dir():
        return fail(f"engine {name}: {path} is no directory", f"hf download ORG/MODEL --local-dir {_quoted(path)}")
    try:
        family = family_of(name, engine)
    except TandemError as error:
        return fail(f"engine {name}: {error.message}", context.tandem("config", "check"))
    missing = missing_weights(path)
    if missing:
        few = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        return fail(f"engine {name}: {path} lacks {few}", f"hf download ORG/MODEL --local-dir {_quoted(path)}")
    return ok(f"engine {name}: {family.name}, {weights_bytes(path) / 1e9:.2f} GB in {path}")


def missing_weights(model: Path) -> list[str]:
    """The weight files that the model should have and has not."""
    names = {WEIGHTS_FILE}
    if (model / INDEX_FILE).exists():
        index = json.loads(read_bounded(model / INDEX_FILE, MAX_INDEX_BYTES, follow_symlinks=True))
        names = set(index["weight_map"].values())
    return sorted(name for name in names if not (model / name).is_file())


def weights_bytes(model: Path) -> int:
    return sum(path.stat().st_size for path in model.glob("*.safetensors"))


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))
