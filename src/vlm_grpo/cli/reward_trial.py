"""Call user rewards on the first row before the model is loaded, so that errors show early."""

from __future__ import annotations

import traceback
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from vlm_grpo.cli.templates import Prompting, gold_turn
from vlm_grpo.cli.train_args import UsageError
from vlm_grpo.import_utils import is_file_spec
from vlm_grpo.records import Columns, Row
from vlm_grpo.rewards import resolve_rewards
from vlm_grpo.rewards.adapter import WHOLE_TURNS, call_batch_reward
from vlm_grpo.time_limits import DEFAULT_TIME_LIMIT, TimeLimitError

if TYPE_CHECKING:
    from vlm_grpo.rollouts.chat_template import ChatTemplate
    from vlm_grpo.trainers.config import VLMGRPOConfig


class Trial(NamedTuple):
    """The value of a user reward for the gold answer of a row."""

    spec: str
    value: float | None
    where: str


def try_rewards(
    specs: Sequence[str],
    dataset: Iterable[Row],
    template: ChatTemplate | None,
    *,
    space: str | None = None,
    time_limit: float = DEFAULT_TIME_LIMIT,
) -> list[Trial]:
    """Call each user reward once, with the gold answer of the first row as the completion.

    Args:
        specs: of the rewards; those of the table are left out.
        dataset: the training rows; rows that an environment makes are left out.
        template: the model's chat template, or None.
        space: of --answer_space.
        time_limit: seconds that each call may take.

    Raises:
        UsageError: a reward raises, or returns something else than numbers.
        TimeLimitError: a reward does not return in time.
    """
    user_specs = [spec for spec in specs if is_file_spec(spec)]
    row = next(iter(dataset), None) if user_specs else None
    if row is None or row.get("record") is None:
        return []
    try:
        columns = _columns(row, template, space)
    except ValueError as error:  # an image without a header
        raise UsageError(str(error)) from error
    return [Trial(spec, _value(spec, columns, str(row["where"]), time_limit), str(row["where"])) for spec in user_specs]


def show_trials(
    specs: Sequence[str], dataset: Iterable[Row], prompting: Prompting | None, training: VLMGRPOConfig
) -> None:
    """Try the user rewards of a run and print their values on the first process.

    Raises:
        UsageError, TimeLimitError: as `try_rewards`.
    """
    template, limit = None if prompting is None else prompting.template, training.reward_time_limit
    trials = try_rewards(specs, dataset, template, space=training.answer_space, time_limit=limit)
    if training.process_index == 0:
        print("".join(f"{line}\n" for line in trial_lines(trials)), end="")


def trial_lines(trials: Iterable[Trial]) -> list[str]:
    """Return one line for each trial."""
    return [
        f"own reward {trial.spec}: {'not applicable' if trial.value is None else f'{trial.value:g}'} for the right "
        f"answer of {trial.where}"
        for trial in trials
    ]


def _value(spec: str, columns: Columns, where: str, time_limit: float) -> float | None:
    (function,), _ = resolve_rewards([spec], time_limit=time_limit)
    try:
        return call_batch_reward(function, **columns)[0]
    except TimeLimitError:
        raise
    except (RuntimeError, TypeError, ValueError, ImportError) as error:
        place = _place(error, spec.split(".py:")[0] + ".py")
        raise UsageError(
            f"--reward_funcs {spec}: {error}{place}\n"
            f"It was called before the model is loaded, with the gold answer of the first row, {where}."
        ) from error


def _place(error: BaseException, path: str) -> str:
    """Return the line of the user's file where a reward raised; empty if it did not."""
    cause = error.__cause__ or error
    lines = [frame.lineno for frame in traceback.extract_tb(cause.__traceback__) if frame.filename.endswith(path)]
    return f"\nat {path}:{lines[-1]}" if lines else ""


def _columns(row: Row, template: ChatTemplate | None, space: str | None) -> Columns:
    """Return the arguments that trainers pass to a reward, for one row."""
    from transformers import TrainerState

    from vlm_grpo.data.images import image_size

    gold = gold_turn(row, template)
    sizes = [image_size(ref) for ref in row.get("images") or ()]
    facts = {"image_sizes": sizes, "processed_sizes": sizes, "answer_space": space or "original"}
    values = {**row, **facts, "turn_opening": gold.opening, WHOLE_TURNS: _assistant(gold.opening + gold.completion)}
    return {
        **{name: [value] for name, value in values.items() if name != "prompt"},
        "prompts": [row["prompt"]],
        "completions": [_assistant(gold.completion)],
        "completion_ids": [list(range(max(1, len(gold.completion.split()))))],
        "trainer_state": TrainerState(),
        "log_extra": lambda *_: None,
        "log_metric": lambda *_: None,
    }


def _assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]
