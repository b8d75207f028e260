"""Demonstrations and options that a training refuses, before the model is loaded where possible."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.demonstrations import (
    build,
    rows,
    trained,
)
from tests.support.training import image_rows
from vlm_grpo.data.errors import DataError


def test_wrong_answers_stop_before_the_model(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch):
    """All of them in one table; the model's weights are not read."""
    (tmp_path / "no_weights").mkdir()
    for path in tiny_model.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / "no_weights" / path.name).write_bytes(path.read_bytes())
    wrong = [["x " * 40], ["so <|image_pad|>"], [""], ["red"]]
    data = image_rows(4).add_column("expert", wrong).add_column("where", [f"a.jsonl:{n}" for n in range(1, 5)])
    with pytest.raises(DataError) as caught:
        build("luffy", tmp_path / "no_weights", tmp_path, data=data)
    text = str(caught.value)
    assert "a.jsonl:1" in text and "at most --max_completion_length 32" in text
    assert "the special token '<|image_pad|>'" in text and "a.jsonl:3" in text and "a.jsonl:4" not in text
    for data in (image_rows(4), image_rows(4).add_column("expert", [[]] * 4)):
        with pytest.raises(DataError, match="no row has an expert's answer"):
            build("uft", tmp_path / "no_weights", tmp_path, data=data)


def test_what_does_not_go_together_is_refused(tiny_model: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="--dynamic_sampling does not go with --algorithm luffy"):
        build("luffy", tiny_model, tmp_path, dynamic_sampling=2)
    with pytest.raises(ValueError, match="expert_rows must be 1 to 3, of 4"):
        build("luffy", tiny_model, tmp_path, algorithm_options={"expert_rows": 4})
    with pytest.raises(ValueError, match="--algorithm chord draws rows by number, which --streaming cannot"):
        build("chord", tiny_model, tmp_path, data=rows().to_iterable_dataset())


def test_an_answer_of_a_stream_is_looked_at_as_it_comes(tiny_model: Path, tmp_path: Path):
    good = trained("luffy", tiny_model, tmp_path, data=rows().to_iterable_dataset())
    assert good.state.log_history[0]["expert/share"] > 0
    bad = image_rows(4).add_column("expert", ["x " * 40] * 4).to_iterable_dataset()
    with pytest.raises(DataError, match="at most --max_completion_length 32"):
        trained("luffy", tiny_model, tmp_path, data=bad)
