"""The model card: README.md beside a trained model, with its training, its results and how to use it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

NAME = "README.md"
NUM_LOG_LINES = 10  # log lines at each end of a training, of which means are shown
QUESTION = "What is in the image?"
SNIPPET = """\
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

path = "{path}"  # the folder of this file, or its name on the Hub
processor = AutoProcessor.from_pretrained(path)
model = AutoModelForImageTextToText.from_pretrained(path, device_map="auto")

image = Image.open("image.png").convert("RGB")
question = {question}
messages = [{messages}]
inputs = processor.apply_chat_template(
    messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"{options}
).to(model.device)
output = model.generate(**inputs, max_new_tokens={tokens}, do_sample=False)
print(processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0])
"""
TEXT_QUESTION = "How many legs have three cats?"
TEXT_SNIPPET = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

path = "{path}"  # the folder of this file, or its name on the Hub
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForCausalLM.from_pretrained(path, device_map="auto")

question = {question}
messages = [{messages}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"{options}
).to(model.device)
output = model.generate(**inputs, max_new_tokens={tokens}, do_sample=False)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
"""
TEXT_SYSTEM = '{{"role": "system", "content": {system}}}, '
TEXT_USER = '{"role": "user", "content": question}'
SYSTEM = '{{"role": "system", "content": [{{"type": "text", "text": {system}}}]}}, '
USER = '{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}'


@dataclass(frozen=True)
class CardFacts:
    """Facts about a run that the command line knows and the trainer does not.

    `question` is QUESTION as the task asks it, `command` is without secrets.
    """

    task: str | None = None
    data: Sequence[str] = ()
    command: Sequence[str] = ()
    question: str = QUESTION
    system: str | None = None


@dataclass(frozen=True)
class Card:
    """The contents of a model card.

    Args:
        path: of the model's folder, as the snippet loads it.
        base_model: its name on the Hub, or a folder.
        trainer: such as GRPO.
        method: of the algorithm, in a line, with its paper.
        rewards: their weights.
        settings: further training settings.
        logs: log lines of the Trainer.
        evaluated: metrics of the newest evaluation, with intervals.
        place: step, and steps in all.
        sees_images: whether it is a vision-language model.
    """

    path: str
    base_model: str
    trainer: str
    method: str
    rewards: Mapping[str, float]
    settings: Mapping[str, Any]
    logs: Sequence[Mapping[str, Any]]
    place: tuple[int, int]
    evaluated: Mapping[str, Any] = field(default_factory=dict)
    template_options: Mapping[str, object] = field(default_factory=dict)
    tokens: int = 256
    is_adapter: bool = False
    sees_images: bool = True
    tags: Sequence[str] = ()
    facts: CardFacts = field(default_factory=CardFacts)

    def text(self) -> str:
        """Return the card: YAML front matter, then Markdown."""
        front = yaml.safe_dump(self._front_matter(), sort_keys=False, allow_unicode=True)
        parts = [f"---\n{front}---\n", f"# {Path(self.path).name}\n", self._summary(), self._use(), self._training()]
        return "\n".join([*parts, self._results(), self._reproduction()])

    def _front_matter(self) -> dict[str, Any]:
        is_on_hub = not Path(self.base_model).exists() and self.base_model.count("/") <= 1
        datasets = [name for name in self.facts.data if not Path(name).suffix and name.count("/") == 1]
        return {
            "library_name": "peft" if self.is_adapter else "transformers",
            "pipeline_tag": "image-text-to-text" if self.sees_images else "text-generation",
            **({"base_model": self.base_model} if is_on_hub and self.base_model else {}),
            **({"datasets": [name.split("@")[0] for name in datasets]} if datasets else {}),
            "tags": sorted({"vlm_grpo", "reinforcement-learning", *self.tags}),
        }

    def _summary(self) -> str:
        folder = Path(self.base_model)
        base = f"the folder `{folder.name}`" if folder.exists() else f"[{folder}](https://huggingface.co/{folder})"
        base = base if self.base_model else "a model that was made in Python"
        kind = f"{'vision-' if self.sees_images else ''}language model"
        kind = f"An adapter of a {kind}" if self.is_adapter else f"A {kind}"
        task = f" on the task `{self.facts.task}`" if self.facts.task else ""
        step, steps = self.place
        state = "after all" if step >= steps else "not finished: after"
        return (
            f"{kind}, trained by reinforcement learning with {self.trainer}{task}, from {base}; {state} {step} of "
            f"{steps} steps. {self.method}\n"
        )

    def _use(self) -> str:
        system, question = self.facts.system, self.facts.question
        code, turn, user = (SNIPPET, SYSTEM, USER) if self.sees_images else (TEXT_SNIPPET, TEXT_SYSTEM, TEXT_USER)
        if not self.sees_images and question == QUESTION:
            question = TEXT_QUESTION
        code = code.format(
            path=self.path,
            question=json.dumps(question, ensure_ascii=False),
            messages=(turn.format(system=json.dumps(system, ensure_ascii=False)) if system else "") + user,
            options="".join(f", {name}={value!r}" for name, value in self.template_options.items()),
            tokens=self.tokens,
        )
        return f"## Use\n\n```python\n{code}```\n"

    def _training(self) -> str:
        rows = {
            "task": self.facts.task,
            "data": ", ".join(Path(name).name if Path(name).exists() else name for name in self.facts.data),
            "rewards": ", ".join(f"{name} (weight {weight:g})" for name, weight in self.rewards.items()),
            **self.settings,
        }
        nonempty_rows = [(name, value) for name, value in rows.items() if value not in (None, "", False)]
        return "## Training\n\n" + _table(("setting", "value"), nonempty_rows)

    def _results(self) -> str:
        text = "## Results\n\n"
        if self.evaluated:
            metrics = [(name, str(metric)) for name, metric in self.evaluated.items() if metric.count]
            count = max((metric.count for metric in self.evaluated.values()), default=0)
            text += f"Greedy answers to {count} held-out rows, with 95 % intervals:\n\n"
            text += _table(("metric", "value"), metrics) + "\n"
        lines = [line for line in self.logs if "reward" in line]
        if not lines:
            return text + "Nothing was logged of the training's rewards.\n"
        names = [name for name in lines[-1] if name == "reward" or (name[:8] == "rewards/" and name[-5:] == "/mean")]
        rows: list[tuple[str, ...]] = [
            (name, *(f"{_mean(part, name):.3f}" for part in (lines[:NUM_LOG_LINES], lines[-NUM_LOG_LINES:])))
            for name in names
        ]
        head = ("mean of sampled completions", "first log lines", "last log lines")
        return (
            text + f"While training, over {len(lines[:NUM_LOG_LINES])} log lines at each end:\n\n" + _table(head, rows)
        )

    def _reproduction(self) -> str:
        if not self.facts.command:
            return ""
        words = " \\\n  ".join(_by_flag([shlex.quote(word) for word in self.facts.command]))
        return (
            f"## Command\n\n```bash\nvlm-grpo train \\\n  {words}\n```\n\n`run.json` has versions and all settings.\n"
        )


def _mean(lines: Sequence[Mapping[str, Any]], name: str) -> float:
    values = [line[name] for line in lines if isinstance(line.get(name), int | float)]
    return sum(values) / len(values) if values else float("nan")


def _by_flag(words: Sequence[str]) -> list[str]:
    """Return lines of one flag and its values."""
    lines: list[str] = []
    for word in words:
        if word.startswith("--") or not lines:
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return lines


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def settings_of(args: Any, processes: int, adapter: Any = None) -> dict[str, Any]:
    """Return the most important settings.

    Args:
        args: the training's.
        processes: how many trained together.
        adapter: its configuration, if one was trained.
    """
    batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * processes
    frozen = [*(["vision tower"] if getattr(args, "freeze_vision_modules", False) else [])]
    frozen += getattr(args, "frozen_parts", list)()
    return {
        "algorithm": getattr(args, "algorithm", None),
        "completions a prompt": args.num_generations,
        "completions a step": batch,
        "longest completion": f"{args.max_completion_length} tokens",
        "temperature": args.temperature,
        "learning rate": f"{args.learning_rate:g}, {getattr(args.lr_scheduler_type, 'value', args.lr_scheduler_type)}",
        "KL coefficient (beta)": args.beta,
        "adapter": adapter and f"{adapter.peft_type.value} of rank {getattr(adapter, 'r', None)}",
        "not trained": ", ".join(frozen),
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
        "processes": processes,
        "seed": args.seed,
    }
