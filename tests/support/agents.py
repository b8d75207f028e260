"""A model that says what a test wants, and the evaluation of agents with it.

python -m tests.support.agents STOP [flags of vlm-grpo evaluate]
Of several processes the last one kills itself when it has kept STOP rows; 0 is never.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from vlm_grpo.envs.tool_parser import make_tool_call_str

Say = Callable[[str, int], str]


class Speaker(torch.nn.Module):
    """Says `say(prompt, turn)` in each turn, counted from 0, and ends it; keeps what it was given.

    It goes through all that a real model does but its weights: encoder, padding, `generate`, decoding.
    """

    def __init__(self, tokenizer: Any, say: Say) -> None:
        super().__init__()
        self.tokenizer, self.say = tokenizer, say
        self.device = torch.device("cpu")
        self.generation_config = SimpleNamespace(eos_token_id=tokenizer.eos_token_id)
        self.config = SimpleNamespace(model_type="qwen2_5_vl")
        self.given: list[dict[str, Any]] = []

    def generate(self, input_ids: Tensor, generation_config: GenerationConfig, **given: Any) -> Tensor:
        """The prompts (B, P) with a turn each."""
        max_new_tokens, pad_token_id = generation_config.max_new_tokens, generation_config.pad_token_id
        sizes = {"width": input_ids.size(1), "most": max_new_tokens}
        self.given.append({"prompts": self.tokenizer.batch_decode(input_ids), **sizes, **given})
        said = [self._turn(prompt)[:max_new_tokens] for prompt in self.given[-1]["prompts"]]
        longest = max(map(len, said))
        padded = [ids + [pad_token_id] * (longest - len(ids)) for ids in said]
        return torch.cat([input_ids, torch.tensor(padded)], dim=1)

    def _turn(self, prompt: str) -> list[int]:
        text = self.say(prompt, prompt.count("<|im_start|>assistant") - 1)
        return [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]


def pick_by_name(prompt: str, turn: int) -> str:
    """Picks red things rightly when 1 is right, calls a tool that is not there for green ones, else says something."""
    asked = re.search(r"Which image shows: (\w+)", prompt)[1]
    if asked == "green" and turn == 0:
        return make_tool_call_str("point_at", {"index": 1})
    return (
        make_tool_call_str("pick_image", {"index": 1 if asked == "red" else 2}) if asked != "blue" else "the blue one"
    )


def speak(say: Say) -> None:
    """Let `vlm-grpo evaluate` load the processor of its model, but a Speaker instead of the weights."""
    from transformers import AutoProcessor

    from vlm_grpo.cli import evaluate

    def load_model(options: Any, device: Any) -> tuple[Any, Any]:
        processor = AutoProcessor.from_pretrained(options.model_name_or_path)
        return Speaker(processor.tokenizer, say), processor

    evaluate.load_model = load_model


def stop_after(rows: int) -> None:
    """Let the last process kill itself when it has kept so many rows."""
    from vlm_grpo.evaluation import prediction_cache

    append = prediction_cache.PredictionWriter.__call__
    last = int(os.environ.get("WORLD_SIZE", 1)) - 1

    def stop(self: Any, predictions: Any) -> None:
        append(self, predictions)
        if self.path.name.endswith(f"-{last}.jsonl") and self.path.read_bytes().count(b"\n") >= rows:
            os.kill(os.getpid(), 9)

    prediction_cache.PredictionWriter.__call__ = stop


if __name__ == "__main__":
    from vlm_grpo.cli.evaluate import main

    speak(pick_by_name)
    if int(sys.argv[1]):
        stop_after(int(sys.argv[1]))
    sys.exit(main(sys.argv[2:]))
