"""Small real trainings: a tiny Qwen2.5-VL, images of different sizes, a reward that differs within a group."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from PIL import Image

from vlm_grpo.rollouts.engines.engine import Generation
from vlm_grpo.rollouts.logged_rollout import LoggedRollout

WORDS = "what color is the shape "


def picture(seed: int, width: int = 84, height: int = 56) -> Image.Image:
    """A picture of random pixels."""
    return Image.fromarray(np.random.RandomState(seed).randint(0, 255, (height, width, 3), dtype=np.uint8))


def user(content: Any) -> list[dict[str, Any]]:
    """A conversation of one user turn."""
    return [{"role": "user", "content": content}]


def image_rows(count: int = 4) -> Dataset:
    """Image-only rows in TRL's form; prompts and images differ in length and size."""
    rows = [
        {
            "prompt": user(WORDS * (index + 1)),
            "image": picture(index, height=56 + 28 * (index % 3)),
            "answer": str(index),
        }
        for index in range(count)
    ]
    return Dataset.from_list(rows)


def length_reward(completions: list, **columns: Any) -> list[float]:
    """A reward that varies within every group without depending on what is right."""
    return [float(len(completion[0]["content"]) % 7) / 7 for completion in completions]


def settings(folder: Path, **options: Any) -> dict[str, Any]:
    """Training arguments of a quick, silent, deterministic run on the CPU."""
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 8,
        "max_steps": 2,
        "logging_steps": 1,
        "report_to": "none",
        "bf16": False,
        "learning_rate": 1e-3,
        "use_cpu": True,
        "save_strategy": "no",
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        **options,
    }


def differences(first: Any, second: Any) -> dict[str, float]:
    """Largest relative difference of logged numbers and absolute difference of weights between two trained runs."""
    logs = 0.0
    for one, other in zip(first.state.log_history, second.state.log_history, strict=True):
        for name, value in one.items():
            if isinstance(value, float) and not any(word in name for word in ("time", "runtime", "per_second")):
                logs = max(logs, abs(value - other[name]) / (1 + abs(value)))
    pairs = zip(first.model.state_dict().values(), second.model.state_dict().values(), strict=True)
    return {"logs": logs, "weights": max((a - b).abs().max().item() for a, b in pairs)}


def scripted_completions(trainer: Any, texts: Sequence[str]) -> Any:
    """Let the trainer's engine complete row b of every call with text b, and return the trainer."""
    words = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    ids = [[*words(text, add_special_tokens=False)["input_ids"], words.eos_token_id] for text in texts]

    def generate(prompts: Sequence[Any], **options: Any) -> Generation:
        return Generation([ids[row % len(ids)] for row in range(len(prompts))])

    trainer.engine.generate = generate
    return trainer


def rewards_of(trainer: Any, texts: Sequence[str]) -> Mapping[str, Sequence[float]]:
    """Return the rewards of these completions of the first prompt, by reward; a step is trained on them."""
    rollouts: list[LoggedRollout] = []
    trainer.watch_rollout = rollouts.append
    scripted_completions(trainer, texts).train()
    return rollouts[0].rewards
