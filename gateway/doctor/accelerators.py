"""Checks of what engines compute on and in: GPUs or cores, and memory."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass

from engines.config import EngineConfig
from engines.vllm import CPU_ENV, Build
from gateway.doctor.context import Context
from gateway.doctor.finding import Finding, fail, ok, warn, worst
from gateway.doctor.machine import GIB
from gateway.doctor.models import weights_bytes
from gateway.generation import engine_of

_SMI_TIMEOUT_S = 10.0
_SMI = ("--query-gpu=name,memory.total", "--format=csv,noheader")
_ENGINE_BYTES = {"fake": GIB // 8, "remote": 0}
"""Of kinds without weights here."""
_CPU_PROCESS_BYTES = GIB
_GPU_PROCESS_BYTES = 3 * GIB
_TIGHT = 0.5
"""Free memory below this share of the estimate is no matter of the estimate's error any more."""


@dataclass(frozen=True, slots=True)
class Gpus:
    """`names` is empty where there are none; `fault` is what the driver's tool said instead."""

    names: tuple[str, ...]
    fault: str = ""


def find_gpus(nvidia_smi: str) -> Gpus:
    try:
        run = subprocess.run([nvidia_smi, *_SMI], capture_output=True, text=True, timeout=_SMI_TIMEOUT_S, check=False)
    except FileNotFoundError:
        return Gpus(())
    except (OSError, subprocess.TimeoutExpired) as error:
        return Gpus((), f"{nvidia_smi} does not answer: {type(error).__name__}")
    if run.returncode:
        return Gpus((), f"{nvidia_smi} says: {(run.stdout + run.stderr).strip()[:200]}")
    return Gpus(tuple(line for line in run.stdout.splitlines() if line.strip()))


def check_accelerators(context: Context) -> Finding:
    """GPUs against replicas times tensor_parallel; for a CPU build, cores and what slows it."""
    engines = context.engines("vllm")
    if not engines:
        return ok("fake engines and remote servers need none")
    findings = []
    on_gpu = {name: engine for name, engine in engines.items() if not _is_on_cpu(name, context)}
    if on_gpu:
        findings.append(_check_gpus(on_gpu, context))
    if len(on_gpu) < len(engines):
        on_cpu = {name: engine for name, engine in engines.items() if name not in on_gpu}
        findings.append(_check_cpu(on_cpu, context))
    return worst(findings)


def check_memory(context: Context) -> Finding:
    """Free memory against an estimate of what the replicas take that do not run yet."""
    free = context.machine.memory_free_bytes()
    need = sum(_waiting(name, context) * _replica_bytes(name, context) for name in context.config.engines)
    words = f"{free / GIB:.1f} GiB free; the replicas that do not run yet take about {need / GIB:.1f} GiB"
    mend = context.tandem("serve", "--set", f"engines.{_heaviest(context)}.replicas=1")
    if free < _TIGHT * need:
        return fail(words, mend)
    return warn(words, mend) if free < need else ok(words)


def _check_gpus(engines: dict[str, EngineConfig], context: Context) -> Finding:
    need = sum(engine.replicas * engine.tensor_parallel for engine in engines.values())
    gpus = find_gpus(context.machine.nvidia_smi)
    if gpus.fault:
        return fail(gpus.fault, context.machine.nvidia_smi)
    if len(gpus.names) >= need:
        return ok(f"{len(gpus.names)} GPUs ({gpus.names[0]}), {need} needed")
    words = f"the replicas need {need} GPUs, this machine has {len(gpus.names)}"
    if context.config.ray.address:
        return warn(f"{words}; the Ray cluster may have more on other nodes", "ray status")
    if not gpus.names:
        return fail(f"{words}, and its vLLM is a CUDA build", "nvidia-smi")
    name = max(engines, key=lambda name: engines[name].replicas * engines[name].tensor_parallel)
    return fail(words, context.tandem("serve", "--set", f"engines.{name}.replicas=1"))


def _check_cpu(engines: dict[str, EngineConfig], context: Context) -> Finding:
    for name, engine in engines.items():
        if engine.tensor_parallel > 1:
            return fail(
                f"engine {name}: tensor_parallel is {engine.tensor_parallel}, and its vLLM is a CPU build",
                context.tandem("serve", "--set", f"engines.{name}.tensor_parallel=1"),
            )
    replicas, cores = sum(engine.replicas for engine in engines.values()), context.machine.num_cores()
    name = max(engines, key=lambda name: engines[name].replicas)
    fewer = context.tandem("serve", "--set", f"engines.{name}.replicas=1")
    if replicas > cores:
        return warn(f"{replicas} replicas share {cores} cores, and each keeps one busy while it answers", fewer)
    if _is_x86() and "avx512f" not in context.machine.cpu_flags():
        return warn(
            f"{cores} cores without AVX-512: vLLM's kernels for attention and bfloat16 fall back to slower ones",
            "lscpu",
        )
    return ok(f"{cores} cores for {replicas} replicas on the CPU")


def _is_on_cpu(name: str, context: Context) -> bool:
    build = context.builds.get(name)  # of vLLM only: SGLang runs on GPUs
    return isinstance(build, Build) and build.is_cpu


def _is_x86() -> bool:
    return os.uname().machine in ("x86_64", "amd64")


def _waiting(name: str, context: Context) -> int:
    running = context.running.replicas if context.running else ()
    in_service = sum(engine_of(replica.engine) == name and replica.in_service for replica in running)
    return max(0, context.config.engines[name].replicas - in_service)


def _replica_bytes(name: str, context: Context) -> int:
    engine = context.config.engines[name]
    if engine.kind in _ENGINE_BYTES:
        return _ENGINE_BYTES[engine.kind]
    weights = weights_bytes(engine.model_path())
    if not _is_on_cpu(name, context):
        return weights + _GPU_PROCESS_BYTES
    cache = float(engine.env.get("VLLM_CPU_KVCACHE_SPACE", CPU_ENV["VLLM_CPU_KVCACHE_SPACE"]))
    return _CPU_PROCESS_BYTES + int(cache * GIB) + weights * _growth(engine)


def _growth(engine: EngineConfig) -> int:
    """Sixteen-bit weights double when a CPU holds them as float32."""
    config = json.loads((engine.model_path() / "config.json").read_bytes())
    kept = str(config.get("dtype") or config.get("torch_dtype") or "")
    return 2 if engine.dtype in ("auto", "float32") and kept in ("bfloat16", "float16") else 1


def _heaviest(context: Context) -> str:
    engines = context.config.engines
    return max(engines, key=lambda name: engines[name].replicas, default="NAME")
