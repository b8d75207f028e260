"""Mixtures of text and images that stock TRL 1.16 crashes on or trains blind, and how often images are touched."""

from __future__ import annotations

import io
import sys
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import PIL.Image
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from tests.data.files import turns, write_jsonl
from tests.support.training import image_rows, length_reward, picture, rewards_of, settings, user
from vlm_grpo.data import load_dataset
from vlm_grpo.trainers import base, rollout_logger
from vlm_grpo.trainers.config import VLMGRPOConfig, VLMRLOOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer
from vlm_grpo.trainers.rloo import VLMRLOOTrainer

OURS = [(VLMGRPOTrainer, VLMGRPOConfig), (VLMRLOOTrainer, VLMRLOOConfig)]
STOCK = [(GRPOTrainer, GRPOConfig), (RLOOTrainer, RLOOConfig)]
NAMES = ["grpo", "rloo"]


def run(kind: tuple, model: Path, folder: Path, rows: Any, **options: Any) -> Any:
    trainer, config = kind
    args = config(**settings(folder, per_device_train_batch_size=8, max_steps=1, **options))
    made = trainer(str(model), length_reward, args, train_dataset=rows)
    made.train()
    return made


def tower_gradient(trainer: Any) -> float:
    """How far one step moved the vision tower's weights from where they were saved."""
    before = type(trainer.model).from_pretrained(trainer.model.config._name_or_path).model.visual.state_dict()
    after = trainer.model.model.visual.state_dict()
    return max((after[name] - before[name]).abs().max().item() for name in before)


def mixed_rows() -> Dataset:
    return Dataset.from_list(
        [{"prompt": user("what color"), "images": [picture(0)]}, {"prompt": user("what shape"), "images": None}]
    )


def text_rows() -> Dataset:
    return Dataset.from_list([{"prompt": user("what color"), "images": None}, {"prompt": user("red"), "images": None}])


def nested_rows(typed: bool = True) -> Dataset:
    """Images inside the messages: as a decoding Image feature, or as the `{bytes, path}` dicts that Arrow makes."""
    image = Image() if typed else {"bytes": Value("binary"), "path": Value("string")}
    block = {"type": Value("string"), "text": Value("string"), "image": image}
    features = Features({"prompt": List({"role": Value("string"), "content": List(block)})})
    rows = [{"prompt": user([{"type": "text", "text": "what", "image": None}, image_block(seed)])} for seed in (0, 1)]
    return Dataset.from_list(rows, features=features)


def image_block(seed: int) -> dict[str, Any]:
    buffer = io.BytesIO()
    picture(seed).save(buffer, format="PNG")
    return {"type": "image", "text": None, "image": {"bytes": buffer.getvalue(), "path": None}}


def dict_rows() -> Dataset:
    return nested_rows(typed=False)


@pytest.mark.parametrize("kind", STOCK, ids=NAMES)
def test_stock_fails_on_mixed_rows(kind: tuple, tiny_model: Path, tmp_path: Path):
    with pytest.raises(TypeError, match="only a single or a list of entries is supported but got"):
        run(kind, tiny_model, tmp_path, mixed_rows())


@pytest.mark.parametrize("kind", STOCK, ids=NAMES)
def test_stock_fails_on_images_in_arrow_messages(kind: tuple, tiny_model: Path, tmp_path: Path):
    with pytest.raises((TypeError, ValueError, KeyError, AttributeError)):
        run(kind, tiny_model, tmp_path, dict_rows())


def test_stock_rloo_trains_blind_on_images_in_messages(tiny_model: Path, tmp_path: Path):
    assert tower_gradient(run(STOCK[1], tiny_model, tmp_path, nested_rows())) == 0


@pytest.mark.parametrize("kind", OURS, ids=NAMES)
@pytest.mark.parametrize("rows", [mixed_rows, nested_rows, dict_rows], ids=["mixed", "nested", "dicts"])
def test_images_reach_the_tower_in_every_form(kind: tuple, rows: Any, tiny_model: Path, tmp_path: Path):
    assert tower_gradient(run(kind, tiny_model, tmp_path, rows())) > 0


@pytest.mark.parametrize("kind", OURS, ids=NAMES)
def test_all_text_rows_train_the_language_model_only(kind: tuple, tiny_model: Path, tmp_path: Path):
    trainer = run(kind, tiny_model, tmp_path, text_rows())
    assert tower_gradient(trainer) == 0
    assert any(entry.get("grad_norm", 0) > 0 for entry in trainer.state.log_history)


@pytest.mark.parametrize("kind", OURS, ids=NAMES)
def test_all_text_micro_batches_of_a_mixed_rollout(kind: tuple, tiny_model: Path, tmp_path: Path):
    trainer, config = kind
    args = config(**settings(tmp_path, per_device_train_batch_size=2, steps_per_generation=4, max_steps=4))
    made = trainer(str(tiny_model), length_reward, args, train_dataset=mixed_rows())
    made.train()
    assert made.state.global_step == 4


@pytest.mark.parametrize("kind", OURS, ids=NAMES)
def test_several_images_per_row(kind: tuple, tiny_model: Path, tmp_path: Path):
    rows = Dataset.from_list(
        [
            {"prompt": user("what color"), "images": [picture(0), picture(1, height=112)]},
            {"prompt": user("what shape"), "images": [picture(2)]},
        ]
    )
    trainer = run(kind, tiny_model, tmp_path, rows)
    assert (trainer.encoder.counters.decoded, trainer.encoder.counters.processed) == (3, 3)


@pytest.mark.parametrize("kind", OURS, ids=NAMES)
def test_each_unique_image_is_touched_once_per_rollout(kind: tuple, tiny_model: Path, tmp_path: Path):
    """Two rollouts of 2 prompts x 4 completions, each used for 2 x 2 micro-batches: 4 images, 4 decodes, 4 runs."""
    trainer, config = kind
    options = {"gradient_accumulation_steps": 2, "num_iterations": 2, "max_steps": 4, "shuffle_dataset": False}
    made = trainer(str(tiny_model), length_reward, config(**settings(tmp_path, **options)), train_dataset=image_rows())
    made.train()
    assert (made.encoder.counters.decoded, made.encoder.counters.processed) == (4, 4)


@pytest.mark.parametrize("kind", OURS, ids=NAMES)
def test_an_image_shared_by_two_prompts_is_touched_once(kind: tuple, tiny_model: Path, tmp_path: Path):
    rows = Dataset.from_list([{"prompt": user(text), "image": picture(0)} for text in ("what color", "what shape")])
    counters = run(kind, tiny_model, tmp_path, rows).encoder.counters
    assert (counters.decoded, counters.processed) == (1, 1)


def test_rewards_see_decoded_images_and_columns(tiny_model: Path, tmp_path: Path):
    seen = []

    def reward(completions: list, images: list, answer: list, image_sizes: list, processed_sizes: list, **columns: Any):
        seen.extend(zip([image[0].size for image in images], answer, image_sizes, processed_sizes, strict=True))
        return [0.0] * len(completions)

    args = VLMGRPOConfig(**settings(tmp_path, max_steps=1, shuffle_dataset=False))
    rows = Dataset.from_list([{"prompt": user("what"), "images": [picture(0, 100, 50)], "answer": "0"}])
    VLMGRPOTrainer(str(tiny_model), reward, args, train_dataset=rows).train()
    assert seen == [((100, 50), "0", [(100, 50)], [(112, 56)])] * 4  # rounded to multiples of 28


def test_a_box_is_rewarded_in_the_familys_space(tiny_model: Path, tmp_path: Path):
    """Qwen2.5-VL answers in pixels of the resized image: 112 x 56 for one of 100 x 50."""
    picture(0, 100, 50).save(tmp_path / "0.png")
    row = {"image": "0.png", "conversations": turns("<image>q", {"bbox_2d": [25, 25, 50, 50]}), "task": "rec"}
    rows = load_dataset(write_jsonl(tmp_path / "a.jsonl", [row]), image_folders=str(tmp_path))
    args = VLMGRPOConfig(**settings(tmp_path, max_steps=1))
    trainer = VLMGRPOTrainer(str(tiny_model), ["iou"], args, train_dataset=rows)
    answers = ["[28, 28, 56, 56]", "[25, 25, 50, 50]"] * 2
    values = rewards_of(trainer, [f"<answer>{answer}</answer>" for answer in answers])["iou"]
    assert values[:2] == [1.0, pytest.approx(22 * 22 / (28**2 + 25**2 - 22**2))]


def test_records_carry_the_sizes_to_rewards_of_one_completion(tiny_model: Path, tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "def size(completion, record):\n"
        "    return record.extra['processed_sizes'][0][0] / record.extra['image_sizes'][0][0]\n"
    )
    picture(0, 100, 50).save(tmp_path / "0.png")
    row = {"image": "0.png", "conversations": turns("<image>q", "a")}
    rows = load_dataset(write_jsonl(tmp_path / "a.jsonl", [row]), image_folders=str(tmp_path))
    args = VLMGRPOConfig(**settings(tmp_path, max_steps=1))
    trainer = VLMGRPOTrainer(str(tiny_model), [f"{tmp_path}/mine.py:size"], args, train_dataset=rows)
    trainer.train()
    assert trainer.state.log_history[0]["rewards/size/mean"] == pytest.approx(1.12)


def test_no_pixels_are_kept_on_the_batch(tiny_model: Path, tmp_path: Path):
    args = VLMGRPOConfig(**settings(tmp_path, max_steps=1))
    trainer = VLMGRPOTrainer(str(tiny_model), length_reward, args, train_dataset=image_rows())
    trainer.train()
    (batch,) = trainer._buffered_inputs
    assert "pixel_values" not in batch
    assert len({id(sample) for sample in batch["samples"]}) == 1  # one sample for the whole group
    assert batch["samples"][0].images == []


def test_freeze_vision_modules_keeps_the_tower(tiny_model: Path, tmp_path: Path):
    trainer = run(OURS[0], tiny_model, tmp_path, image_rows(), freeze_vision_modules=True)
    assert tower_gradient(trainer) == 0
    assert any(entry.get("grad_norm", 0) > 0 for entry in trainer.state.log_history)


def test_pixel_limits_change_the_number_of_patches(tiny_model: Path, tmp_path: Path):
    lengths = {}
    for limit in (None, 56 * 56):
        args = VLMGRPOConfig(**settings(tmp_path, max_pixels=limit, min_pixels=limit and 28 * 28))
        trainer = VLMGRPOTrainer(str(tiny_model), length_reward, args, train_dataset=image_rows())
        (sample,) = trainer.encoder.encode([{"prompt": user("what"), "images": [picture(0, 224, 224)]}])
        lengths[limit] = int(sample.visual["image_grid_thw"].prod())
    assert lengths[56 * 56] <= 16 < lengths[None]  # 56 x 56 pixels are 16 patches of 14 x 14


def test_reward_names_and_weights(tiny_model: Path, tmp_path: Path):
    args = VLMGRPOConfig(**settings(tmp_path, max_steps=1))
    trainer = VLMGRPOTrainer(str(tiny_model), ["accuracy", "format:0.5"], args, train_dataset=image_rows())
    assert trainer.reward_func_names == ["accuracy", "format"]
    assert torch.equal(trainer.reward_weights, torch.tensor([1.0, 0.5]))


def test_weights_given_twice_are_refused(tiny_model: Path, tmp_path: Path):
    args = VLMGRPOConfig(**settings(tmp_path, reward_weights=[1.0, 2.0]))
    with pytest.raises(ValueError, match="--reward_weights and NAME:WEIGHT"):
        VLMGRPOTrainer(str(tiny_model), ["accuracy", "format:0.5"], args, train_dataset=image_rows())


def holds_image(value: Any) -> bool:
    """Whether a picture or a tensor of pixels is anywhere inside."""
    if isinstance(value, dict | list | tuple):
        return any(holds_image(part) for part in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, PIL.Image.Image) or (isinstance(value, torch.Tensor) and value.ndim > 1)


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows by every object that a trainer gathers from all processes."""
    found: list[Any] = []
    for place in (*(sys.modules[trainer.__module__] for trainer, _ in STOCK), base, rollout_logger):
        original = place.gather_object
        monkeypatch.setattr(place, "gather_object", lambda value, call=original: found.append(value) or call(value))
    return found


@pytest.mark.parametrize("kind", OURS, ids=NAMES)
def test_no_image_crosses_ranks_while_training(kind: tuple, tiny_model: Path, tmp_path: Path, gathered: list[Any]):
    run(kind, tiny_model, tmp_path, mixed_rows(), log_completions=True)
    assert gathered and not any(holds_image(value) for value in gathered)


@pytest.mark.parametrize("kind", STOCK, ids=NAMES)
def test_stock_gathers_the_images_of_all_completions(
    kind: tuple, tiny_model: Path, tmp_path: Path, gathered: list[Any]
):
    """Also when nobody looks at them."""
    run(kind, tiny_model, tmp_path, image_rows(2), log_completions=False)
    assert sum(holds_image(value) for value in gathered) >= 1


@pytest.mark.parametrize("kind", STOCK, ids=NAMES)
def test_stock_tells_rewards_no_size(kind: tuple, tiny_model: Path, tmp_path: Path):
    def reward(completions: list, processed_sizes: list, **columns: Any) -> list[float]:
        return [0.0] * len(completions)

    args = kind[1](**settings(tmp_path, max_steps=1))
    with pytest.raises(TypeError, match="processed_sizes"):
        kind[0](str(tiny_model), reward, args, train_dataset=image_rows(2)).train()


def test_stock_has_no_limits_of_pixels_and_prompts_and_freezes_nothing():
    names = {"max_pixels", "min_pixels", "max_prompt_length", "freeze_vision_modules"}
    for _, config in STOCK:
        assert not names & {field.name for field in fields(config)}
    for _, config in OURS:
        assert names <= {field.name for field in fields(config)}


def test_logged_images_cross_ranks_as_thumbnails(tiny_model: Path, tmp_path: Path):
    trainer = run(OURS[0], tiny_model, tmp_path, mixed_rows(), log_completions=True)
    rows = [{"prompt": user("what"), "images": [picture(0, 1000, 500)]}, {"prompt": user("red"), "images": None}]
    images = [prompt.images for prompt in trainer.encoder.encode(rows)]
    trainer._log_images(images)
    assert not trainer._logs["images"]  # nobody shows them
    trainer.args.report_to = ["wandb"]
    trainer._log_images(images)
    shown, none = trainer._logs["images"]
    assert ([image.size for image in shown], none) == ([(256, 128)], [])


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Grows by the tables that RLOO hands to a fake wandb."""
    found: list[Any] = []
    backend = SimpleNamespace(run=True, Image=lambda image: image.size, Table=lambda dataframe: dataframe)
    backend.log = lambda content: found.append(content["completions"])
    monkeypatch.setattr(sys.modules[RLOOTrainer.__module__], "wandb", backend, raising=False)
    return found


def test_stock_rloo_cannot_show_the_images_of_a_mixed_batch(tiny_model: Path, tmp_path: Path, tables: list[Any]):
    """It gathers None for a row without images."""
    trainer = run(STOCK[1], tiny_model, tmp_path, image_rows(2), log_completions=True)
    trainer.args.report_to = ["wandb"]
    trainer._logs["images"].extend([[picture(0)], None])
    with pytest.raises(TypeError, match="'NoneType' object is not iterable"):
        trainer.log({})


def test_rloo_shows_the_images_of_a_mixed_batch(tiny_model: Path, tmp_path: Path, tables: list[Any]):
    args = VLMRLOOConfig(**settings(tmp_path, per_device_train_batch_size=8, max_steps=1, log_completions=True))
    trainer = VLMRLOOTrainer(str(tiny_model), length_reward, args, train_dataset=mixed_rows())
    trainer.args.report_to = ["wandb"]
    trainer.train()
    assert sorted(map(len, tables[0]["image"])) == [0] * 4 + [1] * 4


@pytest.mark.parametrize("kind", OURS, ids=NAMES)
def test_trl_evaluation_of_mixed_rows(kind: tuple, tiny_model: Path, tmp_path: Path):
    trainer, config = kind
    args = config(**settings(tmp_path, max_steps=1, per_device_eval_batch_size=8))
    made = trainer(str(tiny_model), length_reward, args, train_dataset=mixed_rows(), eval_dataset=mixed_rows())
    assert made.evaluate()["eval_reward"] >= 0


@pytest.mark.parametrize("kind", OURS, ids=NAMES)
def test_without_arguments_our_own_configuration_is_made(kind: tuple, tiny_model: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert kind[0].config_class is kind[1]
    monkeypatch.setattr(kind[0], "config_class", partial(kind[1], bf16=False, use_cpu=True))
    made = kind[0](str(tiny_model), ["accuracy:2"], train_dataset=image_rows())
    assert type(made.args) is kind[1]
    assert made.args.output_dir == f"{tiny_model.name}-{kind[0]._tag_names[-1].upper()}"


def agent(prompts: list, trainer: Any) -> dict[str, Any]:
    """A rollout of one's own, which takes TRL's path."""
    encoded = trainer.processing_class.apply_chat_template(
        prompts, tokenize=True, return_dict=True, add_generation_prompt=True
    )["input_ids"]
    ids = [[20 + row % 4, 30, 40] for row in range(len(prompts))]
    return {"prompt_ids": encoded, "completion_ids": ids, "logprobs": [[-6.0] * 3] * len(ids)}


@pytest.mark.parametrize("column", ["image", "images"])
def test_a_rollout_of_ones_own_sees_images_of_an_arrow_column(column: str, tiny_model: Path, tmp_path: Path):
    rows = image_rows()
    if column == "images":
        rows = Dataset.from_list([{"prompt": row["prompt"], "images": [row["image"]]} for row in rows])
    args = VLMGRPOConfig(**settings(tmp_path, max_steps=1))
    trainer = VLMGRPOTrainer(str(tiny_model), length_reward, args, train_dataset=rows, rollout_func=agent)
    seen = []
    score = trainer._compute_loss
    trainer._compute_loss = lambda model, inputs: (seen.append(inputs), score(model, inputs))[1]
    trainer.train()
    assert seen[0]["pixel_values"].size(0) > 0 and seen[0]["num_images"] == [1] * 4
