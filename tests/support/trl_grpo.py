"""GRPO by TRL's own trainer, as a program: one LoRA adapter on a vision-language model, and a line for each step.

On a CPU transformers generates; on a GPU vLLM does, in the same process and on the same card. What the rest of the
benchmark decides comes as arguments; what TRL decides otherwise than its defaults is here, each with its reason.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from engines.profiles import profile_of
from learners import quiet
from rollout.rewards.text import normalise

if TYPE_CHECKING:
    from datasets import Dataset
    from peft import LoraConfig
    from trl import GRPOConfig

NEVER = -100.0
"""The least bias that vLLM takes for a token."""


def main() -> int:
    arguments = parse_arguments()
    is_cuda = arguments.device == "cuda"
    quiet.prepare(os.cpu_count() or 1)  # all that the machine has: nothing else runs beside it
    from transformers import AutoProcessor
    from trl import GRPOTrainer

    processor = AutoProcessor.from_pretrained(arguments.model, local_files_only=True, padding_side="left")
    vocabulary = processor.tokenizer.get_vocab()
    family = profile_of(arguments.model)
    forbidden = [vocabulary[token] for token in family.vision_tokens if token in vocabulary]
    trainer = GRPOTrainer(
        model=str(arguments.model),
        reward_funcs=exact_match,
        args=settings(arguments, never_sampled(forbidden, is_cuda), is_cuda),
        train_dataset=dataset(arguments.data),
        processing_class=processor,
        peft_config=adapter(arguments, family.peft_targets),
        callbacks=[curve_writer(arguments.out)],
    )
    trainer.train()
    return 0


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="rows with image, text and answer, in their order")
    parser.add_argument("--out", type=Path, required=True, help="the file of lines, one a step")
    parser.add_argument("--device", choices=("cpu", "cuda"), required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--prompts-per-step", type=int, required=True)
    parser.add_argument("--group-size", type=int, required=True)
    parser.add_argument("--max-new-tokens", type=int, required=True)
    parser.add_argument("--max-model-len", type=int, required=True)
    parser.add_argument("--gpu-memory", type=float, required=True, help="vLLM's share of the card")
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--alpha", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    return parser.parse_args()


def settings(arguments: argparse.Namespace, generation: Mapping[str, Any], is_cuda: bool) -> GRPOConfig:
    from trl import GRPOConfig

    vllm = {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": arguments.gpu_memory,
        "vllm_max_model_length": arguments.max_model_len,
        # It costs another forward pass; both sides of the ratio are of one model in one number format here.
        "vllm_importance_sampling_correction": False,
    }
    return GRPOConfig(
        output_dir=str(arguments.out.parent / "trl"),
        max_steps=arguments.steps,
        per_device_train_batch_size=arguments.prompts_per_step * arguments.group_size,
        gradient_accumulation_steps=1,
        num_generations=arguments.group_size,
        max_completion_length=arguments.max_new_tokens,
        temperature=1.0,
        learning_rate=arguments.learning_rate,
        lr_scheduler_type="constant",
        loss_type="grpo",
        beta=0.0,
        seed=arguments.seed,
        shuffle_dataset=False,  # the rows come in the order of the other run
        bf16=is_cuda,
        use_cpu=not is_cuda,
        model_init_kwargs={"dtype": "bfloat16" if is_cuda else "float32"},
        gradient_checkpointing=False,  # the batch fits, and it would cost a second forward pass
        generation_kwargs=dict(generation),
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **(vllm if is_cuda else {}),
    )


def never_sampled(forbidden: Sequence[int], is_cuda: bool) -> dict[str, Any]:
    """How each generator is told; a placeholder that is sampled stands for an image that is not there."""
    if is_cuda:
        return {"logit_bias": dict.fromkeys(forbidden, NEVER)}
    return {"suppress_tokens": list(forbidden)}


def adapter(arguments: argparse.Namespace, target_modules: Sequence[str]) -> LoraConfig:
    from peft import LoraConfig

    return LoraConfig(
        r=arguments.rank,
        lora_alpha=arguments.alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules=list(target_modules),
        task_type="CAUSAL_LM",
    )


def dataset(path: Path) -> Dataset:
    from datasets import Dataset, Image

    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    columns = {
        "prompt": [[{"role": "user", "content": row["text"]}] for row in rows],
        "image": [row["image"] for row in rows],
        "answer": [row["answer"] for row in rows],
    }
    return Dataset.from_dict(columns).cast_column("image", Image())


def exact_match(completions: list[list[dict[str, str]]], answer: list[str], **_: object) -> list[float]:
    """As the reward of the same name, with its default options."""
    said = (normalise(turns[0]["content"], whitespace=True, ignore_case=False) for turns in completions)
    return [
        float(text == normalise(right, whitespace=True, ignore_case=False))
        for text, right in zip(said, answer, strict=True)
    ]


def curve_writer(out: Path) -> Any:
    """A callback that writes a line at each step's end: its mean reward, and the seconds since training began."""
    from transformers import TrainerCallback

    class CurveWriter(TrainerCallback):
        began_s = 0.0

        def on_train_begin(self, *_: object, **__: object) -> None:
            self.began_s = time.monotonic()

        def on_log(self, *_: object, logs: Mapping[str, float], **__: object) -> None:
            if "reward" in logs:  # the last line of a run is a summary without it
                line = {"at_s": time.monotonic() - self.began_s, "reward": logs["reward"]}
                with out.open("a") as file:
                    file.write(json.dumps(line) + "\n")

    return CurveWriter()


if __name__ == "__main__":
    raise SystemExit(main())
