"""BM25 search in the user's own documents: a single file, without network, server or additional packages.

The file is a SQLite database of passages and, for each word, the passages that contain it with the word's part of their
score (precomputed, arXiv:2407.03618). A query sums the parts of its words. SQLite's own full-text
search computes the score of every passage for every query, which takes over 100 ms for common words.
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlm_grpo.data.errors import DataError, Problem
from vlm_grpo.envs.retrieval.corpus import ColumnNames, Document, read_documents, split_passages
from vlm_grpo.io import refuse_existing, whole_file

K1, B = 1.2, 0.75  # parameters of BM25: term frequency saturation, length normalization
MAX_QUERY_LENGTH = 10_000  # characters; longer queries are truncated
MAX_QUERY_WORDS = 32  # only the rarest distinct words are used
SHORTEST = 40  # minimum length of a returned passage
APPLICATION, VERSION = 0x766C6D67, 1  # application id and version in the SQLite header
# Scripts without spaces between words: every character is a word. Marks that belong to the letter before them.
ALONE = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
OPTIONAL_MARKS = "\u0300-\u036f\u0591-\u05c7\u064b-\u065f"  # accents, and the vowel points of Hebrew and Arabic
MARKS = rf"{OPTIONAL_MARKS}\u0900-\u0963\u0966-\u0dff"
WORD = re.compile(rf"[{ALONE}]|(?:[^\W_{ALONE}]|[{MARKS}])+")
ACCENTS = re.compile(rf"[{OPTIONAL_MARKS}]")
TABLES = """
CREATE TABLE facts (documents INTEGER, passages INTEGER, words INTEGER);
CREATE TABLE passages (number INTEGER PRIMARY KEY, id TEXT, title TEXT, text TEXT);
CREATE TABLE words (word TEXT PRIMARY KEY, found INTEGER, numbers BLOB, shares BLOB);
"""


class SearchResult(NamedTuple):
    """A retrieved passage; a higher `score` is better, None if a server gives none."""

    id: str
    title: str
    passage: str
    score: float | None


class IndexSize(NamedTuple):
    """The size of an index."""

    documents: int
    passages: int
    words: int


def tokenize(text: str) -> list[str]:
    """Return the words of a text in order, without case, accents and punctuation; unspaced scripts by character."""
    return [normalize_word(word) for word in WORD.findall(unicodedata.normalize("NFC", text))]


def normalize_word(word: str) -> str:
    """Return the normalized form of a word."""
    return word.lower() if word.isascii() else _without_accents(word)


@lru_cache(maxsize=65536)
def _without_accents(word: str) -> str:
    letters = unicodedata.normalize("NFKD", word)
    return ACCENTS.sub("", letters).casefold()


def write_index(
    sources: Sequence[str], path: str | Path, *, keys: ColumnNames | None = None, overwrite: bool = False
) -> IndexSize:
    """Index documents (see `read_documents`) into one file, which is there whole or not at all.

    Needs about 20 bytes of memory per distinct word of each passage.

    Raises:
        DataError: documents cannot be read; the message lists all of them.
        OSError: the file exists and `overwrite` is False, or it cannot be written.
    """
    refuse_existing([path], overwrite=overwrite)
    try:
        with whole_file(path) as file, closing(sqlite3.connect(file.name, isolation_level=None)) as base:
            base.executescript(f"PRAGMA page_size=16384; PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; {TABLES}")
            base.executescript(f"PRAGMA application_id={APPLICATION}; PRAGMA user_version={VERSION}; BEGIN")
            indexed = _write_documents(base, read_documents(sources, keys))
            base.execute("COMMIT")
    except sqlite3.Error as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    return indexed


def _write_documents(base: sqlite3.Connection, documents_or_problems: Iterable[Document | Problem]) -> IndexSize:
    counts, documents = _TermCounts(), 0
    problems: list[Problem] = []
    for item in documents_or_problems:
        if isinstance(item, Problem):
            problems.append(item)
        elif not problems:  # after a problem nothing is stored; the remaining documents are only checked
            documents += 1
            base.executemany("INSERT INTO passages VALUES (?, ?, ?, ?)", counts.add(item))
    if problems:
        raise DataError(problems)
    base.executemany("INSERT INTO words VALUES (?, ?, ?, ?)", counts.postings())
    indexed = IndexSize(documents, len(counts.lengths), len(counts.vocabulary))
    base.execute("INSERT INTO facts VALUES (?, ?, ?)", indexed)
    return indexed


class _TermCounts:
    """Counts of each word in each passage."""

    def __init__(self) -> None:
        self.vocabulary: dict[str, int] = {}
        self.lengths = array("i")
        self.words, self.passages, self.counts = (array("i") for _ in range(3))  # one of each for a word in a passage

    def add(self, document: Document) -> Iterator[tuple[int, str, str, str]]:
        """Count the words of a document's passages, each with the title, and yield the rows of the table."""
        for text in split_passages(document.text):
            number = len(self.lengths)
            counts = Counter(tokenize(f"{document.title}\n{text}"))
            self.lengths.append(counts.total())
            self.words.extend(self.vocabulary.setdefault(word, len(self.vocabulary)) for word in counts)
            self.passages.extend([number] * len(counts))
            self.counts.extend(counts.values())
            yield number, document.id, document.title, text

    def postings(self) -> Iterator[tuple[str, int, bytes, bytes]]:
        """Yield for each word how many passages contain it, their numbers in order, and its part of each score."""
        words, numbers, times = (np.frombuffer(column, np.int32) for column in (self.words, self.passages, self.counts))
        lengths = np.frombuffer(self.lengths, np.int32)
        document_counts = np.bincount(words, minlength=len(self.vocabulary))
        weights = idf(document_counts, len(lengths))
        damping = K1 * (1 - B + B * lengths / max(1.0, lengths.mean() if len(lengths) else 0.0))
        order = np.argsort(words, kind="stable")
        ends = np.cumsum(document_counts)
        for word, at in self.vocabulary.items():
            entries = order[ends[at] - document_counts[at] : ends[at]]
            often = times[entries].astype(np.float64)
            shares = weights[at] * often * (K1 + 1) / (often + damping[numbers[entries]])
            yield word, int(document_counts[at]), numbers[entries].tobytes(), shares.astype(np.float32).tobytes()


def idf(counts: np.ndarray, num_passages: int) -> np.ndarray:
    """Return the inverse document frequency of words by their number of passages; never negative."""
    return np.log1p((num_passages - counts + 0.5) / (counts + 0.5))


class SearchIndex:
    """A file of `write_index`, open for reading by any number of threads and processes.

    Raises:
        ValueError: the file is not an index.
        OSError: the file cannot be read.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with self.path.open("rb"):
            pass  # SQLite's error message for a missing file is unclear
        self.lock, self.process = threading.Lock(), 0
        with self._connection() as base:
            self._check(base)
            self.indexed = IndexSize(*base.execute("SELECT documents, passages, words FROM facts").fetchone())

    def __len__(self) -> int:
        """Return the number of documents."""
        return self.indexed.documents

    def search(self, query: str, top: int = 3, characters: int = 500) -> list[SearchResult]:
        """Return the best passages, each cut around the query's words; empty if no word is known.

        Ties are in the order of the documents. Queries consist of words only; there are no operators.

        Raises:
            ValueError: `top` or `characters` (at least 40) is too small.
        """
        if top < 1 or characters < SHORTEST:
            raise ValueError(f"top must be at least 1 and characters at least {SHORTEST}, got {top} and {characters}")
        with self._connection() as base:
            words = self._words(base, query)
            best = _top_scores(self._scores(words), top)
            weights = {word: weight for word, weight, *_ in words}
            return [self._result(base, number, score, weights, characters) for number, score in best]

    def _words(self, base: sqlite3.Connection, query: str) -> list[tuple[str, float, bytes, bytes]]:
        """Return the query's indexed words, with their weights and postings."""
        query_words = sorted(set(tokenize(query[:MAX_QUERY_LENGTH])))
        sql = "SELECT found FROM words WHERE word = ?"
        rows = [(row[0], word) for word in query_words if (row := base.execute(sql, (word,)).fetchone())]
        rarest = sorted(rows)[:MAX_QUERY_WORDS]
        weights = idf(np.array([count for count, _ in rarest]), self.indexed.passages).tolist()
        sql = "SELECT numbers, shares FROM words WHERE word = ?"
        return [
            (word, weight, *base.execute(sql, (word,)).fetchone())
            for (_, word), weight in zip(rarest, weights, strict=True)
        ]

    def _scores(self, words: Iterable[tuple[str, float, bytes, bytes]]) -> np.ndarray:
        scores = np.zeros(self.indexed.passages, np.float32)  # (passages,)
        for _, _, numbers, shares in words:
            scores[np.frombuffer(numbers, np.int32)] += np.frombuffer(shares, np.float32)  # numbers are unique
        return scores

    def _result(
        self, base: sqlite3.Connection, number: int, score: float, weights: dict[str, float], characters: int
    ) -> SearchResult:
        name, title, text = base.execute("SELECT id, title, text FROM passages WHERE number = ?", (number,)).fetchone()
        return SearchResult(name, title, snippet(text, weights, characters), score)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection, for one query at a time; a forked process opens its own.

        Concurrent queries would be slower: SQLite releases the GIL at every step of a query, and
        would have to reacquire it each time.
        """
        with self.lock:
            if self.process != os.getpid():
                where = f"{self.path.absolute().as_uri()}?mode=ro"
                self.process, self.base = os.getpid(), sqlite3.connect(where, uri=True, check_same_thread=False)
                self.base.execute("PRAGMA mmap_size=1073741824")
            yield self.base

    def _check(self, base: sqlite3.Connection) -> None:
        make = f"expected version {VERSION} of an index; make one with: vlm-grpo index DOCUMENTS --output FILE"
        try:
            marks = [base.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{self.path}: got another kind of file, {make}") from error
        if marks != [APPLICATION, VERSION]:
            what = f"version {marks[1]}" if marks[0] == APPLICATION else "another kind of file"
            raise ValueError(f"{self.path}: got {what}, {make}")


@lru_cache(maxsize=8)
def open_index(path: str) -> SearchIndex:
    """Return the index in a file, opened once for all episodes of a process."""
    return SearchIndex(path)


def _top_scores(scores: np.ndarray, top: int) -> list[tuple[int, float]]:
    """Return the numbers and scores of the best passages above zero, best first, ties by number."""
    candidates = np.flatnonzero(scores)
    if len(candidates) > top:
        candidate_scores = scores[candidates]
        least = np.partition(candidate_scores, len(candidate_scores) - top)[len(candidate_scores) - top]
        above = candidates[candidate_scores > least]
        candidates = np.concatenate([above, candidates[candidate_scores == least][: top - len(above)]])
    order = np.lexsort((candidates, -scores[candidates]))
    return [(int(number), float(scores[number])) for number in candidates[order]]


def snippet(text: str, weights: dict[str, float], characters: int) -> str:
    """Return the part of a text with most of the words, on one line of at most `characters` characters."""
    text = " ".join(text.split())
    if len(text) <= characters:
        return text
    room = characters - 8  # " ..." on both sides
    start, end = _span(text, weights, room)
    start = max(0, min(start - (room - (end - start)) // 2, len(text) - room))
    end = start + room
    if start > 0 and not text[start - 1].isspace():
        start = next((at for at in range(start, min(end, start + 40)) if text[at].isspace()), start)
    if end < len(text) and not text[end].isspace():
        end = next((at for at in range(end, max(start, end - 40), -1) if text[at].isspace()), end)
    middle = text[start:end].strip()
    return f"{'... ' if start > 0 else ''}{middle}{' ...' if end < len(text) else ''}"


def _span(text: str, weights: dict[str, float], room: int) -> tuple[int, int]:
    """Return the span of words, at most `room` characters long, whose distinct words weigh most."""
    spans = [(match.start(), match.end(), normalize_word(match[0])) for match in WORD.finditer(text)]
    spans = [span for span in spans if span[2] in weights]
    inside: Counter[str] = Counter()
    first, weight, best, where = 0, 0.0, -1.0, (0, 0)
    for start, end, word in spans:
        weight += weights[word] if not inside[word] else 0.0
        inside[word] += 1
        while end - spans[first][0] > room and spans[first][0] < start:
            gone = spans[first][2]
            inside[gone] -= 1
            weight -= weights[gone] if not inside[gone] else 0.0
            first += 1
        if weight > best + 1e-9:
            best, where = weight, (spans[first][0], end)
    return where
