"""Videos reach the loss in both trainers; stock TRL 1.16 generates with them and then trains blind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from tests.data.files import turns, write_jsonl
from tests.data.test_videos import write_video
from tests.support.training import picture, user
from tests.trainers.test_mixed import OURS, run, tower_gradient
from vlm_grpo.data import load_dataset
from vlm_grpo.evaluation import evaluate
from vlm_grpo.rollouts.encoder import PromptEncoder
from vlm_grpo.rollouts.messages import read_prompt

NAMES = ["grpo", "rloo"]
STOCK = [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)]


def frames(seed: int, count: int = 4) -> list[Any]:
    return [picture(seed + number, 56, 56) for number in range(count)]


def video_rows(folder: Path) -> Any:
    path = write_video(folder / "a.mp4")
    rows = [{"prompt": user("what happens"), "videos": [path]}, {"prompt": user("red"), "videos": None}]
    return Dataset.from_list(rows)


@pytest.mark.parametrize("kind", OURS, ids=NAMES)
def test_a_video_file_reaches_the_tower_beside_text(kind: tuple, tiny_model: Path, tmp_path: Path):
    trainer = run(kind, tiny_model, tmp_path, video_rows(tmp_path))
    assert tower_gradient(trainer) > 0
    assert (trainer.encoder.counters.decoded, trainer.encoder.counters.processed) == (1, 1)


@pytest.mark.parametrize("kind", OURS, ids=NAMES)
def test_frames_and_images_in_one_batch(kind: tuple, tiny_model: Path, tmp_path: Path):
    for number, frame in enumerate(frames(0)):
        frame.save(tmp_path / f"{number}.png")
    paths = [str(tmp_path / f"{number}.png") for number in range(4)]
    rows = [
        {"prompt": user("what happens"), "videos": [paths], "images": None},
        {"prompt": user("what color"), "videos": None, "images": [paths[0]]},
    ]
    assert tower_gradient(run(kind, tiny_model, tmp_path, Dataset.from_list(rows))) > 0


@pytest.mark.parametrize("kind", STOCK, ids=NAMES)
def test_stock_trains_blind_on_video(kind: tuple, tiny_model: Path, tmp_path: Path):
    assert tower_gradient(run(kind, tiny_model, tmp_path, nested_rows(tmp_path))) == 0


@pytest.mark.parametrize("kind", OURS, ids=NAMES)
def test_a_video_inside_the_messages_reaches_the_tower(kind: tuple, tiny_model: Path, tmp_path: Path):
    assert tower_gradient(run(kind, tiny_model, tmp_path, nested_rows(tmp_path))) > 0


def nested_rows(folder: Path) -> Dataset:
    """Videos as lists of frames inside the messages, the form that the processor reads without a decoder."""
    for number, frame in enumerate(frames(0)):
        frame.save(folder / f"{number}.png")
    video = {"type": "video", "video": [str(folder / f"{number}.png") for number in range(4)], "text": None}
    return Dataset.from_list([{"prompt": user([video, {"type": "text", "video": None, "text": "what"}])}] * 2)


def test_frames_are_taken_at_their_rate_and_the_model_is_told(tiny_model: Path, tmp_path: Path):
    """8 frames at 4 a second are 2 seconds; at 2 a second they are 4 frames, 2 pairs of a second each."""
    from transformers import AutoProcessor

    encoder = PromptEncoder(AutoProcessor.from_pretrained(tiny_model), {})
    (sample,) = encoder.encode([{"prompt": user("what"), "video": write_video(tmp_path / "a.mp4")}])
    assert sample.visual["video_grid_thw"].tolist()[0][0] == 2
    assert sample.visual["second_per_grid_ts"].tolist() == [1.0]
    (sample,) = encoder.encode([{"prompt": user("what"), "video": {"video": str(tmp_path / "a.mp4"), "fps": 4}}])
    assert sample.visual["video_grid_thw"].tolist()[0][0] == 4
    assert sample.visual["second_per_grid_ts"].tolist() == [0.5]


def test_videos_without_a_place_are_refused_with_their_line(tiny_model: Path):
    row = {"prompt": user([{"type": "video"}]), "videos": ["a.mp4", "b.mp4"], "where": "a.jsonl:3"}
    with pytest.raises(ValueError, match=r"a\.jsonl:3: 2 videos for 1 empty video blocks"):
        read_prompt(row)
    with pytest.raises(ValueError, match=r"a\.jsonl:3: 1 videos and no user turn"):
        read_prompt({"prompt": [{"role": "system", "content": "s"}], "video": "a.mp4", "where": "a.jsonl:3"})


def jsonl_rows(folder: Path) -> Any:
    """A video by its file, one by its frames beside an image, and text, through the reader of jsonl files."""
    write_video(folder / "a.mp4")
    for number, frame in enumerate(frames(0)):
        frame.save(folder / f"{number}.png")
    data = [
        {"video": {"video": "a.mp4", "fps": 4}, "conversations": turns("<video>What happens?", "a")},
        {
            "videos": [[f"{n}.png" for n in range(4)]],
            "image": "0.png",
            "conversations": turns("<image>or <video>?", "b"),
        },
        {"conversations": turns("What is 2+2?", "4")},
    ]
    return load_dataset(write_jsonl(folder / "a.jsonl", data), image_folders=str(folder))


@pytest.mark.parametrize("kind", OURS, ids=NAMES)
def test_videos_of_a_jsonl_file_train_beside_images_and_text(kind: tuple, tiny_model: Path, tmp_path: Path):
    rows = jsonl_rows(tmp_path)
    trainer = run(kind, tiny_model, tmp_path, rows)
    assert tower_gradient(trainer) > 0
    first, second, _ = trainer.encoder.encode([rows[number] for number in range(3)])
    assert first.visual["video_grid_thw"][0, 0] == 4  # 8 frames in pairs
    assert {"pixel_values", "pixel_values_videos"} <= set(second.visual)


def test_videos_are_evaluated_too(tiny_model: Path, tmp_path: Path):
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, processor = (kind.from_pretrained(tiny_model) for kind in (AutoModelForImageTextToText, AutoProcessor))
    evaluation = evaluate(model, processor, jsonl_rows(tmp_path), max_completion_length=4)
    assert [prediction["row"] for prediction in evaluation.predictions] == [0, 1, 2]
