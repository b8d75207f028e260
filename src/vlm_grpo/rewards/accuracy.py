"""Accuracy: whether the answer is correct, by the record's own method or by an LLM judge (judge_client.py)."""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from typing import Any

from vlm_grpo.answer_parser import (
    compatible,
    extract_json,
    ground_truth_text,
    parse_answer,
    same_width,
    without_end_marks,
)
from vlm_grpo.records import Record
from vlm_grpo.registry import Table
from vlm_grpo.rewards.coco_ap import od_ap, od_ap50, od_length
from vlm_grpo.rewards.detection import detection, weighted_sum
from vlm_grpo.rewards.iou import box_overlap
from vlm_grpo.rewards.judge_client import Case, JudgeSettings, judge_of, speaks_to_judge
from vlm_grpo.rewards.mask import mask_overlap
from vlm_grpo.rewards.math_verify import equal, verify_all
from vlm_grpo.rewards.mcq import choices, normalise
from vlm_grpo.rewards.numeric import agree, calendar_date, quantity
from vlm_grpo.tasks import TASKS

JUDGED = ("judge", "llm")
NOTHING = "no defect"  # how VLM-R1's data of user interfaces say that a list of defects is empty
YES_NO = re.compile(r"\b(?:yes|no)\b")


def exact(answer: str, truth: str, record: Record) -> float | None:
    """Equal but for surrounding white space."""
    return float(unicodedata.normalize("NFC", answer.strip()) == unicodedata.normalize("NFC", truth.strip()))


def text(answer: str, truth: str, record: Record) -> float | None:
    """Equal but for case, white space, articles and trailing punctuation."""
    return float(normalise(answer) == normalise(truth))


def mcq(answer: str, truth: str, record: Record) -> float | None:
    """The same letter or letters, or the text of the right option; not applicable when the truth names no option."""
    right = choices(truth, record.options)
    return None if right is None else float(choices(answer, record.options) == right)


def yes_no(answer: str, truth: str, record: Record) -> float | None:
    """The same of yes and no, as whole words; not applicable when the truth is neither (or both)."""
    right = set(YES_NO.findall(compatible(truth).lower()))
    return None if len(right) != 1 else float(set(YES_NO.findall(compatible(answer).lower())) == right)


def numeric(answer: str, truth: str, record: Record) -> float | None:
    """The same number in the same unit, or the same day; not applicable when the truth is neither.

    A `tolerance` column (relative) of the record widens what counts as the same.
    """
    truth, answer = _plain_number(truth), _plain_number(answer)
    day = calendar_date(truth)
    if day is not None:
        return float(calendar_date(answer) == day)
    right = quantity(truth)
    if right is None:
        return None
    given = quantity(answer)
    return float(given is not None and agree(given, right, record.extra.get("tolerance")))


def _plain_number(text: str) -> str:
    return text if text.isascii() else without_end_marks(same_width(text))


def symbolic(answer: str, truth: str, record: Record) -> float | None:
    """Equal as mathematics, by math-verify with the truth as gold."""
    return float(equal(same_width(truth), same_width(answer)))


def items(value: str) -> list[str]:
    """The normalised items of a JSON list, or of text separated by commas."""
    parsed = extract_json(value)
    if parsed is None:
        parsed = value.split(",")
    elements = parsed if isinstance(parsed, list) else [parsed]
    return [normalise(item) if isinstance(item, str) else _plain(item) for item in elements]


def _plain(item: Any) -> str:
    return repr(item) if type(item) in (int, float) else normalise(json.dumps(item, sort_keys=True))


def all_match(answer: str, truth: str, record: Record) -> float | None:
    """The same items, each as often, in any order; `No Defect` alone is the empty list."""
    return float(_counted(answer) == _counted(truth))


def _counted(value: str) -> Counter[str]:
    found = items(value)
    return Counter() if found == [NOTHING] else Counter(found)


def same_object(answer: str, truth: str, record: Record) -> float | None:
    """The same JSON, whatever its spacing and the order of its keys; not applicable when the truth is none."""
    right = extract_json(truth)
    return None if right is None else float(extract_json(answer) == right)


def list_in_order(answer: str, truth: str, record: Record) -> float | None:
    """The same items in the same order."""
    return float(items(answer) == items(truth))


def judged(answer: str, truth: str, record: Record, judge: JudgeSettings | None = None) -> float | None:
    """What a language model says, 0 to 1; where it says nothing, the record's `fallback_method`, else `auto`."""
    asked = judge_of(judge)
    score = None if speaks_to_judge(answer) else asked.score(_case(answer, truth, record))
    if score is not None:
        return score
    fallback = record.extra.get("fallback_method")
    return METHODS[fallback if fallback in METHODS and fallback not in JUDGED else "auto"](answer, truth, record)


def _case(answer: str, truth: str, record: Record) -> Case:
    return Case(record.question.replace("<image>", "").strip(), truth, answer)


def auto(answer: str, truth: str, record: Record) -> float | None:
    """By the type of the true answer: a choice, yes or no, a number or day, a list, mathematics, otherwise text."""
    return METHODS[kind(truth, record.options)](answer, truth, record)


def default(answer: str, truth: str, record: Record) -> float | None:
    """By the task: `iou` for rec and grounding, `mask_iou` for seg, ...; `auto` for a task without a method."""
    return METHODS[task_method(record.task) or "auto"](answer, truth, record)


@lru_cache(maxsize=65536)
def kind(truth: str, options: tuple[str, ...]) -> str:
    """The method that fits a true answer: a choice, yes or no, a number or day, a list, mathematics, otherwise text."""
    if options and choices(truth, options) is not None:
        return "mcq"
    if normalise(truth) in ("yes", "no"):
        return "yes_no"
    if calendar_date(_plain_number(truth)) is not None or quantity(_plain_number(truth)) is not None:
        return "numeric"
    if isinstance(value := extract_json(truth), list | dict):
        return "all_match" if isinstance(value, list) else "json"
    return "math" if "$" in truth or "\\" in truth else "text"


METHODS: Table[Callable[[str, str, Record], float | None]] = Table(
    "accuracy method",
    {
        "auto": auto,
        "default": default,
        "exact": exact,
        "text": text,
        "mcq": mcq,
        "yes_no": yes_no,
        "numeric": numeric,
        "math": symbolic,
        "all_match": all_match,
        "list": list_in_order,
        "json": same_object,
        "iou": box_overlap,
        "mask_iou": mask_overlap,
        "detection": detection,
        "od_ap": od_ap,
        "od_ap50": od_ap50,
        "map": od_ap,  # VLM-R1's names, with this package's meaning of an invented label
        "odLength": od_length,
        "weighted_sum": weighted_sum,
        "judge": judged,
        "llm": judged,  # VLM-R1's name
    },
)


def accuracy_reward(
    completion: str, record: Record, *, tolerance: float | None = None, judge: JudgeSettings | None = None
) -> float | None:
    """1.0 for the right answer by the record's method, 0.0 for a wrong one or none; None without a true answer.

    The task names the method where the record does not: the IoU of boxes for rec and grounding, of masks for seg.
    Boxes, masks, lists of boxes and judged answers earn anything between.

    Args:
        tolerance: The relative error that a number may have (default: integers exact, decimals 1e-6).
        judge: Which model decides where the method is `judge`; default: from the environment.
    """
    if record.answer is None:
        return None
    answer = given_answer(completion, record)
    if answer is None:
        return 0.0
    if tolerance is not None:
        record = replace(record, extra={"tolerance": tolerance, **record.extra})
    method = method_of(record)
    if method in JUDGED:
        return judged(answer, ground_truth_text(record.answer), record, judge)
    return METHODS[method](answer, ground_truth_text(record.answer), record)


def method_of(record: Record) -> str:
    """The record's own method, else that of its task, else `auto`; `default` is as good as none."""
    own = None if record.method == "default" else record.method
    method = own or task_method(record.task) or "auto"
    # The prompt of such a row asks for a letter, also where the task is mathematics.
    is_choice = own is None and method == "math" and record.options and record.answer is not None
    return "mcq" if is_choice and choices(ground_truth_text(record.answer), record.options) is not None else method


def task_method(task: str) -> str | None:
    """How a task scores accuracy; None leaves it to the type of the true answer."""
    return TASKS[task].method if task in TASKS else None


def meaning(record: Record) -> str:
    """What `accuracy` is for a record, as users are told: the method, where it comes from, and what is right by it."""
    method = method_of(record)
    by = f" (task {record.task})" if record.method in (None, "default") and task_method(record.task) else ""
    return f"{method}{by}: {(METHODS[method].__doc__ or '').strip().splitlines()[0]}"


def given_answer(completion: str, record: Record) -> str | None:
    r"""The completion's answer; a record scored as mathematics may also give it in `\boxed{}`."""
    as_math = record.method == "math" and record.task == "default"
    return parse_answer(completion, "math" if as_math else record.task)


def prepare_accuracy(
    completions: Sequence[str],
    records: Sequence[Record],
    *,
    judge: JudgeSettings | None = None,
    log_metric: Callable[[str, float], None] | None = None,
) -> None:
    """Verify the mathematics and ask the judge about these completions, all at the same time.

    `log_metric(name, value)` is told how many answers were for the judge (`judge/asked`) and how many were scored
    without it (`judge/fallbacks`).
    """
    pairs, cases = [], []
    for completion, record in zip(completions, records, strict=True):
        if record.answer is None:
            continue
        truth = ground_truth_text(record.answer)
        method = method_of(record)
        is_math = method == "math" or (method == "auto" and kind(truth, record.options) == "math")
        answer = given_answer(completion, record) if is_math or method in JUDGED else None
        if answer is not None:
            pair = (same_width(truth), same_width(answer))
            (pairs if is_math else cases).append(pair if is_math else _case(answer, truth, record))
    with ThreadPoolExecutor(1) as thread:
        asking = thread.submit(_ask, cases, judge, log_metric) if cases else None
        if pairs:
            verify_all(pairs)
        if asking is not None:
            asking.result()


def _ask(cases: list[Case], judge: JudgeSettings | None, log_metric: Callable[[str, float], None] | None) -> None:
    asked = judge_of(judge)
    fit = [case for case in cases if not speaks_to_judge(case.answer)]
    missing = len(cases) - len(fit) + asked.prepare(fit)
    if log_metric is not None:
        log_metric("judge/asked", len(cases))
        log_metric("judge/fallbacks", missing)


def judge_reward(
    completion: str, record: Record, *, judge: JudgeSettings | None = None, tolerance: float | None = None
) -> float | None:
    """How right a language model finds the answer, 0 to 1; 0 without an answer, None without a true one.

    Where the model gives no verdict (a failed request, a reply without a score) or the answer speaks to it, the
    record's own accuracy method decides. Only the answer is shown to the model, never the reasoning.

    Args:
        judge: Which model and server; default: from the environment (JUDGE_MODEL, JUDGE_BASE_URL, JUDGE_API_KEY).
        tolerance: As for `accuracy`, where that decides.
    """
    return accuracy_reward(completion, _judged(record), judge=judge, tolerance=tolerance)


def prepare_judge(
    completions: Sequence[str],
    records: Sequence[Record],
    *,
    judge: JudgeSettings | None = None,
    log_metric: Callable[[str, float], None] | None = None,
) -> None:
    """Ask about all answers at the same time.

    Raises:
        ValueError: no model is named.
        ImportError: the package openai is missing.
    """
    judge_of(judge)
    prepare_accuracy(completions, [_judged(record) for record in records], judge=judge, log_metric=log_metric)


def _judged(record: Record) -> Record:
    """The record with a judge as its method; its own, for where there is no verdict, is kept beside it."""
    return replace(record, method="judge", extra={**record.extra, "fallback_method": method_of(record)})
