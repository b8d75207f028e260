from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from PIL import Image

from tests.data.files import png, write_images
from vlm_grpo.data import DataError, check_source, load_dataset
from vlm_grpo.data.readers.hub import split_name


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every call of PIL's open, the one way to decode."""
    calls: list[Any] = []
    stock = Image.open
    monkeypatch.setattr(Image, "open", lambda *given, **options: calls.append(given) or stock(*given, **options))
    return calls


def columns(images: list[Any], feature: Any) -> Dataset:
    rows = {"problem": [f"q{n}" for n in range(len(images))], "answer": ["a"] * len(images), "images": images}
    features = Features({"problem": Value("string"), "answer": Value("string"), "images": feature})
    return Dataset.from_dict(rows, features=features)


STRUCT = {"bytes": png(), "path": None}


@pytest.mark.parametrize(
    ("image", "feature"),
    [
        (STRUCT, datasets.Image()),
        ([STRUCT], List(datasets.Image())),
        ([STRUCT], List(datasets.Image(decode=False))),
        (Image.open(io.BytesIO(png())), datasets.Image()),
        (STRUCT, {"bytes": Value("binary"), "path": Value("string")}),
        ([png()], List(Value("binary"))),
    ],
    ids=["image", "list", "undecoded", "pil", "struct", "bytes"],
)
def test_images_in_every_form_come_undecoded(image: Any, feature: Any, opened: list[Any]):
    dataset = columns([image, None], feature)
    opened.clear()
    data = load_dataset(dataset, check=False)
    first, second = data[0], data[1]
    assert isinstance(first["images"][0].source, bytes)
    assert first["images"][0].source.startswith(b"\x89PNG")
    assert (first["where"], second["images"]) == ("dataset[0]", [])
    assert opened == []


def test_images_inside_messages_come_undecoded(opened: list[Any]):
    block = {"type": Value("string"), "text": Value("string"), "image": datasets.Image()}
    features = Features(
        {
            "prompt": List({"role": Value("string"), "content": List(block)}),
            "answer": Value("string"),
            "n": Value("int64"),
        }
    )
    content = [{"type": "image", "text": None, "image": STRUCT}, {"type": "text", "text": "what?", "image": None}]
    dataset = Dataset.from_list([{"prompt": [{"role": "user", "content": content}], "answer": "a", "n": 4}], features)
    row = load_dataset(dataset, check=False)[0]
    assert [ref.source for ref in row["images"]] == [png()]
    assert row["record"].question == "<image>what?"
    assert row["n"] == 4
    assert opened == []


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    """One data set of two rows, written in every form that load_dataset takes."""
    dataset = columns([STRUCT, STRUCT], datasets.Image())
    dataset.save_to_disk(tmp_path / "saved")
    DatasetDict({"train": dataset.select([0]), "test": dataset}).save_to_disk(tmp_path / "splits")
    dataset.to_parquet(tmp_path / "a.parquet")
    (tmp_path / "folder").mkdir()
    dataset.to_parquet(tmp_path / "folder" / "train-00000.parquet")
    write_images(tmp_path)
    (tmp_path / "a.csv").write_text(
        f"problem,answer,image\nq0,a,{tmp_path}/images/0.png\nq1,a,{tmp_path}/images/1.png\n"
    )
    names = ("saved", "splits", "splits@test", "a.parquet", "folder", "folder@train", "a.csv")
    return {name: str(tmp_path / name) for name in names}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize("name", ["saved", "splits", "splits@test", "a.parquet", "folder", "folder@train", "a.csv"])
def test_every_place_is_read(name: str, places: dict[str, str]):
    data = load_dataset(places[name])
    assert len(data) == (1 if name == "splits" else 2)
    row = data[len(data) - 1]
    assert row["record"].question == ("<image>q0" if name == "splits" else "<image>q1")
    assert (row["answer"], len(row["images"])) == ("a", 1)
    assert row["where"].startswith(places[name])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("splits@dev", r"split +'dev' .*splits@ and one of train, test"),
        ("saved@train", "split +'train' +no split: this folder holds a single one"),
        ("none.parquet", "dataset +no such file or folder"),
        ("none.jsonl", "file +no such file"),
        ("a/b/c", "dataset +no such file or folder"),
    ],
)
def test_wrong_places_are_problems(name: str, message: str, places: dict[str, str], tmp_path: Path):
    with pytest.raises(DataError, match=message):
        load_dataset(str(tmp_path / name))


def test_a_name_on_the_hub_is_loaded_with_its_split(monkeypatch: pytest.MonkeyPatch):
    asked = []
    dataset = columns([STRUCT], datasets.Image())
    monkeypatch.setattr(datasets, "load_dataset", lambda name, **options: asked.append((name, options)) or dataset)
    assert load_dataset("org/name@validation")[0]["where"] == "org/name@validation[0]"
    assert len(load_dataset("org/name@train[:10]")) == 1
    load_dataset("org/name")
    assert asked == [
        ("org/name", {"split": "validation"}),
        ("org/name", {"split": "train[:10]"}),
        ("org/name", {"split": "train"}),
    ]


def test_a_name_that_cannot_be_reached_is_a_problem(monkeypatch: pytest.MonkeyPatch):
    def refuse(name: str, **options: Any) -> None:
        raise ConnectionError("no way there")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    (problem,) = check_source("org/name@train")
    assert (problem.where, problem.found) == ("org/name@train", "ConnectionError: no way there")


def test_split_name():
    assert split_name("org/name@train") == ("org/name", "train")
    assert split_name("org/name") == ("org/name", None)
    assert split_name("/a/b@c/d@test") == ("/a/b@c/d", "test")


def test_keys_map_columns_and_labels_become_names():
    features = Features({"ask": Value("string"), "kind": ClassLabel(names=["cat", "dog"]), "pic": datasets.Image()})
    dataset = Dataset.from_dict({"ask": ["q"], "kind": [1], "pic": [STRUCT]}, features=features)
    row = load_dataset(dataset, prompt_key="ask", answer_key="kind", image_key="pic", task="vqa")[0]
    assert (row["answer"], len(row["images"]), row["task"]) == ("dog", 1, "vqa")


def test_vqa_form_from_arrow():
    row = {
        "image": STRUCT,
        "question": "q",
        "answer": "B",
        "reference_steps": ["s"],
        "choices": ["x", "y"],
        "source": "z",
    }
    data = load_dataset(Dataset.from_list([row, {**row, "choices": None, "reference_steps": []}]), task="vqa")
    record = data[0]["record"]
    assert (record.options, record.reference_steps, record.extra["source"]) == (("x", "y"), ("s",), "z")
    assert "A. x\nB. y\n" in data[0]["prompt"][0]["content"][1]["text"]
    assert data[1]["record"].options == ()


def test_problems_name_the_row():
    dataset = columns([STRUCT, {"bytes": b"broken", "path": None}], datasets.Image(decode=False))
    (problem,) = check_source(dataset)
    assert (problem.where, problem.found) == ("dataset[1]", "an embedded image: cannot identify image file")
    with pytest.raises(DataError, match=r"no rows"):
        load_dataset(dataset.select([]))


def test_other_objects_are_refused():
    with pytest.raises(TypeError, match="expected paths, a data set's name or a Dataset, got DatasetDict"):
        load_dataset(DatasetDict({"train": columns([STRUCT], datasets.Image())}))
