"""RefCOCO, RefCOCO+ and RefCOCOg: pickled lists of references, read without executing code in the pickle.

Files as published with https://github.com/lichengunc/refer: `refs(unc).p`, `refs(umd).p`, `refs(google).p`.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm_grpo.data.datasets.coco import Instances, NewRow, box_row
from vlm_grpo.data.errors import DataError, Problem, show_value
from vlm_grpo.data.readers.text_files import unreadable
from vlm_grpo.file_checks import check_regular
from vlm_grpo.records import JsonObject

PICKLE_ERRORS = (EOFError, ValueError, LookupError, TypeError, AttributeError, OverflowError, MemoryError, ImportError)


@dataclass(frozen=True, slots=True)
class Sentence:
    """One expression for an object."""

    id: int
    text: str


@dataclass(frozen=True, slots=True)
class Ref:
    """One object and its referring expressions."""

    id: int
    object_id: int
    split: str
    sentences: tuple[Sentence, ...]


class _PlainUnpickler(pickle.Unpickler):
    """Unpickle lists, dicts, tuples, numbers and text; any other name raises before it is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it references {module}.{name}")


def read_refs(path: str | Path, instances: Instances) -> tuple[list[Ref], list[Problem]]:
    """Read the references of a file and the problems of those that are skipped.

    Raises:
        DataError: the file is missing, is not a pickle of plain values, or contains no references.
    """
    entries = _load(Path(path))
    refs: list[Ref] = []
    problems: list[Problem] = []
    ref_ids: set[int] = set()
    for index, entry in enumerate(entries):
        number = entry.get("ref_id") if isinstance(entry, Mapping) else None
        where = f"{path} [{index}] (ref_id {show_value(number)})"
        entry_problems = list(_validate_ref(entry, instances, ref_ids))
        problems += [Problem(where, *problem) for problem in entry_problems]
        if not entry_problems and isinstance(number, int):
            ref_ids.add(number)
            sentences = tuple(
                Sentence(sentence["sent_id"], sentence["sent"].strip()) for sentence in entry["sentences"]
            )
            refs.append(Ref(number, entry["ann_id"], entry["split"], sentences))
    return refs, problems


def _load(path: Path) -> list[JsonObject]:
    expected = "a pickled list of references: lists, dicts, numbers and text only"
    try:
        content = _unpickled(path)
    except OSError as error:
        raise DataError([unreadable(path, error)]) from error
    except (pickle.UnpicklingError, *PICKLE_ERRORS) as error:
        raise DataError([Problem(str(path), "file", str(error) or type(error).__name__, expected)]) from error
    if not isinstance(content, list) or not content:
        raise DataError([Problem(str(path), "file", f"{type(content).__name__} {show_value(content)}", expected)])
    return content


def _unpickled(path: Path) -> object:
    """Return the content of a pickle; text written by Python 2 is loaded as bytes, usually ASCII."""
    check_regular(path)
    try:
        with path.open("rb") as file:
            return _PlainUnpickler(file, encoding="utf-8").load()
    except UnicodeDecodeError:
        with path.open("rb") as file:
            return _PlainUnpickler(file, encoding="latin-1").load()


def _validate_ref(entry: object, instances: Instances, ref_ids: set[int]) -> Iterator[tuple[str, str, str]]:
    if not isinstance(entry, Mapping):
        yield "ref", f"{type(entry).__name__} {show_value(entry)}", "a dict"
        return
    number, object_id = entry.get("ref_id"), entry.get("ann_id")
    if type(number) is not int or number in ref_ids:
        yield "ref_id", show_value(number), "a unique integer"
    target = instances.objects.get(object_id) if type(object_id) is int else None
    if target is None:
        yield "ann_id", show_value(object_id), f"the id of a usable annotation of {instances.name}"
    elif entry.get("image_id") != target.image_id:
        yield "image_id", show_value(entry.get("image_id")), f"{target.image_id}, the image of annotation {object_id}"
    if not isinstance(entry.get("split"), str) or not entry["split"]:
        yield "split", show_value(entry.get("split")), "the name of a split"
    yield from _validate_sentences(entry.get("sentences"))


def _validate_sentences(sentences: object) -> Iterator[tuple[str, str, str]]:
    if not isinstance(sentences, list | tuple) or not sentences:
        yield "sentences", show_value(sentences), 'a list of {"sent_id": ..., "sent": ...}'
        return
    for number, sentence in enumerate(sentences):
        text = sentence.get("sent") if isinstance(sentence, Mapping) else None
        if not isinstance(text, str) or not text.strip():
            yield f"sentences[{number}].sent", show_value(text), "the text of the expression"
        elif type(sentence.get("sent_id")) is not int:
            yield f"sentences[{number}].sent_id", show_value(sentence.get("sent_id")), "a whole number"


def referring_rows(refs: Sequence[Ref], instances: Instances, *, first_only: bool = False) -> Iterator[NewRow]:
    """Yield a `rec` row for each expression, or for the first of each reference; boxes are in original pixels."""
    for ref in refs:
        target = instances.objects[ref.object_id]
        for sentence in ref.sentences[:1] if first_only else ref.sentences:
            row = box_row(f"ref{ref.id}_sent{sentence.id}", sentence.text, target, instances)
            yield {**row, "ref_id": ref.id}
