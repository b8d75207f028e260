"""Expert data of a command line: answers to training rows, and separate demonstrations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlm_grpo.cli.args import ScriptArguments
from vlm_grpo.cli.train_args import UsageError

if TYPE_CHECKING:
    from datasets import Dataset

    from vlm_grpo.cli.templates import Prompting
    from vlm_grpo.trainers.config import VLMGRPOConfig


def with_expert_answers(script: ScriptArguments, dataset: Dataset) -> Dataset:
    """Return the training rows with the answers of --expert_key and --expert_data_file_paths.

    Raises:
        ValueError: there is no such column, or a file is invalid or matches no row.
    """
    from vlm_grpo.data.demonstrations import sort_expert_files, with_expert_key, with_experts

    if script.expert_key:
        dataset = with_expert_key(dataset, script.expert_key)
    paths = script.expert_data_file_paths
    answers = sort_expert_files(paths).answers if paths else []
    return with_experts(dataset, answers) if answers else dataset


def load_demonstrations(
    script: ScriptArguments, training: VLMGRPOConfig, prompting: Prompting | None = None
) -> Dataset | None:
    """Return the demonstrations of --expert_data_file_paths; None without any.

    Raises:
        UsageError: the demonstrations are invalid, or the algorithm is not chord.
    """
    from vlm_grpo.data.demonstrations import demonstrations, sort_expert_files

    if not script.expert_data_file_paths:
        return None
    paths = sort_expert_files(script.expert_data_file_paths).demonstrations
    if paths and training.algorithm != "chord":
        raise UsageError(
            f"--expert_data_file_paths {paths[0]}: has its own questions, which only --algorithm chord supports; "
            f"--algorithm {training.algorithm} needs answers to training rows: lines with id and expert"
        )
    folder = script.image_folders if script.image_folders and ":" not in script.image_folders else ""
    try:
        return demonstrations(paths, folder, markup=None if prompting is None else prompting.markup) if paths else None
    except ValueError as error:
        raise UsageError(str(error)) from error
