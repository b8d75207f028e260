"""The part of docs/rewards.md on own rewards: a function of each form, with what it is called with."""

from __future__ import annotations

from collections.abc import Mapping

from vlm_grpo.rewards.user_rewards import SIGNATURES

# Each gives 1 for a right answer; the code of a form, and what there is to know of it.
OWN_REWARDS: Mapping[str, tuple[str, str]] = {
    "record": (
        """def exact(completion, record):
    return float(f"<answer>{record.answer}</answer>" in completion)""",
        "`completion` is the assistant's whole turn as text; `record` has `question`, `answer` as the data hold it, "
        "`images`, `task`, `options`, `reference_steps`, and all other columns in `record.extra`. Keyword parameters "
        "`num_tokens` and `messages` are filled in.",
    ),
    "text": (
        """def exact(response, ground_truth):
    return 1.0 if f"<answer>{ground_truth}</answer>" in response else 0.0""",
        '`ground_truth` is text: the answer 5 is `"5"`, lists and objects are JSON, `<answer>` tags are taken off. The '
        "second parameter may be called `gt`, `answer`, `solution`, `truth`, `target`, `label`, `reference`, `gold` or "
        "`expected`; beside a first one called `response`, `predict`, `predict_str`, `prediction` or `pred` anything.",
    ),
    "columns": (
        """import re


def exact(completions, solution, **kwargs):
    texts = [completion[0]["content"] for completion in completions]
    truths = [re.search("<answer>(.*?)</answer>", text)[1].strip() for text in solution]
    return [float(f"<answer>{truth}</answer>" in text) for text, truth in zip(texts, truths)]""",
        "All completions at once, as lists of messages, and a list for each column; a function must end with "
        "`**kwargs`. It may be a coroutine function. Columns of the data come as they are. Where the data have none of "
        "that name, VLM-R1's columns are there as VLM-R1 makes them: `problem` (the question without `<image>`), "
        "`solution` (`<answer> 5 </answer>`), `image_path` (a list of paths), `accu_reward_method` (`default` without "
        "one); and `ground_truth`, the answer as text.",
    ),
    "reward_input": (
        """def compute_score(reward_input: dict) -> dict:
    right = float(f"<answer>{reward_input['ground_truth']}</answer>" in reward_input["response"])
    return {"overall": 0.9 * right + 0.1, "format": 1.0, "accuracy": right}""",
        "`response`, `response_length` in tokens, `ground_truth` as text, and the row's other columns. `overall` is "
        "the reward, the other numbers are logged as `compute_score/format` and so on. Told by the name `reward_input` "
        "or by an annotation `dict`.",
    ),
    "reward_inputs": (
        """def compute_score(reward_inputs: list) -> list:
    right = [float(f"<answer>{one['ground_truth']}</answer>" in one["response"]) for one in reward_inputs]
    return [{"overall": value, "accuracy": value} for value in right]""",
        "The same for all completions at once. Told by the name `reward_inputs` or by an annotation `list`.",
    ),
    "verl": (
        """def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": float(f"<answer>{ground_truth}</answer>" in solution_str)}""",
        "Called by keywords, told by the parameter `solution_str`. `data_source` is the row's column or its task, "
        "`extra_info` the row's column or all other columns. A number, or a dict with `score`.",
    ),
}
HEAD = """## Your own

`--reward_funcs file.py:function` or `file.py:function:WEIGHT`. What a function is called with goes by its parameters,
in the forms of this package and of the systems that users come from:
"""
TAIL = """
A function of none of these forms is refused with this list, before the data are read. Before the model is loaded each
own reward is called once, with the right answer of the first row as the completion: what it raises ends the run with
the line in its file, what it gives is printed (also by `--dry_run`). `vlm-grpo preview --reward_funcs file.py:function`
shows it for more rows. Tokens, and sizes of images as the model sees them, are stand-ins there.

An own reward has `--reward_time_limit` seconds for each call (600; 0 is no limit), also while its file is imported.
After a minute it is mentioned; at the limit the run ends with a line that names the reward and the row, on several
processes all of them. Rewards of the table, a judge among them, have limits of their own.

A reward that applies to no row of a run is refused before the model is loaded, and one that applies to some rows only
is said once: `iou` without a true box, `reasoning` without `reference_steps`, `mcq` whose truth names no option. Rows
that are scored for their form alone are named.
"""


def section() -> str:
    """Return the section."""
    parts = [HEAD]
    for name, form in SIGNATURES.items():
        code, told = OWN_REWARDS[name]
        parts.append(f"**`{form.shape}`**, {form.source}. {told}\n\n```python\n{code}\n```\n")
    return "\n".join(parts) + TAIL
