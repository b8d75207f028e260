"""Output of `--dry_run`: two rendered prompts and the resolved configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from vlm_grpo.cli.args import ScriptArguments
from vlm_grpo.cli.env_args import opening_row
from vlm_grpo.cli.preview import gold_rewards, reward_text
from vlm_grpo.cli.templates import Prompting, gold_turn, prompt_end
from vlm_grpo.cli.train_args import UsageError
from vlm_grpo.records import Block, Row
from vlm_grpo.redact import redact
from vlm_grpo.rewards import is_reward_model
from vlm_grpo.rewards.accuracy import JUDGE_METHODS, describe_method
from vlm_grpo.rewards.adapter import split_spec

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import ModelConfig

    from vlm_grpo.trainers.config import VLMGRPOConfig


def print_dry_run(
    script: ScriptArguments,
    training: VLMGRPOConfig,
    model: ModelConfig,
    dataset: Dataset,
    specs: Sequence[str],
    prompting: Prompting | UsageError | None,
) -> None:
    """Print two prompts with their endings, the rewards of the gold answer, and the resolved configuration.

    `specs` are the rewards. `prompting` is the error if the processor could not be loaded.
    """
    if isinstance(prompting, UsageError):
        print(f"the prompts in the model's chat template are not shown: {prompting}")
    for number, row in enumerate(islice(dataset, 2), 1):
        row = opening_row(script, row)
        print(f"--- prompt {number} ({row['where']})")
        for message in row["prompt"]:
            print(f"[{message['role']}] {_plain(message['content'])}")
        images = [ref.source if isinstance(ref.source, str) else "bytes" for ref in row.get("images", [])]
        print(f"images: {images}")
        print(f"answer: {row.get('answer')}")
        if "record" in row and any(split_spec(spec)[0] == "accuracy" for spec in specs):
            print(f"the reward accuracy is {describe_method(row['record'])}")
        if isinstance(prompting, Prompting):
            _show_end(row, prompting, _scored(script, row, specs), training.reward_options())
    print("--- configuration")
    resolved = redact({**dataclasses.asdict(script), **dataclasses.asdict(model), **training.to_sanitized_dict()})
    resolved["reward_funcs"] = list(specs)
    resolved["rows"] = len(dataset) if hasattr(dataset, "__len__") else "streamed"
    print("\n".join(f"{name}: {value}" for name, value in sorted(resolved.items()) if value is not None))


def _scored(script: ScriptArguments, row: Row, specs: Sequence[str]) -> list[str]:
    """Return the rewards that can be computed for the gold answer now, without user code or a server."""
    record = row.get("record")
    if script.environment or record is None or record.method in JUDGE_METHODS:
        return []
    return [
        spec
        for spec in specs
        if ".py:" not in spec and not is_reward_model(spec) and split_spec(spec)[0] not in JUDGE_METHODS
    ]


def _show_end(row: Row, prompting: Prompting, specs: list[str], options: Mapping[str, object]) -> None:
    """Print the end of the prompt, the gold completion and its rewards."""
    print(f"the prompt ends with:\n{prompt_end(prompting.template.render(row['prompt']))}")
    if not specs:
        return
    gold = gold_turn(row, prompting.template)
    print(f"the gold completion:\n{gold.completion}")
    for name, value in gold_rewards(specs, gold, row, options).items():
        print(f"its reward {name}: {reward_text(value)}")


def _plain(content: str | Sequence[Block]) -> str:
    if isinstance(content, str):
        return content
    return "".join(block.get("text", f"<{block['type']}>") for block in content)
