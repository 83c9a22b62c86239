"""What cannot be done, with the reason: one frozen row a refusal. What no row names is allowed.

To add one: a row in `RULES`, its reason seen on a machine of that kind, or told by the back end itself. docs/support.md
is generated from it.
"""

from __future__ import annotations

from dataclasses import dataclass

from engines.schemes.machine import MachineKind
from engines.schemes.scheme import Scheme

CPUS = frozenset(kind for kind in MachineKind if kind.is_cpu)
NARROW_CPUS = frozenset({MachineKind.CPU_AVX2})
ANY_MACHINE = frozenset(MachineKind)
ANY_SCHEME = frozenset(Scheme)
FOUR_BITS = frozenset({Scheme.W4A16, Scheme.GPTQ, Scheme.AWQ})


@dataclass(frozen=True, slots=True)
class Combination:
    """What an engine is: `kind` of back end, `family` by profile (empty: not known), scheme and machine."""

    kind: str
    family: str
    scheme: Scheme
    machine: MachineKind


@dataclass(frozen=True, slots=True)
class Rule:
    """A refusal. `families` empty: of every family.

    Engines of ours are started with adapters on, so what takes none is not started; `base_is_served`: it is, and only
    adapters are refused.
    """

    kinds: frozenset[str]
    schemes: frozenset[Scheme]
    machines: frozenset[MachineKind]
    why: str
    instead: str
    families: frozenset[str] = frozenset()
    base_is_served: bool = False

    def refuses(self, asked: Combination) -> bool:
        return (
            asked.kind in self.kinds
            and asked.scheme in self.schemes
            and asked.machine in self.machines
            and (not self.families or asked.family in self.families)
        )


VLLM, SGLANG = frozenset({"vllm"}), frozenset({"sglang"})

RULES: tuple[Rule, ...] = (
    Rule(
        VLLM, FOUR_BITS, NARROW_CPUS,
        "vLLM's CPU build has no 4-bit kernel (cpu_gemm_wna16) for processors without AVX-512: the engine would start "
        "and die at its first request",
        "use an FP8 checkpoint here (compressed-tensors, a scale for each channel), or a machine with AVX-512 or a GPU",
    ),
    Rule(
        VLLM, frozenset({Scheme.W8A8_INT8}), CPUS,
        "vLLM's 8-bit integer kernel on a CPU keeps no weight that an adapter could be put on: with LoRA the engine "
        "fails as it starts",
        "use an FP8 checkpoint (compressed-tensors, a scale for each channel)",
    ),
    Rule(
        VLLM, frozenset({Scheme.ONLINE_FP8, Scheme.FP8_TENSOR}), CPUS,
        "vLLM's CPU build lacks the operator that scales a whole tensor to FP8 (static_scaled_fp8_quant)",
        'set quantization to "fp8_per_channel", or use a checkpoint with a scale for each channel',
    ),
    Rule(
        VLLM, frozenset({Scheme.ONLINE_FP8_BLOCK, Scheme.FP8_BLOCK}), CPUS - {MachineKind.CPU_AMX},
        "vLLM's kernels for FP8 in blocks need AMX or a GPU",
        "use an FP8 checkpoint with a scale for each channel (compressed-tensors)",
    ),
    Rule(
        VLLM, frozenset({Scheme.ONLINE_INT8}), CPUS,
        "it quantizes experts only: a dense model would be served unquantized under that name",
        'leave quantization at "auto", or use an FP8 checkpoint',
    ),
    Rule(
        VLLM, frozenset({Scheme.BITSANDBYTES, Scheme.GGUF}), CPUS,
        "vLLM 0.32, which Tandem drives on CPUs, no longer has it, and no plugin but Tandem's own is loaded",
        "use the unquantized checkpoint, or an FP8 copy of it",
    ),
    Rule(
        SGLANG, ANY_SCHEME, CPUS,
        "SGLang's wheels hold CUDA kernels only",
        'set kind to "vllm"',
    ),
    Rule(
        SGLANG, ANY_SCHEME, ANY_MACHINE,
        "SGLang takes transformers' modules for this family: its LoRA layers do not fit them, and its server ends "
        "while it starts",
        'set kind to "vllm"',
        families=frozenset({"internvl"}),
    ),
    Rule(
        frozenset({"remote"}), ANY_SCHEME, ANY_MACHINE,
        "the server is somebody else's, and takes no adapters of ours",
        "merge the adapter into its base and serve the merged model there",
        base_is_served=True,
    ),
)  # fmt: skip


def rule_against(asked: Combination) -> Rule | None:
    """The first row that refuses it; None if it may be tried."""
    return next((rule for rule in RULES if rule.refuses(asked)), None)
