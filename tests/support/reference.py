"""What transformers itself says, in float32: the yardstick of every engine. Heavy: import it inside tests only."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from prompts import MAX_TOKENS, Prompt
from transformers import AutoModelForImageTextToText, AutoProcessor, BatchFeature


class Reference:
    """A model directory, with an adapter merged into it by PEFT if one is given."""

    def __init__(self, model: Path, adapter: Path | None = None) -> None:
        self._model = AutoModelForImageTextToText.from_pretrained(model, dtype=torch.float32).eval()
        if adapter is not None:
            from peft import PeftModel

            self._model = PeftModel.from_pretrained(self._model, adapter).merge_and_unload().eval()
        self._processor = AutoProcessor.from_pretrained(model)

    def prompt_ids(self, prompt: Prompt) -> tuple[int, ...]:
        return tuple(self._encode(prompt)["input_ids"][0].tolist())

    @torch.inference_mode()
    def generate(self, prompt: Prompt) -> tuple[int, ...]:
        """The greedy answer's tokens, the end of the turn included."""
        inputs = self._encode(prompt)
        ids = self._model.generate(**inputs, do_sample=False, max_new_tokens=MAX_TOKENS)
        return tuple(ids[0, inputs["input_ids"].shape[1] :].tolist())

    @torch.inference_mode()
    def logprobs(self, prompt: Prompt, token_ids: tuple[int, ...]) -> tuple[float, ...]:
        """Log-probabilities (natural) of `token_ids` as the answer to `prompt`, in one forward pass."""
        inputs = self._encode(prompt)
        answer = torch.tensor([token_ids])
        for name, value in (("input_ids", answer), ("attention_mask", 1), ("mm_token_type_ids", 0)):
            if name in inputs:
                inputs[name] = torch.cat([inputs[name], torch.zeros_like(answer) + value], dim=1)
        logits = self._model(**inputs).logits[0, -len(token_ids) - 1 : -1]
        return tuple(logits.log_softmax(-1).gather(1, answer.T)[:, 0].tolist())

    def _encode(self, prompt: Prompt) -> BatchFeature:
        text = self._processor.apply_chat_template(prompt.messages(), add_generation_prompt=True, tokenize=False)
        images = [Image.open(path).convert("RGB") for path in prompt.images]
        return self._processor(text=[text], images=images or None, return_tensors="pt")
