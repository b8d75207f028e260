"""A real vLLM server, with no vLLM in this process: log-probabilities agree, and a killed server costs nothing.

Runs where the variable VLLM_PYTHON names an interpreter with vLLM.
"""

from __future__ import annotations

import copy
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import nn
from trl.distributed import DistributedBackend

from tests.support.vllm_server import SIZE, START_SECONDS, VARIABLE, VLLMServer, free_port
from vlm_grpo.rollouts.encoder import EncodedPrompt, PromptEncoder
from vlm_grpo.rollouts.engines.engine import Generation
from vlm_grpo.rollouts.engines.policy_weights import PolicyWeights
from vlm_grpo.rollouts.engines.sampling import SamplingSettings
from vlm_grpo.rollouts.engines.shared_prefill import prompt_batch
from vlm_grpo.rollouts.engines.vllm_server import VLLMServerEngine
from vlm_grpo.rollouts.segment import CompletionSegment, as_next_prompt
from vlm_grpo.tiny import build_tiny_qwen

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.skipif(VARIABLE not in os.environ, reason=f"{VARIABLE} names no interpreter with vLLM"),
]
LIMIT = 1e-4
SUPPRESSED = (3, 6, 7)  # vision_start, image_pad, video_pad


class Side:
    """The trainer's side of the comparison: policy, encoder and engine."""

    def __init__(self, folder: Path) -> None:
        self.model, processor = build_tiny_qwen(SIZE)
        self.model.eval()
        self.model.save_pretrained(folder / "model")
        processor.save_pretrained(folder / "model")
        self.encoder = PromptEncoder(processor, {})
        options = ("--enable-lora", "--max-lora-rank", "8")
        self.server = VLLMServer(folder / "model", folder / "log", free_port(), options)
        self.folder = folder
        self.num_runs = 0

    def engine(self, regex: str | None = None, **options: object) -> VLLMServerEngine:
        self.num_runs += 1
        settings = SamplingSettings(12, self.stop_token_ids, SUPPRESSED, regex=regex)
        return VLLMServerEngine(
            [self.server.url],
            encoder=self.encoder,
            settings=settings,
            model=str(self.folder / "model"),
            config=self.model.config,
            folder=self.folder / "weights",
            run_id=f"run{self.num_runs}",
            **{"wait_seconds": START_SECONDS, "request_seconds": 60.0, **options},
        )

    @property
    def stop_token_ids(self) -> list[int]:
        return [self.encoder.tokenizer.eos_token_id]

    def change_weights(self, seed: int) -> None:
        """Move every parameter, those of the vision tower too, as far as a few steps of training would."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter += 0.2 * parameter.std().nan_to_num(0.1) * noise

    def logprobs(self, policy: nn.Module, prompt: EncodedPrompt, completion: list[int]) -> list[float]:
        """Return the policy's log-probabilities of a completion."""
        text = CompletionSegment(completion, {}, {}, [])
        row = as_next_prompt(prompt, text)
        with torch.no_grad():
            logits = policy(**prompt_batch([row], 0)).logits[0].float()
        positions = range(len(prompt.input_ids) - 1, len(row.input_ids) - 1)
        logps = logits.log_softmax(-1)
        return [logps[at, token].item() for at, token in zip(positions, completion, strict=True)]

    def difference(
        self, prompts: Sequence[EncodedPrompt], generation: Generation, policy: nn.Module | None = None
    ) -> float:
        """Return the largest difference between the engine's log-probabilities and the policy's."""
        assert generation.logprobs is not None
        differences = []
        for prompt, ids, logprobs in zip(prompts, generation.ids, generation.logprobs, strict=True):
            own = self.logprobs(policy or self.model, prompt, ids)
            differences += [abs(a - (b or 0.0)) for a, b in zip(own, logprobs, strict=True)]
        return max(differences)


@pytest.fixture(scope="module")
def side(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    side = Side(tmp_path_factory.mktemp("vllm_server"))
    side.server.start()
    try:
        side.server.wait()
        yield side
    finally:
        side.server.kill()


def image(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def row(*images: Image.Image) -> dict[str, object]:
    blocks = [{"type": "image"} for _ in images]
    return {
        "prompt": [{"role": "user", "content": [*blocks, {"type": "text", "text": "Which digit?"}]}],
        "images": images,
    }


def all_prompts(side: Side) -> list[EncodedPrompt]:
    """Return prompts of text, of one image and of two, and of two turns with an image in each."""
    first = image(1, 61, 90)
    text, one, two = side.encoder.encode([row(), row(first), row(image(2, 120, 64), image(3, 47, 133))])
    (later,) = side.encoder.encode([row(image(4, 90, 45))])
    completion = [20, 21, 22, *side.stop_token_ids]
    types = {name: [0] * len(completion) + values for name, values in later.per_token.items()}
    turn = CompletionSegment(completion + later.input_ids, types, later.visual, later.refs)
    return [text, one, two, as_next_prompt(one, turn)]


def test_an_adapter_alone_agrees(side: Side):
    """With images too, where it is in the language model. Comes first: the server has the weights of its model."""
    targets = r".*language_model.*(q_proj|v_proj|down_proj)"
    policy = get_peft_model(copy.deepcopy(side.model), LoraConfig(r=4, lora_alpha=16, target_modules=targets)).eval()
    engine, prompts, backend = side.engine(transfer="adapter"), all_prompts(side), DistributedBackend(Accelerator())
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in policy.named_parameters():
                if "lora_" in name:
                    parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        engine.update_weights(PolicyWeights(policy, backend))
        generation = engine.generate(prompts)
        assert side.difference(prompts, generation, policy) < LIMIT
    with policy.disable_adapter():
        assert side.difference(prompts, generation, policy) > 100 * LIMIT


def test_logprobs_agree_after_each_update(side: Side):
    """Four completions of each prompt; the tower changes too, and images that were seen before are computed anew."""
    engine, prompts = side.engine(), [prompt for prompt in all_prompts(side) for _ in range(4)]
    for update in range(3):
        side.change_weights(update)
        engine.update_weights(side.model.named_parameters())
        generation = engine.generate(prompts)
        assert side.difference(prompts, generation) < LIMIT
    lengths = {len(ids) for ids in generation.ids}
    assert all(len(ids) == 12 or ids[-1] in side.stop_token_ids for ids in generation.ids), lengths


def test_a_missing_update_is_seen(side: Side):
    """The control: without an update the two sides differ, in text and in images."""
    engine, prompts = side.engine(), all_prompts(side)
    engine.update_weights(side.model.named_parameters())
    assert side.difference(prompts, engine.generate(prompts)) < LIMIT
    side.change_weights(10)
    assert side.difference(prompts[:1], engine.generate(prompts[:1])) > 0.01
    engine.update_weights(side.model.named_parameters())
    tower = [value for name, value in side.model.named_parameters() if ".visual." in name]
    with torch.no_grad():
        for parameter in tower:
            parameter *= 1.5
    assert side.difference(prompts[1:2], engine.generate(prompts[1:2])) > 100 * LIMIT


def test_a_killed_server_costs_nothing(side: Side):
    """Killed in the middle and started again, the server has the weights of its folder: they are loaded once more."""
    engine = side.engine(concurrency=2)
    prompts = side.encoder.encode([row(image(seed, 60, 60)) for seed in range(100)])
    engine.update_weights(side.model.named_parameters())
    engine.generate(
        prompts, max_new_tokens=1
    )  # images are rendered once, so that the server is killed while it samples
    generations: list[Generation] = []
    thread = threading.Thread(target=lambda: generations.append(engine.generate(prompts)))
    thread.start()
    time.sleep(1.0)
    side.server.kill()
    assert thread.is_alive() and not generations, "the rollout was over before the server was killed"
    side.server.start()
    thread.join(START_SECONDS)
    assert side.difference(prompts, generations[0]) < LIMIT


def test_a_completion_that_the_server_cuts_is_refused(side: Side):
    """The server has room for 1024 tokens."""
    engine = side.engine()
    engine.update_weights(side.model.named_parameters())
    (prompt,) = side.encoder.encode([row()])
    prompt.input_ids = prompt.input_ids[:1] * 1020
    with pytest.raises(ValueError, match="of 12 tokens, since its prompt has 1020"):
        engine.generate([prompt])


def test_a_completion_matches_the_regex(side: Side):
    engine = side.engine(regex="(red|blue)")
    engine.update_weights(side.model.named_parameters())
    ids = engine.generate(side.encoder.encode([row()]) * 8).ids
    assert {side.encoder.decode(each).removesuffix("<|im_end|>") for each in ids} <= {"red", "blue"}
