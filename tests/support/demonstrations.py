"""Small trainers with demonstrations, and what their losses see."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from tests.support.training import image_rows, settings
from vlm_grpo.trainers.config import VLMGRPOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer

NAMES = ("luffy", "srft", "hpt", "chord", "uft")
ANSWERS = (
    "red circle. The answer",
    "blue. It is a square. So",
    "What is this? It is",
    "green",
    None,
    "two. three. four. 5",
)
# Options with which an expert's answers have an effect from the first step on.
ACTIVE = {"chord": {"mu_warmup": 0, "expert_batch": 3}, "hpt": {"correct_above": 0.75}, "uft": {"hint_coef": 0.5}}
LIMIT = 32


def rows(count: int = 8) -> Dataset:
    """Image rows of which the fifth has no answer, and the others one or two."""
    answers = [None if (text := ANSWERS[n % 6]) is None else [text, text + " 7"][: 1 + n % 2] for n in range(count)]
    return image_rows(count).add_column("expert", answers)


def by_text(completions: list, **columns: Any) -> list[float]:
    return [(sum(map(ord, completion[0]["content"])) % 11) / 10 for completion in completions]


def build(
    name: str, model: Path, folder: Path, *, data: Any = None, adapter: Any = None, shown: Any = None, **options: Any
) -> Any:
    chosen = settings(folder, per_device_train_batch_size=8, max_steps=1, max_completion_length=LIMIT)
    chosen |= {"algorithm_options": ACTIVE.get(name), **options}
    args = VLMGRPOConfig.of(name, chosen.pop("output_dir"), **chosen)
    data = rows() if data is None else data
    return VLMGRPOTrainer(str(model), by_text, args, train_dataset=data, peft_config=adapter, demonstrations=shown)


def trained(*args: Any, **options: Any) -> Any:
    made = build(*args, **options)
    made.train()
    return made


def losses_of(trainer: Any) -> list[dict[str, Any]]:
    """Train, and give what the losses saw."""
    seen: list[dict[str, Any]] = []
    compute = trainer._compute_loss
    trainer._compute_loss = lambda model, inputs: (seen.append(inputs), compute(model, inputs))[1]
    trainer.train()
    return seen


def row_of(sample: Any) -> int:
    """Which of `image_rows` a prompt is: each repeats its question of five words once more."""
    return len(sample.messages[0]["content"][-1]["text"].split()) // 5 - 1


def texts_of(trainer: Any, inputs: dict[str, Any]) -> list[str]:
    pairs = zip(inputs["completion_ids"].tolist(), inputs["completion_mask"].sum(dim=1).tolist(), strict=True)
    return [trainer._tokenizer.decode(ids[:count]) for ids, count in pairs]


def nll_of(model: Any, processor: Any, row: dict[str, Any], answer: str) -> list[float]:
    """Of each token of an answer to a row, by the processor and the model as transformers have them."""
    content, images = row["prompt"][0]["content"], [row["image"]] if "image" in row else None
    asked = content if images is None else [{"type": "image", "image": images[0]}, {"type": "text", "text": content}]
    prompt = processor.apply_chat_template([{"role": "user", "content": asked}], add_generation_prompt=True)
    inputs = processor(text=[prompt + answer], images=images, return_tensors="pt")
    count = len(processor.tokenizer(answer)["input_ids"])
    with torch.no_grad():
        logits = model(**inputs).logits[0, -count - 1 : -1]
    return (-logits.log_softmax(dim=-1)[torch.arange(count), inputs["input_ids"][0, -count:]]).tolist()
