"""Toy data: read from the files, compared with the pictures."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vlm_grpo.cli.check import main as check
from vlm_grpo.cli.preview import main as preview
from vlm_grpo.data import load_dataset
from vlm_grpo.data.videos import open_video
from vlm_grpo.synthetic import TOYS, write_toy
from vlm_grpo.synthetic.shape_scenes import COLORS
from vlm_grpo.tasks import TASKS

ROOT = Path(__file__).resolve().parents[2]
TOOL = ROOT / "data_tools" / "make_toy.py"
ROWS, SIDE = 40, 112


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toys")
    for name in TOYS:
        write_toy(name, folder / name, rows=ROWS, side=SIDE)
    return folder


def tool(*words: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, str(TOOL), *map(str, words)], capture_output=True, text=True)


def lines(folder: Path) -> list[dict[str, Any]]:
    files = (folder / "train.jsonl", folder / "held_out.jsonl")
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def digests(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def pixels(folder: Path, row: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(folder / "images" / row["image"]).convert("RGB"), dtype=int)


def gold(row: dict[str, Any]) -> Any:
    return row["conversations"][1]["value"]


def asked(row: dict[str, Any]) -> str:
    return row["conversations"][0]["value"]


def of_color(image: np.ndarray, color: str) -> np.ndarray:
    """Where the picture has a color, blurred edges left out."""
    return np.abs(image - np.array(COLORS[color])).max(axis=2) < 30


def box_of(region: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(region)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


@pytest.mark.parametrize("name", list(TOYS))
def test_every_set_is_clean(name: str, toys: Path, capsys: pytest.CaptureFixture[str]):
    folder = toys / name
    task = name if name in TASKS else "default"
    assert len(lines(folder)) == ROWS
    assert len((folder / "held_out.jsonl").read_text(encoding="utf-8").splitlines()) == ROWS // 5
    for part in ("train", "held_out"):
        flags = ["--data_file_paths", str(folder / f"{part}.jsonl"), "--image_folders", str(folder / "images")]
        assert check([*flags, "--task_type", task, "--decode"]) == 0
        assert capsys.readouterr().out.startswith("no problems\n")
        assert preview([*flags, "--task_type", task, "--count", "100"]) == 0
        captured = capsys.readouterr()
        assert captured.out.count("=== ") == (ROWS // 5 if part == "held_out" else ROWS - ROWS // 5)
        assert "WARNING" not in captured.out and "not computed" not in captured.out


@pytest.mark.parametrize("name", list(TOYS))
def test_every_picture_is_named_once_and_nothing_is_held_out_twice(name: str, toys: Path):
    folder = toys / name
    named = []
    for row in lines(folder):
        for column in ("image", "video"):
            value = row.get(column, [])
            named += [value] if isinstance(value, str) else value
    assert sorted(named) == sorted(path.name for path in (folder / "images").iterdir())
    keys = [(asked(row), *(digests(folder)[f"images/{file}"] for file in names(row))) for row in lines(folder)]
    assert len(set(keys)) == ROWS


def names(row: dict[str, Any]) -> list[str]:
    value = row.get("image", row.get("video"))
    return [value] if isinstance(value, str) else value


@pytest.mark.parametrize("name", list(TOYS))
def test_equal_arguments_make_equal_files_and_the_seed_counts(name: str, toys: Path, tmp_path: Path):
    write_toy(name, tmp_path / "again", rows=ROWS, side=SIDE)
    assert digests(tmp_path / "again") == digests(toys / name)
    write_toy(name, tmp_path / "other", rows=ROWS, side=SIDE, seed=1)
    assert digests(tmp_path / "other")["train.jsonl"] != digests(toys / name)["train.jsonl"]


@pytest.mark.parametrize("name", ["rec", "grounding"])
def test_a_box_is_where_the_described_shape_is(name: str, toys: Path):
    """Where only one shape has the color, its pixels give the same box, but for the blurred tips."""
    seen, off = 0, []
    for row in lines(toys / name):
        color = next(word for word in asked(row).split() if word in COLORS)
        x1, y1, x2, y2 = gold(row)["bbox_2d"]
        region = of_color(pixels(toys / name, row), color)
        inside = np.zeros_like(region)
        inside[y1:y2, x1:x2] = True
        off.append(np.abs(box_of(region & inside) - gold(row)["bbox_2d"]))
        rim = np.zeros_like(region)
        rim[max(0, y1 - 2) : y2 + 2, max(0, x1 - 2) : x2 + 2] = True
        assert not (region & rim & ~inside)[: y1 - 1].any()
        seen += not (region & ~rim).any()
    assert seen >= ROWS // 3
    assert np.max(off) <= 3 and np.mean(off) < 1.1


def test_words_that_tell_two_shapes_apart_are_true(toys: Path):
    """The other shape of the same color that the rest of the picture shows is on the side that the word says."""
    told = 0
    for row in lines(toys / "rec"):
        words = asked(row).removeprefix("<image>the ").split()
        if words[0] not in ("left", "right", "upper", "lower"):
            continue
        x1, y1, x2, y2 = gold(row)["bbox_2d"]
        region = of_color(pixels(toys / "rec", row), words[1])
        region[max(0, y1 - 2) : y2 + 2, max(0, x1 - 2) : x2 + 2] = False
        other_rows, other_columns = np.nonzero(region)
        assert len(other_rows) > 0
        edges = {
            "left": x1 < other_columns.max(),
            "right": x2 > other_columns.min(),
            "upper": y1 < other_rows.max(),
            "lower": y2 > other_rows.min(),
        }
        assert edges[words[0]]
        told += 1
    assert told >= 5


def test_detections_are_thousandths_and_sometimes_nothing(toys: Path):
    answers = [gold(row) for row in lines(toys / "ovd")]
    assert 2 <= answers.count("None") <= ROWS // 2
    off = []
    for row in lines(toys / "ovd"):
        for item in [] if gold(row) == "None" else gold(row):
            assert set(item) == {"Position", "Confidence"} and all(0 <= x <= 1000 for x in item["Position"])
            image = pixels(toys / "ovd", row)
            x1, y1, x2, y2 = (round(value * SIDE / 1000) for value in item["Position"])
            middle = image[(y1 + y2) // 2, (x1 + x2) // 2]
            color = min(COLORS, key=lambda name: np.abs(np.array(COLORS[name]) - middle).sum())
            found = box_of(of_color(image[y1 - 1 : y2 + 1, x1 - 1 : x2 + 1], color))
            off.append(np.abs(found - [1, 1, x2 - x1 + 1, y2 - y1 + 1]))
    assert np.max(off) <= 3 and np.mean(off) < 1.1


def test_counts_agree_with_the_regions_in_the_pictures(toys: Path):
    """A second count, of connected regions of a color, for the questions about a color."""
    from scipy.ndimage import label

    counted = 0
    for row in lines(toys / "counting"):
        words = asked(row).replace("<image>", "").split()
        if words[3] not in ("shape", "shapes"):
            continue
        files = names(row)
        assert asked(row).count("<image>") == len(files)
        total = 0
        for file in files:
            image = np.asarray(Image.open(toys / "counting" / "images" / file).convert("RGB"), dtype=int)
            regions, number = label(of_color(image, words[2]))
            total += sum(int((regions == n).sum() > 8) for n in range(1, number + 1))
        assert total == gold(row)
        counted += 1
    assert counted >= 5
    assert {len(names(row)) for row in lines(toys / "counting")} == {1, 2}


def test_screenshots_differ_as_the_answer_says(toys: Path):
    found = set()
    for row in lines(toys / "gui"):
        before, after = (
            np.asarray(Image.open(toys / "gui" / "images" / file).convert("RGB"), dtype=int) for file in row["image"]
        )
        found.update(gold(row) or ["nothing"])
        title = np.abs(before[10, 40:60] - after[10, 40:60]).max() > 100
        assert title == ("wrong color" in gold(row))
        assert (np.abs(before - after).max() == 0) == ("no response" in gold(row))
        buttons = np.abs(before[22:33] - after[22:33]).max() > 20
        assert buttons == ("missing button" in gold(row))
    assert found >= {"nothing", "no response", "wrong color", "missing button", "text cut off", "overlapping text"}


def test_masks_are_what_is_drawn_and_the_shapes_fit(toys: Path):
    from pycocotools import mask as coco

    from vlm_grpo.masks import fit_iou

    parts = set()
    for row in lines(toys / "seg"):
        mask = coco.decode(row["mask"]).astype(bool)
        color = next(word for word in asked(row).split() if word in COLORS)
        drawn = of_color(pixels(toys / "seg", row), color)
        assert (drawn & ~mask).sum() <= 0.02 * mask.sum()
        assert (mask & ~drawn).sum() <= 0.35 * mask.sum()  # the blurred edge of a small picture
        assert fit_iou(mask, gold(row)) > (0.75 if "star" in asked(row) else 0.9)
        parts.add(len(gold(row)["chebyshev"]))
    assert parts == {1, 2}


def test_the_largest_bar_is_the_option_and_steps_are_there(toys: Path):
    rows = lines(toys / "vqa")
    assert all(1 <= len(row["reference_steps"]) <= 3 for row in rows)
    assert all(len(step.split()) <= 14 for row in rows for step in row["reference_steps"])
    charts = [row for row in rows if row.get("options")]
    assert ROWS // 10 <= len(charts) < ROWS // 2
    for row in charts:
        image = pixels(toys / "vqa", row)
        tops = [
            int(np.nonzero(of_color(image, color).any(axis=1))[0].min())
            for color in list(COLORS)[: len(row["options"])]
        ]
        assert "ABCDE"[tops.index(min(tops))] == gold(row)


def test_answers_of_figures_are_right():
    """Worked out by hand from what the figures say."""
    from fractions import Fraction

    from vlm_grpo.synthetic.math import latex_fraction, latex_root

    assert [latex_root(square) for square in (25, 13, 80, 8)] == ["5", r"\sqrt{13}", r"4\sqrt{5}", r"2\sqrt{2}"]
    assert latex_fraction(Fraction(1, 2) + Fraction(1, 5)) == r"\frac{7}{10}"
    assert latex_fraction(Fraction(8, 7) + Fraction(6, 7)) == "2"


def test_the_shape_in_a_video_moves_as_the_answer_says(toys: Path):
    rows = load_dataset(str(toys / "video" / "train.jsonl"), image_folders=str(toys / "video" / "images"))
    kinds = set()
    for number in range(len(rows)):
        (ref,) = rows[number]["videos"]
        kinds.add(type(ref.source))
        frames = open_video(ref).frames.astype(int)
        color = next(word for word in rows[number]["record"].question.split() if word in COLORS)
        first, last = (
            np.argwhere(np.abs(f - np.array(COLORS[color])).max(axis=2) < 60).mean(0) for f in frames[[0, -1]]
        )
        down, right = last - first
        ways = {"left": -right, "right": right, "up": -down, "down": down}
        assert max(ways, key=ways.get) == rows[number]["answer"]
        assert max(ways.values()) > 0.3 * SIDE
    assert kinds == {str, tuple}


def test_the_tool_makes_one_set_or_all(tmp_path: Path):
    done = tool("--task", "gui", "--rows", 5, "--output_dir", tmp_path / "gui", "--seed", 3, "--side", 140)
    assert done.returncode == 0, done.stderr
    assert "gui: 4 rows to train on and 1 held out" in done.stdout and "--task_type gui" in done.stdout
    assert json.loads((tmp_path / "gui" / "toy.json").read_text()) == {"data": "gui", "rows": 5, "seed": 3, "side": 140}
    assert Image.open(tmp_path / "gui" / "images" / "gui_00000_0.png").size == (140, 140)
    write_toy("gui", tmp_path / "same", rows=5, seed=3, side=140)
    assert digests(tmp_path / "gui") == digests(tmp_path / "same")
    done = tool("--task", "all", "--rows", 2, "--output_dir", tmp_path / "all", "--side", 112)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == sorted(TOYS)
    assert tool("--task", "all", "--rows", 2, "--output_dir", tmp_path / "all", "--side", 112).returncode == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--task", "recc"], "invalid choice: 'recc'"),
        (["--task", "rec", "--rows", "1"], "--rows must be at least 2"),
        (["--task", "rec", "--side", "50"], "--side must be at least 112 pixels, got 50"),
        (["--task", "video", "--side", "113", "--rows", "5"], "--side must be even for mp4 files, got 113"),
        (["--task", "rec", "--row", "9"], "unrecognized arguments: --row 9"),
    ],
)
def test_a_mistake_ends_with_status_2_and_no_folder(words: list[str], message: str, tmp_path: Path):
    done = tool(*words, "--output_dir", tmp_path / "new" / "toy")
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "new" / "toy").exists()
    assert not list(tmp_path.rglob("*.partial"))


def test_other_peoples_folders_stay_as_they_are(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="contains something else; choose another folder"):
        write_toy("rec", tmp_path, rows=2)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    write_toy("rec", tmp_path / "toy", rows=2, side=112)
    before = digests(tmp_path / "toy")
    with pytest.raises(ValueError, match=r"contains toy data made with .*'seed': 0"):
        write_toy("rec", tmp_path / "toy", rows=2, side=112, seed=1)
    assert digests(tmp_path / "toy") == before
    write_toy("rec", tmp_path / "toy", rows=2, side=112)


def test_a_set_that_fails_half_way_leaves_nothing(tmp_path: Path):
    """There are 1,797 digits, so more rows cannot all be different."""
    from vlm_grpo.synthetic.writer import write_examples

    def fails(random: Any, number: int, side: int) -> Any:
        return TOYS["rec"](random, 0, side) if number < 2 else 1 / 0

    with pytest.raises(ZeroDivisionError, match="division"):
        write_examples("rec", fails, tmp_path / "toy", rows=5, seed=0, side=112)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="'same' has no 2 different rows"):
        write_examples("same", lambda r, n, s: TOYS["gui"](type(r)(0), n, s), tmp_path / "t", rows=2, seed=0, side=112)


def test_drawing_needs_no_torch():
    code = (
        "import sys, vlm_grpo.synthetic as t; assert not {'torch', 'transformers', 'av', 'sklearn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    done = tool("--help")
    assert done.returncode == 0 and "python data_tools/make_toy.py --task rec" in done.stdout
