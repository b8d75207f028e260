"""Own rewards in the forms of the systems that users come from: each gets what it got there, and is told at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from docs.gen_rewards import OWN_REWARDS
from vlm_grpo.records import ImageRef, Record
from vlm_grpo.rewards import resolve_rewards
from vlm_grpo.rewards.user_rewards import SIGNATURES, find_signature, to_batch_reward

TEXT = "<think>Two and three.</think><answer>5</answer>"
MESSAGES = [{"role": "assistant", "content": TEXT}]
RECORD = Record(7, "<image>How many?", 5, (ImageRef("/a/0.png"),), task="counting", extra={"scene": 3})
COLUMNS = {"record": [RECORD], "answer": [5], "scene": [3], "completion_ids": [[1, 2, 3]], "id": [7]}

# A function of each form: it earns 1 when it has been called as where it comes from.
FUNCTIONS = {
    "record": "def f(completion, record): return float('<answer>5' in completion and record.answer == 5)",
    "text": "def f(response, gt): return float(gt == '5' and response.endswith('5</answer>'))",
    "columns": (
        "import re\n"
        "def f(completions, solution, **kwargs):\n"
        "    texts = [completion[0]['content'] for completion in completions]\n"
        "    truth = re.findall('<answer>(.*?)</answer>', solution[0])[-1].strip()\n"
        "    assert kwargs['problem'] == ['How many?'] and kwargs['image_path'] == [['/a/0.png']]\n"
        "    assert kwargs['accu_reward_method'] == ['default'] and kwargs['ground_truth'] == ['5']\n"
        "    assert kwargs['scene'] == [3] and kwargs['prompts'] == ['q']\n"
        "    return [float(truth == '5' and '<answer>5' in text) for text in texts]\n"
    ),
    "reward_input": (
        "from typing import Any\n"
        "def f(reward_input: dict[str, Any], format_weight: float = 0.5) -> dict[str, float]:\n"
        "    assert reward_input['ground_truth'] == '5' and reward_input['scene'] == 3\n"
        "    right = float('<answer>5' in reward_input['response'] and reward_input['response_length'] == 3)\n"
        "    return {'overall': right, 'format': 0.25, 'accuracy': right}\n"
    ),
    "reward_inputs": (
        "def f(reward_inputs: list[dict]) -> list[dict]:\n"
        "    return [{'overall': float(one['ground_truth'] == '5'), 'format': 0.25, 'accuracy': 1.0}\n"
        "            for one in reward_inputs if one['response_length'] == 3]\n"
    ),
    "verl": (
        "def f(data_source, solution_str, ground_truth, extra_info=None):\n"
        "    assert data_source == 'counting' and extra_info == {'scene': 3}\n"
        "    return {'score': float(ground_truth == '5' and '5</answer>' in solution_str), 'acc': 1}\n"
    ),
}


def function_of(code: str) -> Any:
    names: dict[str, Any] = {}
    exec(code, names)
    return names["f"]


def test_every_form_has_a_function_here():
    assert set(FUNCTIONS) == set(SIGNATURES)


@pytest.mark.parametrize("form", list(FUNCTIONS))
def test_a_reward_gets_what_it_got_where_it_comes_from(form: str, tmp_path: Path):
    (tmp_path / "mine.py").write_text(FUNCTIONS[form])
    assert find_signature(function_of(FUNCTIONS[form])) == form
    (reward,), _ = resolve_rewards([f"{tmp_path}/mine.py:f"])
    assert reward(prompts=["q"], completions=[MESSAGES], **COLUMNS) == [1.0]


@pytest.mark.parametrize("form", list(OWN_REWARDS))
def test_the_functions_of_the_page_pay_for_the_right_answer_alone(form: str):
    code = OWN_REWARDS[form][0]
    names: dict[str, Any] = {}
    exec(code, names)
    function = next(value for name, value in names.items() if name in ("exact", "compute_score"))
    assert find_signature(function) == form
    wrong = [{"role": "assistant", "content": "<answer>6</answer>"}]
    columns = {name: column * 2 for name, column in COLUMNS.items()}
    right, other = to_batch_reward("own", function)(completions=[MESSAGES, wrong], **columns)
    assert right == 1.0 and other == (0.1 if form == "reward_input" else 0.0)


@pytest.mark.parametrize("form", ["reward_input", "reward_inputs"])
def test_the_parts_of_a_reward_become_metrics(form: str):
    metrics: dict[str, float] = {}
    columns = {**{name: column * 2 for name, column in COLUMNS.items()}, "log_metric": metrics.__setitem__}
    assert to_batch_reward("own", function_of(FUNCTIONS[form]))(completions=[MESSAGES] * 2, **columns) == [1.0, 1.0]
    assert metrics == {"own/format": 0.25, "own/accuracy": 1.0}


@pytest.mark.parametrize(
    ("signature", "form"),
    [
        ("completion, row", "record"),
        ("completion, _", "record"),
        ("a, b: 'Record'", "record"),
        ("completion, record, num_tokens", "record"),
        ("text, label", "text"),
        ("predict_str, y", "text"),
        ("prompts, completions, **kwargs", "columns"),
        ("reward_input", "reward_input"),
        ("one: 'RewardInput'", "reward_input"),
        ("all_of_them: 'list[dict]', weight=0.1", "reward_inputs"),
        ("solution_str, **kwargs", "verl"),
        ("data_source, solution_str, ground_truth, extra_info, *, k=1", "verl"),
        ("a, b", None),
        ("completion", None),
        ("", None),
        ("a, b, c", None),
        ("solution_str, other", None),
        ("*args, **kwargs", None),
    ],
)
def test_a_form_is_told_by_its_parameters(signature: str, form: str | None):
    assert find_signature(function_of(f"def f({signature}): return 0.0")) == form


@pytest.mark.parametrize(
    ("answer", "text"), [(5, "5"), (" red ", "red"), ([1, 2], "[1, 2]"), ("<answer>x</answer>", "x")]
)
def test_a_truth_is_text(answer: Any, text: str):
    columns = {"record": [Record(1, "q", answer)]}
    assert to_batch_reward("f", lambda response, gt: float(gt == text))(completions=["a"], **columns) == [1.0]


def test_a_column_of_the_data_is_given_as_it_is():
    seen = []
    function = to_batch_reward("f", lambda completions, solution, **columns: seen.extend(solution) or [0.0])
    function(completions=["a"], record=[RECORD], solution=[8])
    assert seen == [8]


def test_a_column_that_is_not_there_is_named():
    function = to_batch_reward("f", lambda completions, teacher, **columns: [0.0])
    with pytest.raises(
        RuntimeError, match=r"reward 'f': TypeError: requires teacher, which is not in the data; .*scene"
    ):
        function(completions=["a"], **COLUMNS)


@pytest.mark.parametrize("code", [FUNCTIONS["reward_input"], FUNCTIONS["reward_inputs"], FUNCTIONS["verl"]])
def test_a_dict_without_the_reward_is_refused(code: str):
    function = function_of(code.replace("'overall'", "'total'").replace("'score'", "'total'"))
    with pytest.raises(RuntimeError, match=r"reward 'f'.*a dict must have the reward as 'overall' or 'score'"):
        to_batch_reward("f", function)(prompts=["q"], completions=[MESSAGES], **COLUMNS)
