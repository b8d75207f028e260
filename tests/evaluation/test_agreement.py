"""How far two backends agree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from vlm_grpo.cli.eval_args import parser, validate
from vlm_grpo.evaluation.agreement import compare_backends
from vlm_grpo.evaluation.backends.rollout_engine import without_weights
from vlm_grpo.evaluation.predictions import RowCompletions, ScoredText


class Fixed:
    """Answers each row with its text, backwards: backends may yield rows in any order."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts

    def __call__(self, dataset: Sequence, numbers: Sequence[int]) -> Iterator[list[RowCompletions]]:
        for number in reversed(numbers):
            yield [RowCompletions(number, dataset[number], [ScoredText(self.texts[number], 1, False, {})])]


def test_equal_completions_and_common_text_are_counted():
    found = compare_backends(Fixed("a", "abcd", ""), Fixed("a", "abxyz", ""), [{}] * 3, [0, 1, 2])
    assert (found.rows, found.equal) == (3, 2)
    assert found.prefix == pytest.approx((1 + 2 / 5 + 1) / 3)
    assert found.first_difference == (1, "abcd", "abxyz")
    assert "3 rows: 2 equal completions, 80.0 % of the text" in found.lines("vllm")[0]
    assert found.lines("vllm")[1] == "row 1: vllm 'abcd'\nrow 1: transformers 'abxyz'"


def test_no_rows_are_an_error():
    with pytest.raises(ValueError, match="no rows"):
        compare_backends(Fixed(), Fixed(), [], [])


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--agreement", "5"], "--agreement compares a backend with --backend local"),
        (["--backend", "vllm", "--agreement", "5", "--temperature", "1"], "compares greedy completions"),
        (["--backend", "sglang"], "--backend sglang needs --base_url"),
        (["--engine_options", "{}"], "--engine_options has no effect with --backend local"),
        (["--backend", "vllm", "--concurrency", "3"], "--concurrency has no effect with --backend vllm"),
        (["--backend", "openai", "--base_url", "http://a/v1", "--environment", "pick_image"], "continues exact tokens"),
    ],
)
def test_flags_without_effect_are_refused(words: list[str], problem: str, tmp_path: Path):
    common = ["--model_name_or_path", "m", "--data_file_paths", "a.jsonl", "--output_dir", str(tmp_path)]
    assert any(problem in each for each in validate(parser().parse_args([*common, *words])))


def test_an_engine_refuses_an_adapter(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="merge it into its base model"):
        without_weights(str(tmp_path))
