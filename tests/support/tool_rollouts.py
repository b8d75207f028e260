"""Small trainers with tools whose turns are scripted, and the conversation that a rollout should be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from PIL import Image

from tests.support.environments import Gallery, call, scripted_turns
from tests.support.training import picture, settings, user
from vlm_grpo.rollouts.batch import RolloutBatch
from vlm_grpo.trainers.config import VLMGRPOConfig, VLMRLOOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer
from vlm_grpo.trainers.rloo import VLMRLOOTrainer

TRAINERS = {"grpo": (VLMGRPOTrainer, VLMGRPOConfig), "rloo": (VLMRLOOTrainer, VLMRLOOConfig)}
LOOK, READ = call("look", color="red"), call("read", page=3)
SCRIPTS = (
    (LOOK, call("look", color="blue", side=84), "two colors"),
    (READ, "a page"),
    ("nothing at all",),
    (READ, LOOK, "a page and red"),
)


def question_rows(count: int = 2) -> Dataset:
    """Rows with a question of its own length and an image each."""
    return Dataset.from_list(
        [{"prompt": user("what color " * (n + 1)), "image": picture(n), "answer": str(n)} for n in range(count)]
    )


def gallery_trainer(
    kind: str, model: Path, folder: Path, scripts: Any = SCRIPTS, data: Any = None, **options: Any
) -> Any:
    """Return a trainer whose row b says `scripts[b]`, turn by turn, in a Gallery unless options name something else."""
    trainer, config = TRAINERS[kind]
    own = {name: options.pop(name) for name in ("tools", "environment_factory", "reward_funcs") if name in options}
    own.setdefault("environment_factory", None if "tools" in own else Gallery)
    args = config(**settings(folder, **{"max_completion_length": 400, **options}))
    rewards = own.pop("reward_funcs", [])
    made = trainer(str(model), rewards, args, train_dataset=data or question_rows(), **own)
    if scripts:
        scripted_turns(made, scripts)
    return made


def rollout(trainer: Any, count: int = 4) -> dict[str, Any]:
    """Return a rollout of `count` completions of the first row, as TRL's loss takes it."""
    trainer.model.train()
    row = trainer.train_dataset[0]
    return trainer._generate_and_score_completions([dict(row) for _ in range(count)])


def metric(trainer: Any, name: str) -> list[float]:
    """Return what was logged under a name while training."""
    return trainer._metrics["train"][name]


def column(trainer: Any, name: str) -> list[Any]:
    """Return a column of the table of completions: "prompt", "completion" or the name of a reward."""
    return list(trainer._logs[name] if name in ("prompt", "completion") else trainer._logs["rewards"][name])


def policy_mask(output: Mapping[str, Any]) -> torch.Tensor:
    """Return (B, C), 1 at the tokens that the model wrote."""
    return output["completion_mask"] * output["tool_mask"]


def logps_of(trainer: Any, output: Mapping[str, Any]) -> torch.Tensor:
    """Return the (B, C) log-probabilities of a rollout under the policy."""
    with torch.no_grad():
        return trainer.completion_logprobs(RolloutBatch.from_trl_dict(output), trainer.model, chunk=4).logps


def rendered(trainer: Any, turns: list[Any]) -> dict[str, torch.Tensor]:
    """Return a conversation of (role, content) as the processor renders and tokenises it at once."""
    messages, images = [], []
    for role, content in turns:
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        images += [block["image"] for block in blocks if block["type"] == "image"]
        messages.append({"role": role, "content": blocks})
    text = trainer.processing_class.apply_chat_template(messages, tokenize=False)
    return trainer.processing_class(text=[text.rstrip("\n")], images=images or None, return_tensors="pt")


class RecordedPrompts:
    """Keeps the encoded prompts of a rollout, with their images."""

    def __init__(self, trainer: Any) -> None:
        self.prompts: list[Any] = []
        encode = trainer.encoder.encode

        def encode_and_keep(rows: Any) -> Any:
            self.prompts = encode(rows)
            return self.prompts

        trainer.encoder.encode = encode_and_keep

    def first_conversation(self) -> list[Any]:
        """Return row 0 of SCRIPTS, written out by hand."""
        prompt = self.prompts[0]
        system, question = prompt.messages
        filled = [
            {**block, "image": prompt.images[0]} if block["type"] == "image" else block for block in question["content"]
        ]
        first, second, last = SCRIPTS[0]
        return [
            ("system", system["content"]),
            ("user", filled),
            ("assistant", first),
            ("user", _shown("red", 56)),
            ("assistant", second),
            ("user", _shown("blue", 84)),
            ("assistant", last),
        ]


def _shown(color: str, side: int) -> list[dict[str, Any]]:
    """What Gallery's `look` returns, as a turn of the user."""
    return [
        {"type": "text", "text": f"<tool_response>\n{color}: "},
        {"type": "image", "image": Image.new("RGB", (side, side), color)},
        {"type": "text", "text": "\n</tool_response>"},
    ]
