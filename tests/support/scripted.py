"""The training command with completions that do not depend on sampling: for runs that are compared with each other.

python -m tests.support.scripted [flags of grpo_jsonl.py]
The model really generates; then row i of a rank gets tokens made of its prompt's length and of i, so that one process
with 8 rows and two processes with 4 rows each train on the same completions.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from typing import Any

from accelerate.utils import is_peft_model
from torch.distributed.tensor import DTensor

from vlm_grpo.cli import train
from vlm_grpo.rollouts.encoder import EncodedPrompt
from vlm_grpo.rollouts.engines.engine import Generation
from vlm_grpo.trainers.base import VLMTrainerMixin

ON_CPU = "TEST_FSDP_ON_CPU"  # set in the environment of runs that shall shard
GENERATIONS = 4
TEXT_TOKENS = range(10, 200)  # ordinary tokens of the tiny tokenizer


def scripted(prompt: list[int], row: int) -> list[int]:
    """Between 2 and 5 tokens that differ within a group."""
    turn = row % GENERATIONS
    return [TEXT_TOKENS[(len(prompt) + 31 * turn + 7 * place) % len(TEXT_TOKENS)] for place in range(2 + turn)]


def scripted_of(prompts: Sequence[EncodedPrompt]) -> Generation:
    """Return a scripted completion of each prompt: row i of those that continue a prompt differs from the others."""
    counts: Counter[int] = Counter()
    ids = []
    for prompt in prompts:
        ids.append(scripted(prompt.input_ids, counts[id(prompt)]))
        counts[id(prompt)] += 1
    return Generation(ids)


def replace_completions() -> None:
    """Let a trainer's engine generate, look at memory, and put scripted completions in place of the sampled ones."""
    run = VLMTrainerMixin.train

    def train_on_scripts(self: Any, *args: Any, **options: Any) -> Any:
        sample = self.engine.generate

        def generate(prompts: Sequence[EncodedPrompt], **settings: Any) -> Generation:
            sample(prompts, **settings)
            check_memory(self)
            return scripted_of(prompts)

        self.engine.generate = generate
        return run(self, *args, **options)

    VLMTrainerMixin.train = train_on_scripts


def check_memory(trainer: Any) -> None:
    """Fail where a process holds more than it should: whole parameters under FSDP, a second model beside an adapter."""
    if ON_CPU in os.environ:
        whole = [name for name, parameter in trainer.model.named_parameters() if not isinstance(parameter, DTensor)]
        assert not whole, f"not sharded: {whole}"
    assert not is_peft_model(trainer.model) or trainer.ref_model is None


def shard_on_cpu() -> None:
    """Let accelerate shard with FSDP on CPU processes: it does so only for devices, and trains with DDP elsewhere.

    The arguments need `accelerator_config={"use_configured_state": true}`, or they would make a state of their own.
    """
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    state = PartialState(cpu=True)
    state.distributed_type = DistributedType.MULTI_GPU


if __name__ == "__main__":
    if ON_CPU in os.environ:
        shard_on_cpu()
    replace_completions()
    sys.exit(train.main())
