"""Train from the command line: check flags and data, load the model, train, and save.

Cheap checks come first, so that errors cost as little time as possible.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_grpo.cli.args import ScriptArguments, help_text
from vlm_grpo.cli.env_args import check_environments, environment_factory
from vlm_grpo.cli.expert_args import load_demonstrations, with_expert_answers
from vlm_grpo.cli.model_check import check_model
from vlm_grpo.cli.reward_trial import show_trials
from vlm_grpo.cli.scorable import check_rows_enough, check_scorable
from vlm_grpo.cli.templates import Prompting, custom_processor, find_prompting
from vlm_grpo.cli.train_args import UsageError, parse
from vlm_grpo.redact import redact_text

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import ModelConfig

    from vlm_grpo.trainers.config import VLMGRPOConfig
    from vlm_grpo.trainers.grpo import VLMGRPOTrainer
    from vlm_grpo.trainers.rloo import VLMRLOOTrainer


logger = logging.getLogger(__name__)

GO_ON = "resume with the same command and --resume_from_checkpoint true"
BROKEN_MEDIA = (
    "; the run has ended and its checkpoints are valid: fix the file or remove its row, then resume with "
    "--resume_from_checkpoint true. vlm-grpo check --decode finds all such files before training"
)
DATA_OPTIONS = (
    *("image_folders", "reward_method", "format_prompt"),
    *("prompt_key", "answer_key", "image_key", "video_key", "ignore_columns"),
)


def main(argv: list[str] | None = None) -> int:
    """Run one training and return the exit status.

    0: success; 1: user code exceeded its time limit; 2: invalid flags or data; 130: Ctrl-C; 143: SIGTERM, after a
    checkpoint.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if "-h" in words or "--help" in words:
        print(help_text())
        return 0
    from vlm_grpo.data.errors import DataError, MediaError
    from vlm_grpo.time_limits import TimeLimitError, exit_status_after_hang

    try:
        return run(words)
    except TimeLimitError as error:
        print(f"\nvlm-grpo train: {redact_text(str(error))}", file=sys.stderr, flush=True)
        return exit_status_after_hang()
    except MediaError as error:
        print(f"vlm-grpo train: {redact_text(str(error))}{BROKEN_MEDIA}", file=sys.stderr)
        return 2
    except (UsageError, DataError) as error:  # a stream finds bad lines during training
        print(f"vlm-grpo train: {redact_text(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("vlm-grpo train: interrupted; progress since the last checkpoint is lost", file=sys.stderr)
        return 128 + signal.SIGINT


def run(argv: list[str]) -> int:
    """Parse, check, train, save; return the exit status."""
    script, training, model = parse(argv)
    if not script.dry_run:
        check_machine(model, training)
    check_rewards(script, training)
    check_environments(script, bool(script.data_file_paths or script.dataset_name))
    prompting, prompting_error = find_prompting(script, training, model)
    dataset, held_out = load_data(script, training, prompting)
    demonstrations = load_demonstrations(script, training, prompting)
    check_row_flags(script, training, dataset)
    check_rows_enough(training, dataset)
    check_scorable([] if script.environment else reward_specs(script), dataset)
    show_trials(reward_specs(script), dataset, prompting, training)
    if script.dry_run:
        from vlm_grpo.cli.dry_run import print_dry_run

        print_dry_run(script, training, model, dataset, reward_specs(script), prompting or prompting_error)
        return 0
    from vlm_grpo.cli.card import card_facts
    from vlm_grpo.cli.run_changes import check_changes
    from vlm_grpo.cli.run_lock import lock_output_dir
    from vlm_grpo.cli.run_record import run_record, save_record
    from vlm_grpo.model_utils import parameter_table

    check_model(model, training, script.task_type, () if script.environment else dataset)
    if prompting is None:
        raise prompting_error or UsageError("the processor cannot be loaded")
    with lock_output_dir(training.output_dir or "") if training.process_index == 0 else nullcontext():
        start = resume_point(training)
        record = run_record(script, training, model, dataset, rewards=reward_specs(script), command=argv)
        if start is not None:
            check_changes(start, record, is_main=training.process_index == 0)
        try:
            trainer = build_trainer(script, training, model, dataset, held_out, prompting, demonstrations)
        except UsageError:
            raise
        except (ValueError, ImportError, OSError) as error:  # errors that libraries detect only here
            logger.debug("the trainer cannot be created", exc_info=True)
            raise UsageError(f"the model or the trainer cannot be created: {error}") from error
        save_record(trainer, {**record, "resumed_from": start})
        trainer.card_facts = card_facts(script, record, prompting)
        if training.process_index == 0 and trainer.model is not None:
            print(parameter_table(trainer.model))
        try:
            status = train_and_save(trainer, start)
        finally:
            trainer.engine.close()
    shutdown_distributed(status)
    return status


def train_and_save(trainer: VLMGRPOTrainer | VLMRLOOTrainer, start: str | None) -> int:
    """Train, optionally from a checkpoint, and save the model to output_dir; a full disk is reported in one line.

    Returns:
        The exit status: 143 after SIGTERM, when a checkpoint but no final model is saved.

    Raises:
        UsageError: the checkpoint is incompatible with this run.
    """
    from vlm_grpo.cli.run_changes import FirstStep
    from vlm_grpo.data.errors import MediaError
    from vlm_grpo.trainers.preemption import Preempted
    from vlm_grpo.trainers.saving import SavingError

    trainer.add_callback(first := FirstStep())
    try:
        trainer.preemption.is_enabled |= trainer.args.save_strategy != "no" and not trainer.args.save_only_model
        trainer.train(resume_from_checkpoint=start)
        if trainer.is_fsdp_enabled:  # with sharded checkpoints, the Trainer would not save a loadable model
            trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
        trainer.save_model(trainer.args.output_dir)
    except SavingError as error:
        raise SystemExit(f"vlm-grpo train: {error}") from error
    except ValueError as error:
        if start is None or first.has_begun or isinstance(error, MediaError):
            raise
        raise UsageError(f"--resume_from_checkpoint {start}: {error}") from error
    except Preempted as stop:
        if trainer.args.should_save:
            checkpoint = f"{trainer.args.output_dir}/checkpoint-{stop.step}"
            print(f"vlm-grpo train: stopped by SIGTERM, {checkpoint} has been written; {GO_ON}", file=sys.stderr)
        return int(stop.code or 0)
    trainer.save_state()
    return 0


def shutdown_distributed(status: int = 0) -> None:
    """Wait for the other processes, then destroy the group: an early exit would abort a process that is saving."""
    from accelerate import PartialState

    state = PartialState()
    state.wait_for_everyone()
    state.destroy_process_group()
    if state.num_processes > 1 and state.backend == "gloo":
        # A gloo thread sometimes aborts an exiting process, which the launcher would report as a failed run.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def load_data(
    script: ScriptArguments, training: VLMGRPOConfig, prompting: Prompting | None = None
) -> tuple[Dataset, Dataset | None]:
    """Return the training rows (a stream with --streaming) and, with --val_split_ratio, the held-out rows."""
    from vlm_grpo.data import load_dataset, val_split

    if script.environment and not (script.data_file_paths or script.dataset_name):
        from vlm_grpo.envs.pick_image import repeatable_episodes

        return repeatable_episodes(training.seed), None
    options = {name: getattr(script, name) for name in DATA_OPTIONS if getattr(script, name) is not None}
    try:
        dataset = load_dataset(
            script.data_file_paths or script.dataset_name,
            task=script.task_type,
            allow_outside=script.allow_outside,
            allow_private_urls=script.allow_private_urls,
            mixture=script.mixture,
            mixture_seed=training.seed,
            streaming=script.streaming,
            think_tags=True if prompting is None else prompting.think_tags,
            markup=None if prompting is None else prompting.markup,
            **options,
        )
        dataset = with_expert_answers(script, dataset)
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise UsageError(str(error.args[0] if isinstance(error, KeyError) else error)) from error
    if not script.val_split_ratio:
        return dataset, None
    try:
        return val_split(dataset, script.val_split_ratio, training.seed)
    except ValueError as error:
        raise UsageError(f"wrong flags:\n  {error}") from error


def reward_specs(script: ScriptArguments) -> list[str]:
    """Return the rewards of the command line; by default those of the environment or the task."""
    from vlm_grpo.tasks import TASKS

    if script.reward_funcs or script.environment:
        return script.reward_funcs or []
    return [f"{name}:{weight:g}" for name, weight in TASKS[script.task_type].rewards.items()]


def check_rewards(script: ScriptArguments, training: VLMGRPOConfig) -> None:
    """Load every reward once, so that errors show before data and model are loaded.

    Raises:
        UsageError: an unknown reward or task, an invalid weight, a missing package, an unused option, or a debug
            log that cannot be written.
    """
    from vlm_grpo.cli.judge_args import check_judge, check_judged_files
    from vlm_grpo.data.readers import split_entries
    from vlm_grpo.rewards import has_option, is_reward_model, resolve_rewards
    from vlm_grpo.trainers.completion_log import debug_log

    try:
        debug_log(os.environ, training.process_index)
        specs = reward_specs(script)
        check_judge(specs, script.reward_method, training)
        resolve_rewards([spec for spec in specs if not is_reward_model(spec)], **training.reward_options())
        files = [path for path in split_entries(script.data_file_paths or []) if Path(path).is_file()]
        check_judged_files(specs, training, files)
    except (KeyError, ValueError, ImportError) as error:
        raise UsageError(str(error.args[0] if isinstance(error, KeyError) else error)) from error
    reasoning_flags = [
        name for name in ("encoder", "device", "threshold") if getattr(training, f"reasoning_{name}") is not None
    ]
    if reasoning_flags and not any(has_option(spec, "encoder") for spec in specs):
        flags = ", ".join(f"--reasoning_{name}" for name in reasoning_flags)
        raise UsageError(f"wrong flags:\n  {flags} without a reward such as 'reasoning' would have no effect")


def check_row_flags(script: ScriptArguments, training: VLMGRPOConfig, dataset: Dataset) -> None:
    """Check that the flags have an effect on the rows.

    Raises:
        UsageError: judge flags are set, but nothing uses the judge.
    """
    from vlm_grpo.cli.judge_args import check_judged_rows

    if script.streaming or script.environment:
        return
    try:
        check_judged_rows(reward_specs(script), script.reward_method, training, dataset)
    except ValueError as error:
        raise UsageError(str(error)) from error


def check_machine(model: ModelConfig, training: VLMGRPOConfig) -> None:
    """Check the requirements of the run on this machine.

    Raises:
        UsageError: quantized weights without a GPU or bitsandbytes, FSDP without GPUs.
    """
    from vlm_grpo.cli.preflight import missing_requirements

    if problems := missing_requirements(model, training):
        raise UsageError("\n  ".join(["this machine does not meet the requirements of the run:", *problems]))


def build_trainer(
    script: ScriptArguments,
    training: VLMGRPOConfig,
    model: ModelConfig,
    dataset: Dataset,
    held_out: Dataset | None,
    prompting: Prompting | None = None,
    demonstrations: Dataset | None = None,
) -> VLMGRPOTrainer | VLMRLOOTrainer:
    """Build the trainer with model, adapters and rewards."""
    from trl import get_peft_config, get_quantization_config

    from vlm_grpo.trainers.grpo import VLMGRPOTrainer
    from vlm_grpo.trainers.rloo import VLMRLOOTrainer

    load_options = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
    }
    training.model_init_kwargs = {
        **{name: value for name, value in load_options.items() if value is not None},
        **(training.model_init_kwargs if isinstance(training.model_init_kwargs, dict) else {}),
    }
    kind = VLMGRPOTrainer if script.trainer == "grpo" else VLMRLOOTrainer
    trainer = kind(
        model.model_name_or_path,
        reward_specs(script),
        training,
        train_dataset=dataset,
        eval_dataset=held_out,
        processing_class=custom_processor(script, training, model, prompting),
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
        environment_factory=environment_factory(script),
        **({} if demonstrations is None else {"demonstrations": demonstrations}),
    )
    if script.live_report:
        from vlm_grpo.evaluation.report.dashboard import LiveReport

        trainer.add_callback(LiveReport(trainer))  # before callbacks that evaluate at the start
    if held_out is not None:
        add_evaluation(trainer, script, held_out)
    return trainer


def add_evaluation(trainer: VLMGRPOTrainer | VLMRLOOTrainer, script: ScriptArguments, held_out: Dataset) -> None:
    """Add greedy evaluation on the held-out rows, as set by --val_before_train, --val_freq and --eval_strategy."""
    from vlm_grpo.evaluation.callback import GreedyEvaluation
    from vlm_grpo.trainers.fsdp import model_for_generation

    trainer.add_callback(
        GreedyEvaluation(
            trainer,
            held_out,
            task=script.task_type,
            val_before_train=script.val_before_train,
            val_freq=script.val_freq,
            unwrap=model_for_generation,
        )
    )


def resume_point(training: VLMGRPOConfig) -> str | None:
    """Return the checkpoint of --resume_from_checkpoint; `true` is the newest complete one, or None without any.

    Raises:
        UsageError: the named checkpoint does not exist or is incomplete.
    """
    from vlm_grpo.trainers.checkpoints import resumable, validate_checkpoint

    value = training.resume_from_checkpoint
    if value is None or str(value).lower() == "false":
        return None
    if str(value).lower() == "true":
        try:
            newest = resumable(training.output_dir or "")
        except ValueError as error:
            raise UsageError(f"--resume_from_checkpoint: {error}") from error
        if newest is None:
            logger.warning(
                "--resume_from_checkpoint: no complete checkpoint in %s, starting from the beginning",
                training.output_dir,
            )
        return None if newest is None else str(newest)
    problem = validate_checkpoint(value)
    if problem is not None:
        raise UsageError(f"--resume_from_checkpoint {value}: not a complete checkpoint: {problem}")
    return value


if __name__ == "__main__":
    sys.exit(main())
