"""Training from a stream: as from an opened file, the same again after a resume, and in two processes as in one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.data.files import turns, write_jsonl
from tests.support.training import length_reward, picture, settings
from tests.trainers.test_distributed import COMPARED, train, write_data
from vlm_grpo.data import DataError, load_dataset
from vlm_grpo.trainers.config import VLMGRPOConfig, VLMRLOOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer
from vlm_grpo.trainers.rloo import VLMRLOOTrainer

KINDS = {"grpo": (VLMGRPOTrainer, VLMGRPOConfig), "rloo": (VLMRLOOTrainer, VLMRLOOConfig)}
COUNT = 5


class Run:
    """A trainer over a few rows, and the ids that its reward was asked about."""

    def __init__(self, kind: str, model: Path, folder: Path, *, streaming: bool = True, **options: Any) -> None:
        self.seen: list[int] = []
        trainer, config = KINDS[kind]
        arguments = {"max_steps": 12, "save_strategy": "steps", "save_steps": 8, **options}
        data = load_dataset(rows_file(folder), image_folders=str(folder), streaming=streaming)
        self.trainer = trainer(
            str(model), self.reward, config(**settings(folder / "out", **arguments)), train_dataset=data
        )

    def reward(self, completions: list, id: list[int], **columns: Any) -> list[float]:
        self.seen += dict.fromkeys(id)
        return length_reward(completions)

    @property
    def steps(self) -> list[tuple[float, ...]]:
        names = ("loss", "grad_norm", "reward", "entropy")
        return [tuple(entry.get(name) for name in names) for entry in self.trainer.state.log_history if "loss" in entry]

    @property
    def weights(self) -> dict[str, Any]:
        return self.trainer.model.state_dict()


def rows_file(folder: Path) -> str:
    """Rows of which some have no image, and some a further column."""
    rows = []
    for number in range(COUNT):
        picture(number, height=56 + 28 * (number % 3)).save(folder / f"{number}.png")
        row = {"id": number, "conversations": turns("<image>" * (number != 2) + "what is it " * (number + 1), "a")}
        extra = {"hint": "look"} if number % 2 else {}
        rows.append({**row, **({"image": f"{number}.png"} if number != 2 else {}), **extra})
    return write_jsonl(folder / "a.jsonl", rows)


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_stream_trains_as_the_opened_file_does(kind: str, tiny_model: Path, tmp_path: Path):
    """For one pass: at the start of the next, the loader of an opened file draws a random number."""
    runs = []
    for streaming in (True, False):
        options = {"streaming": streaming, "shuffle_dataset": False, "max_steps": COUNT, "save_strategy": "no"}
        runs.append(Run(kind, tiny_model, tmp_path, **options))
        runs[-1].trainer.train()
    stream, opened = runs
    assert stream.seen == opened.seen == list(range(COUNT))
    assert stream.steps == opened.steps
    assert all(stream.weights[name].equal(value) for name, value in opened.weights.items())


@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("options", [{}, {"num_iterations": 3, "max_prompt_length": 100}], ids=["", "in a rollout"])
def test_a_resumed_run_is_bit_identical(kind: str, options: dict, tiny_model: Path, tmp_path: Path):
    """The checkpoint of step 8 is past the end of the first pass of 5 rows, or between the steps of one rollout."""
    whole = Run(kind, tiny_model, tmp_path, **options)
    whole.trainer.train()
    resumed = Run(kind, tiny_model, tmp_path, **options)
    resumed.trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-8"))
    assert resumed.steps == whole.steps and len(whole.steps) == 12
    assert all(resumed.weights[name].equal(value) for name, value in whole.weights.items())
    assert resumed.seen == whole.seen[-len(resumed.seen) :]
    if not options:
        assert sorted(whole.seen[:COUNT]) == sorted(whole.seen[COUNT : 2 * COUNT]) == list(range(COUNT))
        assert len(resumed.seen) == 4 and whole.seen[:COUNT] != whole.seen[COUNT : 2 * COUNT]


def test_over_long_prompts_are_dropped_as_they_are_reached(tiny_model: Path, tmp_path: Path, caplog):
    options = {"shuffle_dataset": False, "max_steps": 5, "save_strategy": "no"}
    plain = Run("grpo", tiny_model, tmp_path, streaming=False, **options).trainer
    lengths = [len(plain.encoder.encode([row])[0].input_ids) for row in plain.train_dataset]
    limit = sorted(lengths)[2]
    short = [number for number, length in enumerate(lengths) if length <= limit]
    run = Run("grpo", tiny_model, tmp_path, max_prompt_length=limit, **options)
    run.trainer.train()
    assert run.seen == [*short, *short][:5]
    assert caplog.text.count(f"--max_prompt_length {limit} drops {COUNT - len(short)} of {COUNT} rows") == 1
    with pytest.raises(ValueError, match=f"every prompt is longer, the longest has {max(lengths)} tokens"):
        Run("grpo", tiny_model, tmp_path, max_prompt_length=3, **options).trainer.train()


def test_a_bad_line_stops_the_run_and_is_named(tiny_model: Path, tmp_path: Path):
    run = Run("grpo", tiny_model, tmp_path, shuffle_dataset=False, save_strategy="no")
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write("{\n")
    with pytest.raises(DataError, match=r"a\.jsonl:6 "):
        run.trainer.train()


@pytest.mark.multiprocess
@pytest.mark.parametrize("trainer", list(KINDS))
def test_two_processes_train_as_one(trainer: str, tiny_model: Path, tmp_path: Path):
    write_data(tmp_path)
    options = {"max_steps": 3, "save_strategy": "no", "streaming": "true"}
    one, two = (train(mode, trainer, tiny_model, tmp_path, **options) for mode in ("one", "ddp"))
    assert len(one) == 4 and all(entry["reward_std"] > 0.1 for entry in one[:3])
    for first, second in zip(one[:3], two[:3], strict=True):
        for name in COMPARED:
            assert second[name] == pytest.approx(first[name], abs=1e-5, rel=1e-5), (name, first["step"])
