from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from vlm_grpo.records import Record
from vlm_grpo.rewards import REWARDS, make_concurrent, make_reward, resolve_rewards, score
from vlm_grpo.rewards.adapter import INAPPLICABLE_ROLLOUTS, batch_reward, checked_batch_reward, split_spec
from vlm_grpo.rewards.user_rewards import to_batch_reward

RIGHT = [{"role": "assistant", "content": "<think>a</think><answer>7</answer>"}]


def test_make_reward_is_a_trl_callable():
    reward = make_reward("accuracy")
    assert reward.__name__ == "accuracy"
    assert reward(prompts=["q", "q"], completions=[RIGHT, "8"], answer=["7", "7"]) == [1.0, 0.0]


def test_records_win_over_columns():
    record = Record(id=1, question="q", answer="7")
    assert make_reward("accuracy")([RIGHT], record=[record], answer=["8"]) == [1.0]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("iou", ("iou", 1.0)),
        ("iou@0.5:2", ("iou@0.5", 2.0)),
        ("a.py:f", ("a.py:f", 1.0)),
        ("a.py:f:0.5", ("a.py:f", 0.5)),
        ("C:/x/a.py:f:2", ("C:/x/a.py:f", 2.0)),
    ],
)
def test_split_spec(spec: str, expected: tuple[str, float]):
    assert split_spec(spec) == expected


def test_bad_weight_and_unknown_name():
    with pytest.raises(ValueError, match="the weight after ':' must be a number, got 'two'"):
        split_spec("iou:two")
    with pytest.raises(KeyError, match="unknown reward 'acuracy'; did you mean 'accuracy'"):
        resolve_rewards(["acuracy"])


@pytest.mark.parametrize(
    "code",
    [
        "def f(completion, record): return 2.0 * (record.answer in completion)",
        "def f(completions, answer, **columns): return [2.0 for _ in completions]",
        "def f(response, ground_truth): return 2.0 * (ground_truth in response)",
    ],
)
def test_user_rewards_of_three_forms(code: str, tmp_path: Path):
    (tmp_path / "mine.py").write_text(code)
    (reward,), weights = resolve_rewards([f"{tmp_path}/mine.py:f:3"])
    assert weights == [3.0]
    assert reward(prompts=["q"], completions=["it is 7"], answer=["7"]) == [2.0]
    assert reward.__name__ == "f"


def test_a_failing_user_reward_names_record_and_completion(tmp_path: Path):
    (tmp_path / "mine.py").write_text("def f(completion, record): return 1 / 0")
    (reward,), _ = resolve_rewards([f"{tmp_path}/mine.py:f"])
    with pytest.raises(RuntimeError, match=r"(?s)reward 'f' on record 5.*ZeroDivisionError.*completion: 'hello'"):
        reward(completions=["hello"], id=[5])


def test_missing_function_lists_what_is_there(tmp_path: Path):
    (tmp_path / "mine.py").write_text("def good(completion, record): return 1.0")
    with pytest.raises(ValueError, match="has no 'bad'; its functions are good"):
        resolve_rewards([f"{tmp_path}/mine.py:bad"])


def test_options_reach_the_length_rewards():
    (reward,), _ = resolve_rewards(["overlong"], max_length=10)
    assert reward([RIGHT], completion_ids=[[0] * 10]) == [-1.0]


def test_metrics_and_messages_reach_the_rewards_that_want_them():
    seen = []

    def reward(completion: str, record: Record, *, messages: object = None) -> float:
        seen.append((completion, messages))
        return 1.0

    def prepare(completions: list, records: list, *, log_metric: object = None) -> None:
        log_metric("rows", len(records))

    metrics: dict[str, float] = {}
    made = batch_reward("mine", reward, prepare=prepare)
    assert made([RIGHT, "8"], log_metric=metrics.__setitem__) == [1.0, 1.0]
    assert seen == [("<think>a</think><answer>7</answer>", RIGHT), ("8", "8")] and metrics == {"rows": 2}


def test_every_reward_is_there_as_a_coroutine_too():
    reward = make_reward("accuracy")
    assert asyncio.iscoroutinefunction(reward.asynchronous) and not asyncio.iscoroutinefunction(reward)
    assert asyncio.run(reward.asynchronous([RIGHT], prompts=["q"], answer=["7"])) == [1.0]


def test_slow_rewards_run_side_by_side_where_there_are_several():
    made = resolve_rewards(["format", "judge", "accuracy"])[0]
    assert [asyncio.iscoroutinefunction(function) for function in make_concurrent(made)] == [False, True, True]
    assert [function.__name__ for function in make_concurrent(made)] == ["format", "judge", "accuracy"]
    assert make_concurrent(made[:2]) == made[:2]


@pytest.mark.parametrize("name", list(REWARDS))
@pytest.mark.parametrize("text", ["", "\x00", "{" * 3000, "[" * 3000 + "]" * 3000, "<answer>" * 100, "1e999", "٣"])
def test_no_text_makes_a_reward_fail(name: str, text: str):
    for truth in ("7", "B", [0, 0, 1, 1], {"a": 1}, None):
        for completion in (text, f"<answer>{text}</answer>"):
            value = score(name, completion, answer=truth, options=["x", "y"])
            assert value is None or -1.0 <= value <= 1.0


def test_rewards_read_whole_turns_and_know_what_the_prompt_opened():
    record = Record(id=1, question="", answer="red")
    answer = "a</think><answer>red</answer>"
    columns = {"record": [record], "turn_opening": ["<think>"], "whole_turns": ["<think><answer>" + answer]}
    for name, value in (("accuracy", 1.0), ("format", 1.0)):
        assert make_reward(name)(completions=[answer], **columns) == [value]
    seen = []
    to_batch_reward("own", lambda completion, record: seen.append(completion) or 0.0)(completions=[answer], **columns)
    to_batch_reward("own", lambda text, ground_truth: seen.append(text) or 0.0)(completions=[answer], **columns)
    to_batch_reward("own", lambda completions, **columns: seen.extend(completions) or [0.0])(
        completions=[answer], **columns
    )
    assert seen == ["<think><answer>" + answer] * 2 + [answer]


FORMS = ("def f(completion, record): return {}", "def f(completions, **columns): return [{}]")
FORMS += ("async def f(completions, **columns): return [{}]",)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", ["float('nan')", "float('inf')", "-1e39", "1e300", "10**400", "'0.5'", "[1.0]"])
def test_a_value_that_no_loss_can_take_names_reward_and_record(form: str, value: str, tmp_path: Path):
    (tmp_path / "mine.py").write_text(form.format(value))
    (reward,), _ = resolve_rewards([f"{tmp_path}/mine.py:f"])
    with pytest.raises((ValueError, TypeError), match=r"reward 'f' on record 5 a\.jsonl:3: must return a"):
        found = reward(prompts=["q"], completions=["7"], id=[5], where=["a.jsonl:3"])
        asyncio.run(found)


@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize(("value", "expected"), [("True", 1.0), ("3e38", 3e38), ("None", None), ("-2", -2.0)])
def test_numbers_and_none_are_values(form: str, value: str, expected: float | None, tmp_path: Path):
    (tmp_path / "mine.py").write_text(form.format(value))
    (reward,), _ = resolve_rewards([f"{tmp_path}/mine.py:f"])
    assert reward(prompts=["q"], completions=["7"]) == [expected]


@pytest.mark.parametrize("values", ["None", "1.0", "[1.0]", "'ab'"])
def test_a_batch_reward_returns_one_value_for_each_completion(values: str):
    with pytest.raises(TypeError, match=r"reward 'mine': must return a list of 2 numbers or None, got"):
        checked_batch_reward("mine", lambda completions, **columns: eval(values))(completions=["a", "b"])


@pytest.mark.parametrize("weight", ["nan", "inf", "-inf", "1e300"])
def test_a_weight_is_finite(weight: str):
    with pytest.raises(ValueError, match=rf"reward 'iou:{weight}': the weight after ':' must be a finite number"):
        resolve_rewards([f"iou:{weight}"])


@pytest.mark.parametrize("form", ["def f(completion, record): {}", "def f(completions, **columns): {}"])
def test_a_reward_cannot_end_the_run_as_if_it_were_done(form: str, tmp_path: Path):
    (tmp_path / "mine.py").write_text(form.format("raise SystemExit(0)"))
    (reward,), _ = resolve_rewards([f"{tmp_path}/mine.py:f"])
    with pytest.raises(RuntimeError, match=r"reward 'f'.*SystemExit: 0"):
        reward(prompts=["q"], completions=["7"])


def test_a_reward_that_applies_to_no_row_is_named_once(caplog: pytest.LogCaptureFixture):
    def reward(completion: str, record: Record) -> float | None:
        return None if record.answer is None else 1.0

    never, at_times = batch_reward("never", reward), batch_reward("at_times", reward)
    for number in range(3 * INAPPLICABLE_ROLLOUTS):
        never(completions=["a", "b"])
        at_times(completions=["a", "b"], answer=[None, None if number % 5 else "7"])
        assert caplog.text.count("reward 'never' applied to no row") == (number + 1 >= INAPPLICABLE_ROLLOUTS)
    assert "at_times" not in caplog.text


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "def f(completion): return 1.0",
            r"must take \(completion, record\) as in this package, .*; got f\(completion\)",
        ),
        ("def f(a, b, c): return 1.0", r"must take .*; got f\(a, b, c\)"),
        ("def f(completions, answer): return [1.0]", r"must end with \*\*columns"),
        ("async def f(completion, record): return 1.0", "a coroutine function must take whole batches"),
        ("class f: pass", "must be a function, got a class"),
        ("f = 1.0", "must be a function, got float"),
        ("x = 1\ndef f(completion, record) return 1.0", r"mine\.py:2: SyntaxError"),
        ("x = 1\n\nimport no_such_package", r"mine\.py:3: ModuleNotFoundError: No module named 'no_such_package'"),
        ("raise SystemExit(0)", r"mine\.py:1: SystemExit"),
    ],
)
def test_mistakes_in_a_reward_file_are_found_when_it_is_named(code: str, said: str, tmp_path: Path):
    (tmp_path / "mine.py").write_text(code)
    with pytest.raises(ValueError, match=rf"reward '.*mine\.py:f': .*{said}"):
        resolve_rewards([f"{tmp_path}/mine.py:f"])
