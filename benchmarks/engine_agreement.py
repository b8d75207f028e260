"""How far the log-probabilities of vLLM and of the trainer are apart, for every model family and kind of prompt.

python -m benchmarks.engine_agreement [--families NAME ...]    # writes engine_agreement.json
python docs/gen_engines.py                                     # writes the table in docs/engines.md from it

Each family is a tiny random model in float32. All of its parameters are changed after vLLM has loaded it, so that a
weight that does not reach vLLM is seen. It is trained for two steps on one kind of prompt at a time, and the number is
the largest difference of a sampled token. Needs no GPU, but an environment with vllm (run_scripts/test_vllm.sh installs
one): about a minute and 2 GiB for each family, one process after another, since engines are not freed.
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
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

ROOT = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).with_suffix(".json")
KINDS = ("text", "one image", "two images", "interleaved", "several turns")
LARGEST = "sampling/sampling_logp_difference/max"
VARIABLES = {"TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": "src"}
ENGINE = {"enforce_eager": True, "max_model_len": 2048, "max_num_batched_tokens": 4096, "max_num_seqs": 16}
NOISE = 0.1  # standard deviation of the change of the parameters
TURNS = 3
FAMILIES = (  # tiny models of tests/support/families.py, without those that differ in their chat template alone
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5_think", "qwen3_5_moe", "qwen3_omni", "internvl"),
    *("glm4v", "glm4v_moe", "glm46v", "gemma3", "gemma4", "smolvlm", "smolvlm2", "idefics3", "mistral3", "llava_clip"),
    *("llava_siglip", "llava_dinov2", "llava_next", "llava_onevision", "lfm2_vl", "paligemma", "minicpmv4_6"),
    *("minicpmv4_7", "kimi_k25", "ovis2", "deepseek_vl", "deepseek_vl_hybrid"),
)


def rows(kind: str) -> list[dict[str, Any]]:
    """Return two rows of a kind of prompt, with images of different sizes."""
    from tests.support.training import picture, user

    first, second = picture(1), picture(2, 112, 84)
    image, text = {"type": "image"}, {"type": "text", "text": "what color is it "}
    of_kind: dict[str, list[tuple[Any, list[Any]]]] = {
        "text": [("what color is the shape", []), ("red", [])],
        "one image": [("what color is it", [first]), ("red", [second])],
        "two images": [("are they alike", [first, second]), ("which", [second, first])],
        "interleaved": [([text, image, text, image, text], [first, second])] * 2,
        "several turns": [("look", [first]), ("which color?", [second])],
    }
    return [{"prompt": user(content), "images": images} for content, images in of_kind[kind]]


def measure(family: str) -> dict[str, Any]:
    """Return the largest difference for each kind of prompt, or the error in its place."""
    from tests.support.families import save_for_vllm

    share_engine()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        save_for_vllm(family, model)
        results["effect of the image"] = image_effect(model)
        for kind in KINDS:
            try:
                results[kind] = train(model, Path(folder) / kind, kind)
            except Exception as error:  # of any library: it is the result
                traceback.print_exc()
                results[kind] = f"{type(error).__name__}: {error}"[:300]
    return results


def share_engine() -> None:
    """Let the engine `shared_vllm` be one vLLM for all trainings of this process."""
    from vlm_grpo.rollouts.engines.engine import RolloutEngine
    from vlm_grpo.rollouts.engines.table import EngineRun, make_vllm, register_engine

    engines: list[Any] = []

    def make_once(run: EngineRun) -> RolloutEngine:
        if not engines:
            try:
                engines.append(make_vllm(dataclasses.replace(run, options={**ENGINE, **run.options})))
            except Exception as error:
                engines.append(error)  # the next kind of prompt would find the same
                raise
        if isinstance(engines[0], Exception):
            raise engines[0]
        engines[0].sampling = run.sampling
        return cast("RolloutEngine", engines[0])

    register_engine("shared_vllm", make_once)


def train(folder: Path, output: Path, kind: str) -> float:
    """Return the largest difference while the changed model is trained on a kind of prompt."""
    from datasets import Dataset

    from tests.support.training import length_reward, settings
    from vlm_grpo.trainers.config import VLMGRPOConfig
    from vlm_grpo.trainers.grpo import VLMGRPOTrainer

    options, parts = episodes(folder) if kind == "several turns" else ({}, {})
    options |= {"rollout_engine": "shared_vllm", "per_device_train_batch_size": 8}
    data = Dataset.from_list(rows(kind))
    args = VLMGRPOConfig(**settings(output, **options))
    trainer = VLMGRPOTrainer(str(folder), length_reward, args, train_dataset=data, **parts)
    change(trainer.model)
    trainer.train()
    logs = [log for log in trainer.state.log_history if LARGEST in log]
    if kind == "several turns" and any(log["episodes/turns"] != TURNS for log in logs):
        raise RuntimeError(f"episodes of {[log['episodes/turns'] for log in logs]} turns, not of {TURNS}")
    return max(log[LARGEST] for log in logs)


def episodes(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options of a training in which every turn of the model is answered with an image."""
    from transformers import AutoTokenizer

    from tests.support.environments import Gallery
    from vlm_grpo.envs.tool_parser import HermesToolParser
    from vlm_grpo.rewards.tool_call import ToolCall

    look = [ToolCall("look", {"color": "red"})]
    setattr(HermesToolParser, "calls", lambda self, text: look)  # noqa: B010 - random text counts as a call
    end = AutoTokenizer.from_pretrained(folder).eos_token_id
    options = {
        "max_turns": TURNS,
        "max_completion_length": 400,
        "tool_format": "hermes",
        "generation_kwargs": {"logit_bias": {end: 4.0}},  # ends turns early; raw log-probabilities do not know it
    }
    return options, {"environment_factory": Gallery}


def change(model: Any) -> None:
    """Change every parameter, the same way every time."""
    import torch

    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(NOISE * torch.randn(parameter.shape, generator=generator))


def image_effect(folder: Path) -> float:
    """Return the largest change of the next token's log-probability when another image is shown."""
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    from tests.support.training import picture, user

    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    change(model)
    outputs = []
    for number in range(2):
        content = [{"type": "image", "image": picture(number)}, {"type": "text", "text": "what color is it"}]
        inputs = processor.apply_chat_template(
            [user(content)], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
        )
        inputs.pop("labels", None)
        with torch.no_grad():
            outputs.append(model(**inputs).logits[0, -1].log_softmax(-1))
    return (outputs[0] - outputs[1]).abs().max().item()


def measure_apart(family: str) -> dict[str, Any]:
    """Return what `measure` returns in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "result.json"
        command = [sys.executable, "-m", "benchmarks.engine_agreement", "--one", family, str(output)]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **VARIABLES})
        if not output.exists():
            return dict.fromkeys(KINDS, f"the process ended with status {done.returncode}")
        return cast("dict[str, Any]", json.loads(output.read_text(encoding="utf-8")))


def main() -> None:
    """Measure families, each in a process of its own, and add them to the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=FAMILIES, choices=FAMILIES)
    parser.add_argument("--one", nargs=2, metavar=("FAMILY", "OUTPUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        Path(args.one[1]).write_text(json.dumps(measure(args.one[0])), encoding="utf-8")
        return
    for family in args.families:
        result = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {"families": {}}
        result["families"][family] = measure_apart(family)
        result["versions"] = {name: version(name) for name in ("vllm-cpu", "transformers", "trl", "torch")}
        RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        print(family, result["families"][family], flush=True)


if __name__ == "__main__":
    main()
