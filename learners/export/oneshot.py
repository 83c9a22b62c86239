"""Runs in the environment of llm-compressor, as a script: `python oneshot.py REQUEST.json`.

Imports nothing of Tandem, whose packages are not there. Writes the quantized model and `quantized.json` (versions,
device, rows seen) into the directory that the request names. Its narration goes to stderr.
"""

import importlib.metadata
import json
import sys
import types
from pathlib import Path
from typing import Any

REPORTED = ("llmcompressor", "compressed-tensors", "transformers", "torch")


def main() -> int:
    request = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    import torch

    torch.set_num_threads(request["num_threads"])
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    if device.type == "cpu" and request["scales_inputs"]:
        _pin_nothing()
    rows = _read_rows(request["calibration"])
    model = _quantize(request, rows, device)
    out = Path(request["out"])
    model.save_pretrained(out, save_compressed=True)
    versions = {name: importlib.metadata.version(name) for name in REPORTED}
    result = {"versions": versions, "device": str(device.type), "num_calibration_rows": len(rows)}
    (out / "quantized.json").write_text(json.dumps(result), "utf-8")
    return 0


def _quantize(request: dict[str, Any], rows: list[dict[str, Any]], device: Any) -> Any:
    from llmcompressor import oneshot
    from torch.utils.data import DataLoader
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(request["model"], dtype="auto", local_files_only=True)
    model = model.to(device)
    calibration = {}
    if rows:
        calibration = {"dataset": DataLoader(rows, batch_size=None), "num_calibration_samples": len(rows)}
    # Rows come as tensors: no processor is needed, and with one it would load libraries of images.
    oneshot(model=model, recipe=json.dumps(request["recipe"]), processor=types.SimpleNamespace(), **calibration)
    return model


def _pin_nothing() -> None:
    """AWQ pins rows for copies to an accelerator, which torch refuses where there is none."""
    from llmcompressor.pipelines.cache import IntermediatesCache

    if not hasattr(IntermediatesCache, "pin_memory"):
        raise AttributeError("llm-compressor pins its rows elsewhere than in IntermediatesCache.pin_memory")
    IntermediatesCache.pin_memory = lambda *_, **__: None


def _read_rows(folder: str | None) -> list[dict[str, Any]]:
    from safetensors.torch import load_file

    return [load_file(path) for path in sorted(Path(folder).glob("*.safetensors"))] if folder else []


if __name__ == "__main__":
    sys.exit(main())
