from __future__ import annotations

import json
import math
import multiprocessing
import random
import sqlite3
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.data.files import write_jsonl
from vlm_grpo.data.errors import DataError
from vlm_grpo.envs.retrieval.bm25 import SearchIndex, snippet, tokenize, write_index
from vlm_grpo.envs.retrieval.corpus import MAX_PASSAGE_LENGTH, ColumnNames, split_passages

NASTY = ['"', '" OR *', "red AND NOT (", "text:red^2", "red*", "'; DROP TABLE words; --", "NEAR(red boat, 5)", "-red"]


def made(folder: Path, texts: list[str]) -> SearchIndex:
    rows = [{"id": f"d{number}", "title": "", "text": text} for number, text in enumerate(texts)]
    write_index([write_jsonl(folder / "rows.jsonl", rows)], folder / "made.index", overwrite=True)
    return SearchIndex(folder / "made.index")


def ids(index: SearchIndex, query: str, top: int = 10) -> list[str]:
    return [result.id for result in index.search(query, top)]


def bm25(texts: list[str], query: str) -> list[float]:
    """By the formula, document by document, with k1 = 1.2 and b = 0.75."""
    documents = [text.split() for text in texts]
    mean = sum(map(len, documents)) / len(documents)
    scores = []
    for words in documents:
        score = 0.0
        for word in set(query.split()):
            having = sum(word in other for other in documents)
            weight = math.log(1 + (len(documents) - having + 0.5) / (having + 0.5))
            times = words.count(word)
            score += weight * times * 2.2 / (times + 1.2 * (0.25 + 0.75 * len(words) / mean))
        scores.append(score)
    return scores


def test_scores_are_those_of_the_formula(tmp_path: Path):
    source = random.Random(0)
    letters = "abcdefghij"
    texts = [" ".join(source.choices(letters, range(1, 11), k=source.randint(1, 30))) for _ in range(200)]
    index = made(tmp_path, texts)
    for _ in range(50):
        query = " ".join(source.sample(letters, source.randint(1, 5)))
        expected = bm25(texts, query)
        found = index.search(query, 20)
        highest = sorted((score for score in expected if score), reverse=True)[:20]
        assert [result.score for result in found] == pytest.approx(highest, rel=1e-5)
        assert [expected[int(result.id[1:])] for result in found] == pytest.approx([r.score for r in found], rel=1e-5)


def test_equal_scores_are_in_the_order_of_the_documents(tmp_path: Path):
    index = made(tmp_path, ["red boat"] * 50 + ["red red boat"] + ["red boat"] * 50)
    assert ids(index, "red", 4) == ["d50", "d0", "d1", "d2"]
    assert index.search("boat red", 7) == index.search("red boat", 7)


def test_a_query_is_only_words(tmp_path: Path):
    index = made(tmp_path, ["red boat", "blue boat", "near and or not drop table"])
    for query in NASTY:
        assert index.search(query) == index.search(" ".join(tokenize(query))), query
    assert ids(index, NASTY[0]) == ids(index, "") == ids(index, "\0 \ud800 %") == []
    assert ids(index, "red boat " * 12_000) == ["d0", "d1"]
    assert len(index) == 3 and ids(index, "red") == ["d0"]


def test_of_very_many_words_the_rarest_count(tmp_path: Path):
    common = [f"w{number}" for number in range(60)]
    index = made(tmp_path, [" ".join(common)] * 9 + ["zebra"])
    assert "d9" in ids(index, " ".join([*common, "zebra"]))


@pytest.mark.parametrize(
    ("text", "query"),
    [
        ("Café Müller", "cafe MULLER"),
        ("Café", unicodedata.normalize("NFD", "café")),
        ("Straße", "STRASSE"),
        ("東京タワーは高い", "東京"),
        ("がっこう", unicodedata.normalize("NFD", "が")),
        ("हिन्दी भाषा", "हिन्दी"),
        ("שָׁלוֹם", "שלום"),
        ("Москва", "МОСКВА"),
        ("ＡＢＣ １２", "abc 12"),
        ("5,000 km²", "km2 000"),
    ],
)
def test_words_are_compared_without_case_and_accents_in_every_script(tmp_path: Path, text: str, query: str):
    index = made(tmp_path, ["something else", text])
    assert ids(index, query) == ["d1"]
    assert index.search(query)[0].passage == text


def test_a_word_is_not_part_of_another():
    assert tokenize("हिन्दी snake_case don't, 3.5!") == ["हिन्दी", "snake", "case", "don", "t", "3", "5"]


def test_a_snippet_shows_the_words_and_keeps_to_its_length():
    filler = "nothing of interest here " * 40
    text = f"{filler}red {filler}the red boat sank {filler}"
    weights = {"red": 1.0, "boat": 2.0}
    for characters in (40, 41, 57, 200, 500):
        found = snippet(text, weights, characters)
        assert "red boat" in found and len(found) <= characters
        assert found.startswith("... ") and found.endswith(" ...")
        assert len(found) > characters - 60 or characters < 60
    assert snippet("red  boat\n sank", weights, 40) == "red boat sank"
    assert snippet(text, {}, 40).startswith("nothing of")
    repeated = f"{filler}red red red red red {filler}red boat {filler}"
    assert "boat" in snippet(repeated, weights, 60), "different words count, not how often they stand there"
    assert "first" in snippet(f"{filler}red first {filler}red second {filler}", weights, 60)
    assert len(snippet("x" * 500 + "red" + "y" * 500, weights, 50)) <= 50


def test_a_long_text_is_cut_into_passages_that_lose_nothing(tmp_path: Path):
    paragraphs = [f"paragraph {number} " + "word " * 100 for number in range(400)]
    text = "\n\n".join(paragraphs)
    pieces = list(split_passages(text))
    assert all(MAX_PASSAGE_LENGTH // 2 <= len(piece) <= MAX_PASSAGE_LENGTH for piece in pieces[:-1])
    assert " ".join(pieces).split() == text.split()
    assert all(piece.startswith("paragraph") for piece in pieces)
    sentences = list(split_passages("This is a sentence. " * 500))
    assert len(sentences) > 3 and all(piece.startswith("This") and piece.endswith(".") for piece in sentences)
    assert list(split_passages("x" * (2 * MAX_PASSAGE_LENGTH + 5))) == [
        "x" * MAX_PASSAGE_LENGTH,
        "x" * MAX_PASSAGE_LENGTH,
        "x" * 5,
    ]
    index = made(tmp_path, ["other", text])
    found = index.search("paragraph 399", 1)[0]
    assert found.id == "d1" and "paragraph 399" in found.passage
    assert (index.indexed.documents, index.indexed.passages) == (2, 1 + len(pieces))


def test_a_folder_of_texts(tmp_path: Path):
    folder = tmp_path / "notes"
    (folder / "more").mkdir(parents=True)
    (folder / "a.md").write_text("\ufeff# On boats\n\nRed ones.", encoding="utf-8")
    (folder / "more" / "b.TXT").write_text("Blue ones.", encoding="utf-8")
    (folder / "c.py").write_text("Green ones.", encoding="utf-8")
    write_index([str(folder)], tmp_path / "made.index")
    index = SearchIndex(tmp_path / "made.index")
    assert [result[:2] for result in index.search("ones red")] == [
        ("notes/a.md", "On boats"),
        ("notes/more/b.TXT", "b"),
    ]
    write_index([str(folder / "more" / "b.TXT")], tmp_path / "one.index")
    assert ids(SearchIndex(tmp_path / "one.index"), "blue") == ["b.TXT"]


def test_rows_of_every_form(tmp_path: Path):
    from datasets import Dataset

    rows = [{"page": 7, "head": "Boats", "body": "red boat"}, {"page": 8, "head": "Cars", "body": "blue car"}]
    (tmp_path / "a.json").write_text(json.dumps(rows), encoding="utf-8")
    (tmp_path / "a.csv").write_text("page,head,body\n7,Boats,red boat\n8,Cars,blue car\n", encoding="utf-8")
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    Dataset.from_list(rows).to_parquet(str(tmp_path / "a.parquet"))
    write_jsonl(tmp_path / "a.jsonl", rows)
    for name in ("a.json", "a.csv", "a.jsonl", "saved", "a.parquet"):
        source = str(tmp_path / name)
        write_index([source], tmp_path / "made.index", keys=ColumnNames("page", "head", "body"), overwrite=True)
        index = SearchIndex(tmp_path / "made.index")
        assert [result[:3] for result in index.search("car")] == [("8", "Cars", "blue car")], name
        assert ids(index, "boats") == ["7"], "titles are searched too"


def test_a_row_needs_no_id_and_no_title(tmp_path: Path):
    paths = [write_jsonl(tmp_path / f"{name}.jsonl", [{"text": f"{name} boat"}]) for name in ("red", "blue")]
    write_index(paths, tmp_path / "made.index")
    assert [result[:2] for result in SearchIndex(tmp_path / "made.index").search("boat")] == [("0", ""), ("1", "")]


def test_everything_that_is_wrong_is_reported_together(tmp_path: Path):
    good = {"id": "a", "text": "t"}
    rows = ["{", good, {"id": "b", "body": "t"}, {**good}, {"id": "c", "text": 5}, [], {"id": "e", "text": " "}]
    path = write_jsonl(tmp_path / "rows.jsonl", [*rows, {"id": None, "text": "t"}])
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "bad.txt").write_bytes(b"one\ntwo \xff")
    (folder / "empty.md").write_text("\n")
    with pytest.raises(DataError) as error:
        write_index([path, str(folder), str(tmp_path / "none.jsonl")], tmp_path / "made.index")
    found = [(problem.where.removeprefix(f"{tmp_path}/"), problem.field) for problem in error.value.problems]
    assert found == [
        ("rows.jsonl:1", "line"),
        ("rows.jsonl:3", "text"),
        ("rows.jsonl:4", "id"),
        ("rows.jsonl:5", "text"),
        ("rows.jsonl:6", "line"),
        ("rows.jsonl:7", "text"),
        ("rows.jsonl:8", "id"),
        ("notes/bad.txt:2", "file"),
        ("notes/empty.md", "file"),
        ("none.jsonl", "file"),
    ]
    assert "the columns id, body" in str(error.value) and "--text_key" in str(error.value)
    assert f"'a', as at {path}:2" in str(error.value)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["notes", "rows.jsonl"]


def test_a_column_that_was_named_must_be_there(tmp_path: Path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "t"}])
    with pytest.raises(DataError, match="--title_key"):
        write_index([path], tmp_path / "made.index", keys=ColumnNames(title="headline"))
    with pytest.raises(DataError, match="as at"):
        write_index([path, write_jsonl(tmp_path / "b.jsonl", [{"id": "0", "text": "t"}])], tmp_path / "made.index")
    with pytest.raises(DataError, match="as at"):
        named = write_jsonl(tmp_path / "c.jsonl", [{"id": "0", "text": "t"}])
        write_index([named, named], tmp_path / "made.index")


def test_an_index_is_replaced_only_when_asked_and_whole(tmp_path: Path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"text": "red"}])
    write_index([path], tmp_path / "made.index")
    before = (tmp_path / "made.index").read_bytes()
    with pytest.raises(FileExistsError, match="--overwrite"):
        write_index([path], tmp_path / "made.index")
    with pytest.raises(DataError):
        write_index([write_jsonl(tmp_path / "bad.jsonl", ["{"])], tmp_path / "made.index", overwrite=True)
    assert (tmp_path / "made.index").read_bytes() == before
    write_index([path], tmp_path / "again.index")
    assert (tmp_path / "again.index").read_bytes() == before, "equal documents, equal files"


def test_another_file_is_no_index(tmp_path: Path):
    (tmp_path / "text.txt").write_text("red boat " * 1000)
    with pytest.raises(ValueError, match="another kind of file, expected version 1"):
        SearchIndex(tmp_path / "text.txt")
    with pytest.raises(FileNotFoundError):
        SearchIndex(tmp_path / "none.index")
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE facts (a)")
    other.commit()
    with pytest.raises(ValueError, match="another kind of file"):
        SearchIndex(tmp_path / "other.db")
    index = made(tmp_path, ["red"])
    with sqlite3.connect(index.path) as base:
        base.execute("PRAGMA user_version=99")
    with pytest.raises(ValueError, match="got version 99"):
        SearchIndex(index.path)
    for top, characters in ((0, 500), (3, 39)):
        with pytest.raises(ValueError, match="at least"):
            index.search("red", top, characters)


def test_threads_and_forked_processes_find_the_same(tmp_path: Path):
    source = random.Random(1)
    index = made(tmp_path, [" ".join(source.choices("abcdefghij", k=20)) for _ in range(500)])
    queries = [" ".join(source.sample("abcdefghij", 3)) for _ in range(200)]
    alone = [index.search(query) for query in queries]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(index.search, queries)) == alone
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    base = index.base
    child = context.Process(
        target=lambda: results.put(([index.search(query) for query in queries], index.base is base))
    )
    child.start()
    assert results.get(timeout=60) == (alone, False), "SQLite's connections must not be carried across a fork"
    child.join()
    assert index.search(queries[0]) == alone[0], "the child must not have closed the parent's file"
