"""What is written of a run and how a run goes on from it: checkpoints, the model, and the stop after SIGTERM."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate.utils import is_peft_model
from torch import nn
from transformers.trainer_jit_checkpoint import JITCheckpointCallback

from vlm_grpo.algorithms import find_algorithm
from vlm_grpo.data.writing import write_whole
from vlm_grpo.trainers.checkpoints import check_complete, resumable, write_record
from vlm_grpo.trainers.model_card import NAME, Card, CardFacts, settings_of
from vlm_grpo.trainers.preemption import Preemption
from vlm_grpo.trainers.reference import load_reference, save_reference
from vlm_grpo.trainers.resume import check_fit, check_optimizer, has_full_weights, load_full_weights
from vlm_grpo.trainers.rollout_state import load_rollout, save_rollout
from vlm_grpo.trainers.saving import PARTIAL, writing_checkpoint, writing_model


class Persistence:
    """Mixin over `GRPOTrainer` or `RLOOTrainer`: what it writes is whole, and a resumed run goes on bit for bit."""

    card_facts = CardFacts()  # set by the command line
    evaluated: Mapping[str, Any] = {}  # metrics of the newest evaluation, set by evaluation.callback.GreedyEvaluation

    def __init__(self, *args: Any, **options: Any) -> None:
        handler = signal.getsignal(signal.SIGTERM)
        super().__init__(*args, **options)
        self.preemption = Preemption(self.accelerator, is_wanted=self.args.enable_jit_checkpoint)
        if self.args.enable_jit_checkpoint:  # transformers' own has taken the signal
            self.remove_callback(JITCheckpointCallback)
            signal.signal(signal.SIGTERM, handler)

    def train(self, resume_from_checkpoint: str | bool | None = None, **options: Any) -> Any:
        """TRL's; `resume_from_checkpoint=True` is the newest complete checkpoint, or a new start without one."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = resumable(self.args.output_dir)
        path = None if resume_from_checkpoint in (None, False) else str(resume_from_checkpoint)
        if path is not None:
            check_complete(path)
            check_fit(self.model, path, is_deepspeed=self.is_deepspeed_enabled)
            load_reference(path, self._synced_reference())
        self.pop_callback(self.preemption)
        self.add_callback(self.preemption)  # the last, so that it has the last word on what follows a step
        with self.preemption.listening():
            return super().train(resume_from_checkpoint=path, **options)

    def _init_training_state(self, max_steps: int, steps: int, epochs: int, *rest: Any) -> tuple[int, int]:
        """The Trainer's; a run that was killed after its last step has no epoch left; that takes one more step."""
        begun = super()._init_training_state(max_steps, steps, epochs, *rest)
        if self.state.global_step > max_steps:
            raise ValueError(
                f"the checkpoint is at step {self.state.global_step}, and this run ends at step {max_steps}: give "
                "--max_steps or --num_train_epochs a larger value, or resume from an earlier checkpoint"
            )
        return (epochs, 0) if self.state.global_step >= max_steps else begun

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        with writing_checkpoint(folder, **self._writer()):
            super()._save_checkpoint(model, trial)
            self._write_card(folder)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """TRL's; a model that is saved by itself replaces an older one only when all of its files are whole."""
        if _internal_call:
            return super().save_model(output_dir, _internal_call=True)
        with writing_model(Path(output_dir or self.args.output_dir), **self._writer()) as partial:
            super().save_model(str(partial), _internal_call=True)
            self._write_card(partial)
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)
        return None

    def create_model_card(
        self, model_name: str | None = None, dataset_name: str | None = None, tags: str | list[str] | None = None
    ) -> None:
        """Write this package's card; TRL's arguments, where given, are its title, its data and further tags."""
        folder = Path(self.args.output_dir)
        card = self._card(folder)
        data = card.facts.data if dataset_name is None else [dataset_name]
        more = [tags] if isinstance(tags, str) else tags or []
        facts = dataclasses.replace(card.facts, data=data)
        card = dataclasses.replace(card, path=model_name or card.path, facts=facts, tags=[*card.tags, *more])
        if self.args.should_save:
            write_whole(folder / NAME, card.text())

    def _write_card(self, folder: Path) -> None:
        if self.args.should_save and folder.is_dir():
            write_whole(folder / NAME, self._card(folder).text())

    def _card(self, folder: Path) -> Card:
        adapters = getattr(self.model, "peft_config", {})
        name = getattr(self.args, "algorithm", None)
        recipe = find_algorithm(name) if name else None
        return Card(
            path=self.args.hub_model_id or str(folder.parent if folder.name == PARTIAL else folder),
            base_model=str(getattr(self.model.config, "_name_or_path", "") or ""),
            trainer=self._name if recipe is None else name,
            method=f"{recipe.summary} ({recipe.paper})" if recipe else f"Method: arXiv:{self._paper['id']}.",
            rewards=dict(zip(self.reward_func_names, self.reward_weights.tolist(), strict=True)),
            settings=settings_of(self.args, self.accelerator.num_processes, next(iter(adapters.values()), None)),
            logs=self.state.log_history,
            place=(self.state.global_step, self.state.max_steps),
            evaluated=self.evaluated,
            template_options=self.args.chat_template_kwargs or {},
            tokens=self.args.max_completion_length,
            is_adapter=bool(adapters),
            sees_images=self._is_vlm,
            tags=self._tag_names,
            facts=self.card_facts,
        )

    def _writer(self) -> dict[str, Any]:
        wait = self.accelerator.wait_for_everyone
        return {"model": self.model, "is_main": self.args.should_save, "wait": wait}

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        is_over = self._step % (self.args.steps_per_generation * self.num_iterations) == 0
        batches = None if is_over else self._buffered_inputs
        save_rollout(output_dir, self.args.process_index, self._step, batches, self.args)
        if self.args.sync_ref_model and self.args.should_save:
            save_reference(output_dir, self._synced_reference())
        self.accelerator.wait_for_everyone()  # the record and trainer_state.json say that every process is done
        if self.args.should_save:
            write_record(output_dir)

    def _synced_reference(self) -> nn.Module | None:
        return self.accelerator.unwrap_model(self.ref_model) if self.args.sync_ref_model else None

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            place = (self.args.process_index, self.encoder, self.accelerator.device)
            self._step, self._buffered_inputs = load_rollout(checkpoint, *place, self.args)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None and not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            check_optimizer(self.optimizer, checkpoint)
        super()._load_optimizer_and_scheduler(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        target = self.model if model is None else model
        if self._loads_by_trainer(target) or not has_full_weights(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_full_weights(target, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        best = self.state.best_model_checkpoint
        if self._loads_by_trainer(self.model) or not has_full_weights(best):
            super()._load_best_model()
        else:
            load_full_weights(self.model, best)

    def _loads_by_trainer(self, model: nn.Module) -> bool:
        """DeepSpeed and FSDP restore sharded weights under live names; an adapter's names are never converted."""
        return self.is_deepspeed_enabled or self.is_fsdp_enabled or is_peft_model(model)
