"""What a benchmark writes: one JSON file under bench-results/, in the form of docs/benchmarks.md."""

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Metric:
    """All values that were measured of one thing, in one unit."""

    name: str
    unit: str
    values: Sequence[float]

    def summary(self) -> dict[str, object]:
        return {
            "median": round(statistics.median(self.values), 4),
            "min": round(min(self.values), 4),
            "max": round(max(self.values), 4),
            "unit": self.unit,
        }


def write(name: str, command: str, config: Mapping[str, object], metrics: Sequence[Metric]) -> Path:
    """Writes the file and prints the summary."""
    result = {
        "name": name,
        "command": command,
        "machine": {"cpu": _cpu(), "cores": os.cpu_count(), "python": platform.python_version()},
        "versions": {package: version(package) for package in ("ray", "fastapi", "aiohttp", "openai")},
        "config": dict(config),
        "runs": [{**asdict(metric), "values": [round(v, 5) for v in metric.values]} for metric in metrics],
        "summary": {metric.name: metric.summary() for metric in metrics},
    }
    path = ROOT / "bench-results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    for metric in metrics:
        print(f"{name}: {metric.name} = {metric.summary()['median']} {metric.unit} (median of {len(metric.values)})")
    return path


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    flags = next((line for line in lines if line.startswith("flags")), "")
    return f"{names[0] if names else platform.processor()}{' with AVX-512' if 'avx512f' in flags else ''}"
