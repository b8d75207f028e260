"""Greedy evaluation during training, logged together with the training metrics."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object
from transformers import Trainer, TrainerCallback

from vlm_grpo.evaluation import Evaluation, metric_names, predict, shard, summary, unique_rows
from vlm_grpo.records import Row

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import nn
    from transformers import TrainerControl, TrainerState, TrainingArguments

    from vlm_grpo.trainers.grpo import VLMGRPOTrainer
    from vlm_grpo.trainers.rloo import VLMRLOOTrainer


logger = logging.getLogger(__name__)


class GreedyEvaluation(TrainerCallback):
    """Makes `trainer.evaluate()` complete held-out rows greedily and log `eval_<metric>` for each metric of the task.

    It runs before the first step, every `val_freq` epochs, and according to the trainer's `eval_strategy`.
    `metric_for_best_model`, `load_best_model_at_end` and `save_strategy="best"` use its metrics.

    Args:
        trainer: the trainer that the callback is added to.
        held_out: rows of `vlm_grpo.load_dataset`.
        task: task whose metrics are computed.
        val_before_train: evaluate before the first step (not when a run resumes).
        val_freq: epochs between evaluations, any positive number; 0 means never.
        unwrap: `unwrap(wrapped_model, accelerator)`, a context manager that returns the model for generation; for
            DeepSpeed ZeRO-3 it must gather the parameters.
        batch_size: rows per call of `generate`; None means the trainer's evaluation batch size.

    Raises:
        ValueError: val_freq is negative, or the trainer's metric_for_best_model is not a metric of the task.
    """

    def __init__(
        self,
        trainer: VLMGRPOTrainer | VLMRLOOTrainer,
        held_out: Sequence[Row],
        *,
        task: str,
        val_before_train: bool,
        val_freq: float,
        unwrap: Callable[[nn.Module, Accelerator], AbstractContextManager[Any]],
        batch_size: int | None = None,
    ) -> None:
        if val_freq < 0:
            raise ValueError(f"--val_freq must be 0 (never) or a positive number of epochs, got {val_freq}")
        best = getattr(getattr(trainer, "args", None), "metric_for_best_model", None)
        known = metric_names(task)
        if best is not None and best.removeprefix("eval_") not in known:
            raise ValueError(f"--metric_for_best_model must be one of {', '.join(known)} (task {task}), got {best!r}")
        self.trainer = trainer
        self.held_out = held_out
        self.task = task
        self.val_before_train = val_before_train
        self.val_freq = val_freq
        self.unwrap = unwrap
        self.batch_size = batch_size
        self.periods = 0
        self.last: Evaluation | None = None
        if trainer is not None:
            trainer.evaluate_greedily = self.run

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        self.periods = self._periods(state)
        if self.val_before_train and state.global_step == 0:
            self.trainer.evaluate()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if self._periods(state) > self.periods:
            self.periods = self._periods(state)
            control.should_evaluate = True

    def _periods(self, state: TrainerState) -> int:
        """Return how many whole periods have passed; 3 steps of 0.1 epochs are 0.3 up to rounding."""
        return math.floor((state.epoch or 0) / self.val_freq + 1e-6) if self.val_freq else 0

    def run(self) -> dict[str, float]:
        """Evaluate on all ranks together and return the logged metrics."""
        trainer, accelerator = self.trainer, self.trainer.accelerator
        args: Any = trainer.args
        processor: Any = trainer.processing_class
        numbers = shard(len(self.held_out), accelerator.process_index, accelerator.num_processes)
        with self.unwrap(trainer.model_wrapped, accelerator) as model:
            mine = predict(
                model,
                processor,
                self.held_out,
                numbers,
                task=self.task,
                reward_options=args.reward_options(),
                batch_size=self.batch_size or args.per_device_eval_batch_size,
                max_completion_length=args.max_completion_length,
                template_options=getattr(trainer, "chat_template_kwargs", None),
                answer_space=getattr(args, "answer_space", None),
            )
        self.last = summary(self.task, unique_rows(gather_object(mine)))
        trainer.evaluated = self.last.metrics
        entries = log_entries(self.last)
        Trainer.log(trainer, dict(entries))  # TRL's method would also average and clear the training metrics
        return entries


def log_entries(evaluation: Evaluation) -> dict[str, float]:
    """Return the entries to log: each metric that applies to some row, and the length of the completions."""
    entries = {f"eval_{name}": metric.value for name, metric in evaluation.metrics.items() if metric.count}
    lengths = [prediction["num_tokens"] for prediction in evaluation.predictions]
    cut = [prediction["is_truncated"] for prediction in evaluation.predictions]
    return {
        **entries,
        "eval_completions/mean_length": sum(lengths) / len(lengths),
        "eval_completions/clipped_ratio": sum(cut) / len(cut),
    }
