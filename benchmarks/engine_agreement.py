"""How far the log-probabilities of vLLM and of the trainer are apart, for every model family and kind of prompt.

python -m benchmarks.engine_agreement [--families NAME ...]

Each family is a tiny random model whose every parameter was changed after vLLM had loaded it, so that a weight that
does not reach vLLM is seen. It is trained for two steps on one kind of prompt at a time; a step's number is the largest
difference of a sampled token. Needs an environment with vllm (run_scripts/test_vllm.sh installs one) and no GPU: about
a minute and 3 GiB for each family, one process after another, since engines are not freed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).with_suffix(".json")
LARGEST = "sampling/sampling_logp_difference/max"
SETTINGS = {"TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
ENGINE = {"enforce_eager": True, "max_model_len": 2048, "max_num_batched_tokens": 4096, "max_num_seqs": 16}
STEPS = 2
NOISE = 0.1  # standard deviation of the change of the parameters


def rows(kind: str) -> list[dict[str, Any]]:
    """Return two rows of a kind of prompt, with images of different sizes."""
    from tests.support.training import picture, user

    first, second = picture(1), picture(2, 112, 84)
    image, text = {"type": "image"}, {"type": "text", "text": "what color is it "}
    of_kind: dict[str, list[tuple[Any, dict[str, Any]]]] = {
        "text": [("what color is the shape", {}), ("red", {})],
        "one image": [("what color is it", {"images": [first]}), ("red", {"images": [second]})],
        "two images": [("are they alike", {"images": [first, second]}), ("which", {"images": [second, first]})],
        "interleaved": [([text, image, text, image, text], {"images": [first, second]})] * 2,
        "turns": [("look", {"images": [first]}), ("which color?", {"images": [second]})],
        "video": [("what happens", {"videos": [frames(0)]}), ("look", {"videos": [frames(5)]})],
    }
    return [{"prompt": user(content), **media} for content, media in of_kind[kind]]


KINDS = ("text", "one image", "two images", "interleaved", "turns", "video")


def frames(seed: int) -> list[Any]:
    from tests.support.training import picture

    return [picture(seed + number, 56, 56) for number in range(4)]


def measure(family: str) -> dict[str, Any]:
    """Return the largest difference for each kind of prompt, or the reason why there is none."""
    from tests.support.families import save_for_vllm
    from vlm_grpo.envs.tool_parser import HermesToolParser
    from vlm_grpo.rewards.tool_call import ToolCall
    from vlm_grpo.rollouts.engines.table import EngineRun, make_vllm, register_engine

    engines: list[Any] = []

    def make_once(run: EngineRun) -> Any:
        if not engines:
            engines.append(make_vllm(dataclasses.replace(run, options={**ENGINE, **run.options})))
        engines[0].sampling = run.sampling
        return engines[0]

    register_engine("shared_vllm", make_once)
    HermesToolParser.calls = lambda self, text: [ToolCall("look", {"color": "red"})]  # whatever the model writes
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        save_for_vllm(family, model)
        measured = {}
        for kind in KINDS:
            try:
                measured[kind] = largest(train(model, Path(folder) / kind, rows(kind), kind))
            except Exception as error:
                traceback.print_exc()
                measured[kind] = f"{type(error).__name__}: {error}"
        return measured


def largest(run: Any) -> float:
    return max(log[LARGEST] for log in run.state.log_history if LARGEST in log)


def train(model: Path, folder: Path, data: list[dict[str, Any]], kind: str) -> Any:
    """Train the changed model on the rows, and return the trainer."""
    import torch
    from datasets import Dataset
    from tests.support.environments import Gallery
    from tests.support.training import length_reward, settings
    from vlm_grpo.trainers.config import VLMGRPOConfig
    from vlm_grpo.trainers.grpo import VLMGRPOTrainer

    options = {"rollout_engine": "shared_vllm", "max_steps": STEPS, "learning_rate": 1e-3}
    options |= {"per_device_train_batch_size": 2 * 4}
    parts: dict[str, Any] = {"train_dataset": Dataset.from_list(data)}
    if kind == "turns":
        options |= {"max_turns": 3, "max_completion_length": 300, "tool_format": "hermes"}
        options |= {"generation_kwargs": {"logit_bias": {end_token(model): 4.0}}}
        parts["environment_factory"] = Gallery
    trainer = VLMGRPOTrainer(str(model), length_reward, VLMGRPOConfig(**settings(folder, **options)), **parts)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(NOISE * torch.randn_like(parameter))
    trainer.train()
    if kind == "turns":
        print("TURNS", [log["episodes/turns"] for log in trainer.state.log_history if "episodes/turns" in log])
    return trainer


def end_token(model: Path) -> int:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model).eos_token_id


def main() -> None:
    """Measure families, each in a process of its own, and write the result."""
    from tests.support.families import FAMILIES_TINY

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES_TINY), choices=list(FAMILIES_TINY))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        os.environ.update(SETTINGS)
        print("RESULT " + json.dumps(measure(args.one)))
        return


if __name__ == "__main__":
    main()
