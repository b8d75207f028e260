"""Stock TRL on two processes of which one has text only. python -m tests.support.stock MODEL OUTPUT [DEEPSPEED.json]

A training that takes longer than LIMIT hangs: every process then says where, and ends.
"""

from __future__ import annotations

import faulthandler
import sys
from pathlib import Path

from datasets import Dataset

from tests.support.training import length_reward, picture, settings, user

LIMIT = 25  # seconds; the step takes less than one


def main(model: str, output: str, deepspeed: str | None = None) -> None:
    """One step of GRPO: the first process gets the image, the second an empty list of images."""
    options = {"shuffle_dataset": False, "max_steps": 1}
    if deepspeed:
        from accelerate import PartialState

        PartialState(backend="gloo")
        options |= {"deepspeed": deepspeed, "accelerator_config": {"use_configured_state": True}, "use_cpu": False}
        options |= {"log_multimodal": False}  # it would hang before the model runs
    from trl import GRPOConfig, GRPOTrainer

    rows = [{"prompt": user("what color"), "images": [picture(0)]}, {"prompt": user("what shape"), "images": []}]
    args = GRPOConfig(**settings(Path(output), **options))
    trainer = GRPOTrainer(model, length_reward, args, train_dataset=Dataset.from_list(rows))
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    trainer.train()
    faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main(*sys.argv[1:])
