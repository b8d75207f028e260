from __future__ import annotations

from pathlib import Path

import pytest

from tests.data.files import write_jsonl
from vlm_grpo.cli.build_index import main
from vlm_grpo.envs.retrieval.bm25 import SearchIndex
from vlm_grpo.synthetic.retrieval_qa import QUESTIONS, document, search_example, ships, write_documents


def test_documents_become_an_index(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [{"name": "a", "head": "Boats", "body": "red"}, {"name": "b", "head": "Cars", "body": "blue"}]
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    words = [path, "--output", str(tmp_path / "made.index")]
    keys = ["--id_key", "name", "--title_key", "head", "--text_key", "body"]
    assert main([*words, *keys]) == 0
    said = capsys.readouterr().out
    assert "2 documents in 2 passages, 4 words" in said and f"written: {tmp_path}/made.index" in said
    assert [result[:3] for result in SearchIndex(tmp_path / "made.index").search("red")] == [("a", "Boats", "red")]
    assert main([*words, *keys]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*words, *keys, "--overwrite"]) == 0


def test_bad_documents_are_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = write_jsonl(tmp_path / "rows.jsonl", ["{", {"text": "t"}, {"txt": "t"}])
    assert main([path, "--output", str(tmp_path / "made.index")]) == 1
    said = capsys.readouterr().err
    assert f"{path}:1" in said and f"{path}:3" in said and "2 problems" in said
    assert not (tmp_path / "made.index").exists()
    assert main([path, "--output", str(tmp_path / "none" / "made.index")]) == 2


def test_every_question_of_the_toy_library_is_answered_by_the_first_document_found(tmp_path: Path):
    from random import Random

    write_documents(tmp_path / "library.jsonl")
    assert main([str(write_documents(tmp_path / "library.jsonl")), "--output", str(tmp_path / "made.index")]) == 0
    index = SearchIndex(tmp_path / "made.index")
    assert len(index) == len(ships()) == 100
    for ship in ships():
        best = index.search(f"ship {ship.name}", 1)[0]
        assert best.title == ship.name and best.passage == document(ship)
        assert all(str(getattr(ship, asked)) in best.passage for asked in QUESTIONS)
    examples = [search_example(Random(number), number, 112) for number in range(40)]
    assert {example.question for example in examples} == {f"<image>{text}" for text in QUESTIONS.values()}
    assert all(ship.name not in example.question for example in examples for ship in ships())
    assert examples[3].images[0].tobytes() == search_example(Random(3), 3, 112).images[0].tobytes()
