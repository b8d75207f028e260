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

from vlm_grpo.answer_parser import (
    extract_json,
    ground_truth_text,
    normalize_nfkc,
    normalize_width,
    parse_answer,
    strip_end_punctuation,
)
from vlm_grpo.records import Record
from vlm_grpo.registry import Registry
from vlm_grpo.rewards.coco_ap import od_ap, od_ap50, od_length
from vlm_grpo.rewards.detection import detection, weighted_sum
from vlm_grpo.rewards.iou import box_overlap
from vlm_grpo.rewards.judge_client import JudgeQuery, JudgeSettings, get_judge, is_prompt_injection
from vlm_grpo.rewards.mask import mask_overlap
from vlm_grpo.rewards.math_verify import is_equivalent, verify_all
from vlm_grpo.rewards.mcq import normalize_text, parse_choices
from vlm_grpo.rewards.numeric import parse_date, parse_quantity, quantities_equal
from vlm_grpo.tasks import TASKS

JUDGE_METHODS = ("judge", "llm")
NO_DEFECT = "no defect"  # an empty list of defects in VLM-R1's GUI data
YES_NO = re.compile(r"\b(?:yes|no)\b")


def exact(answer: str, truth: str, record: Record) -> float | None:
    """Equal, ignoring surrounding whitespace."""
    return float(unicodedata.normalize("NFC", answer.strip()) == unicodedata.normalize("NFC", truth.strip()))


def text(answer: str, truth: str, record: Record) -> float | None:
    """Equal, ignoring case, whitespace, articles and trailing punctuation."""
    return float(normalize_text(answer) == normalize_text(truth))


def mcq(answer: str, truth: str, record: Record) -> float | None:
    """The same letter or letters, or the text of the correct option; not applicable if the gold answer names none."""
    target = parse_choices(truth, record.options)
    return None if target is None else float(parse_choices(answer, record.options) == target)


def yes_no(answer: str, truth: str, record: Record) -> float | None:
    """The same of yes and no, as a whole word; not applicable if the gold answer has neither (or both)."""
    target = set(YES_NO.findall(normalize_nfkc(truth).lower()))
    return None if len(target) != 1 else float(set(YES_NO.findall(normalize_nfkc(answer).lower())) == target)


def numeric(answer: str, truth: str, record: Record) -> float | None:
    """The same number in the same unit, or the same date; not applicable if the gold answer is neither.

    The record's column `tolerance` sets the allowed relative error.
    """
    truth, answer = _plain_number(truth), _plain_number(answer)
    day = parse_date(truth)
    if day is not None:
        return float(parse_date(answer) == day)
    target = parse_quantity(truth)
    if target is None:
        return None
    predicted = parse_quantity(answer)
    return float(predicted is not None and quantities_equal(predicted, target, record.extra.get("tolerance")))


def _plain_number(text: str) -> str:
    return text if text.isascii() else strip_end_punctuation(normalize_width(text))


def math_equal(answer: str, truth: str, record: Record) -> float | None:
    """Mathematically equal to the gold answer, by math-verify."""
    return float(is_equivalent(normalize_width(truth), normalize_width(answer)))


def list_items(value: str) -> list[str]:
    """Return the normalized items of a JSON list, or of text separated by commas."""
    parsed = extract_json(value)
    if parsed is None:
        parsed = value.split(",")
    elements = parsed if isinstance(parsed, list) else [parsed]
    return [normalize_text(item) if isinstance(item, str) else _normalize_item(item) for item in elements]


def _normalize_item(item: object) -> str:
    return repr(item) if type(item) in (int, float) else normalize_text(json.dumps(item, sort_keys=True))


def multiset_equal(answer: str, truth: str, record: Record) -> float | None:
    """The same items with the same counts, in any order; `No Defect` alone is the empty list."""
    return float(_item_counts(answer) == _item_counts(truth))


def _item_counts(value: str) -> Counter[str]:
    elements = list_items(value)
    return Counter() if elements == [NO_DEFECT] else Counter(elements)


def json_equal(answer: str, truth: str, record: Record) -> float | None:
    """The same JSON value, ignoring whitespace and key order; not applicable if the gold answer is not JSON."""
    target = extract_json(truth)
    return None if target is None else float(extract_json(answer) == target)


def list_equal(answer: str, truth: str, record: Record) -> float | None:
    """The same items in the same order."""
    return float(list_items(answer) == list_items(truth))


def llm_judge(answer: str, truth: str, record: Record, judge: JudgeSettings | None = None) -> float | None:
    """The score of a language model, 0 to 1; if there is none, the record's `fallback_method`, else `auto`."""
    client = get_judge(judge)
    score = None if is_prompt_injection(answer) else client.score(_judge_query(answer, truth, record))
    if score is not None:
        return score
    fallback = record.extra.get("fallback_method")
    if not isinstance(fallback, str) or fallback not in METHODS or fallback in JUDGE_METHODS:
        fallback = "auto"
    return METHODS[fallback](answer, truth, record)


def _judge_query(answer: str, truth: str, record: Record) -> JudgeQuery:
    return JudgeQuery(record.question.replace("<image>", "").strip(), truth, answer)


def auto(answer: str, truth: str, record: Record) -> float | None:
    """By the type of the gold answer: choice, yes or no, number or date, list, mathematics, otherwise text."""
    return METHODS[infer_method(truth, record.options)](answer, truth, record)


def default(answer: str, truth: str, record: Record) -> float | None:
    """By the task: `iou` for rec and grounding, `mask_iou` for seg, ...; `auto` for tasks without a method."""
    return METHODS[task_method(record.task) or "auto"](answer, truth, record)


@lru_cache(maxsize=65536)
def infer_method(truth: str, options: tuple[str, ...]) -> str:
    """Return the method for a gold answer: choice, yes or no, number or date, list, mathematics, otherwise text."""
    if options and parse_choices(truth, options) is not None:
        return "mcq"
    if normalize_text(truth) in ("yes", "no"):
        return "yes_no"
    if parse_date(_plain_number(truth)) is not None or parse_quantity(_plain_number(truth)) is not None:
        return "numeric"
    if isinstance(value := extract_json(truth), list | dict):
        return "all_match" if isinstance(value, list) else "json"
    return "math" if "$" in truth or "\\" in truth else "text"


METHODS: Registry[Callable[[str, str, Record], float | None]] = Registry(
    "accuracy method",
    {
        "auto": auto,
        "default": default,
        "exact": exact,
        "text": text,
        "mcq": mcq,
        "yes_no": yes_no,
        "numeric": numeric,
        "math": math_equal,
        "all_match": multiset_equal,
        "list": list_equal,
        "json": json_equal,
        "iou": box_overlap,
        "mask_iou": mask_overlap,
        "detection": detection,
        "od_ap": od_ap,
        "od_ap50": od_ap50,
        "map": od_ap,  # VLM-R1's names; unknown labels are scored as in this package
        "odLength": od_length,
        "weighted_sum": weighted_sum,
        "judge": llm_judge,
        "llm": llm_judge,  # VLM-R1's name
    },
)


def accuracy_reward(
    completion: str, record: Record, *, tolerance: float | None = None, judge: JudgeSettings | None = None
) -> float | None:
    """Return 1.0 for a correct answer by the record's method, else 0.0; None without a gold answer.

    If the record names no method, that of its task is used: IoU of boxes for rec and grounding, of masks for seg.
    Boxes, masks, lists of boxes and judged answers get a score from 0 to 1.

    Args:
        tolerance: Allowed relative error of numbers (default: 0 for integers, 1e-6 for decimals).
        judge: Model for the method `judge`; read from the environment by default.
    """
    if record.answer is None:
        return None
    answer = predicted_answer(completion, record)
    if answer is None:
        return 0.0
    if tolerance is not None:
        record = replace(record, extra={"tolerance": tolerance, **record.extra})
    method = method_of(record)
    if method in JUDGE_METHODS:
        return llm_judge(answer, ground_truth_text(record.answer), record, judge)
    return METHODS[method](answer, ground_truth_text(record.answer), record)


def method_of(record: Record) -> str:
    """Return the record's own method, else its task's, else `auto`; `default` counts as no method."""
    record_method = None if record.method == "default" else record.method
    method = record_method or task_method(record.task) or "auto"
    # The prompt of a row with options asks for a letter, even if the task is math.
    is_choice = record_method is None and method == "math" and record.options and record.answer is not None
    return (
        "mcq" if is_choice and parse_choices(ground_truth_text(record.answer), record.options) is not None else method
    )


def task_method(task: str) -> str | None:
    """Return the accuracy method of a task; None if it depends on the type of the gold answer."""
    return TASKS[task].method if task in TASKS else None


def describe_method(record: Record) -> str:
    """Return a description of how `accuracy` scores a record: the method, its origin and what counts as correct."""
    method = method_of(record)
    by = f" (task {record.task})" if record.method in (None, "default") and task_method(record.task) else ""
    return f"{method}{by}: {(METHODS[method].__doc__ or '').strip().splitlines()[0]}"


def predicted_answer(completion: str, record: Record) -> str | None:
    r"""Return the answer in a completion; for records scored as mathematics, `\boxed{}` is accepted as well."""
    as_math = record.method == "math" and record.task == "default"
    return parse_answer(completion, "math" if as_math else record.task)


def prepare_accuracy(
    completions: Sequence[str],
    records: Sequence[Record],
    *,
    judge: JudgeSettings | None = None,
    log_metric: Callable[[str, float], None] | None = None,
) -> None:
    """Run math-verify and the judge on these completions concurrently and cache the results.

    `log_metric(name, value)` receives the number of answers for the judge (`judge/asked`) and the number scored by
    another method instead (`judge/fallbacks`).
    """
    pairs: list[tuple[str, str]] = []
    queries: list[JudgeQuery] = []
    for completion, record in zip(completions, records, strict=True):
        if record.answer is None:
            continue
        truth = ground_truth_text(record.answer)
        method = method_of(record)
        is_math = method == "math" or (method == "auto" and infer_method(truth, record.options) == "math")
        answer = predicted_answer(completion, record) if is_math or method in JUDGE_METHODS else None
        if answer is not None and is_math:
            pairs.append((normalize_width(truth), normalize_width(answer)))
        elif answer is not None:
            queries.append(_judge_query(answer, truth, record))
    with ThreadPoolExecutor(1) as thread:
        judge_future = thread.submit(_query_judge, queries, judge, log_metric) if queries else None
        if pairs:
            verify_all(pairs)
        if judge_future is not None:
            judge_future.result()


def _query_judge(
    queries: list[JudgeQuery], judge: JudgeSettings | None, log_metric: Callable[[str, float], None] | None
) -> None:
    client = get_judge(judge)
    fit = [query for query in queries if not is_prompt_injection(query.answer)]
    missing = len(queries) - len(fit) + client.prepare(fit)
    if log_metric is not None:
        log_metric("judge/asked", len(queries))
        log_metric("judge/fallbacks", missing)


def judge_reward(
    completion: str, record: Record, *, judge: JudgeSettings | None = None, tolerance: float | None = None
) -> float | None:
    """Return a language model's score of the answer, 0 to 1; 0 without an answer, None without a gold answer.

    The record's own accuracy method is used instead if the model returns no score (a failed request, or a reply without
    one) or if the answer looks like a prompt injection. The model sees only the answer, never the reasoning.

    Args:
        judge: Model and server; read from JUDGE_MODEL, JUDGE_BASE_URL and JUDGE_API_KEY by default.
        tolerance: As for `accuracy`, for answers that it scores instead.
    """
    return accuracy_reward(completion, _with_judge_method(record), judge=judge, tolerance=tolerance)


def prepare_judge(
    completions: Sequence[str],
    records: Sequence[Record],
    *,
    judge: JudgeSettings | None = None,
    log_metric: Callable[[str, float], None] | None = None,
) -> None:
    """Query the judge about all answers concurrently and cache its scores.

    Raises:
        ValueError: no model is named.
        ImportError: the package openai is missing.
    """
    get_judge(judge)
    prepare_accuracy(
        completions, [_with_judge_method(record) for record in records], judge=judge, log_metric=log_metric
    )


def _with_judge_method(record: Record) -> Record:
    """Return the record with the method `judge`, its own method kept as the fallback."""
    return replace(record, method="judge", extra={**record.extra, "fallback_method": method_of(record)})
