"""What stock GRPOTrainer takes, VLMGRPOTrainer takes: each call on both, what rewards are given and what is logged."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from datasets import Dataset
from PIL import Image
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2ForSequenceClassification
from trl import GRPOConfig, GRPOTrainer

from tests.support.environments import call
from tests.support.templates import published
from tests.support.training import length_reward, picture, settings, user
from vlm_grpo.tiny import build_tiny_qwen
from vlm_grpo.trainers.config import VLMGRPOConfig, VLMRLOOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer
from vlm_grpo.trainers.rloo import VLMRLOOTrainer

LOOK = call("look", place="left")
SCRIPT = (LOOK, "a cat")  # the turns of every episode
BOTH = {"stock": (GRPOTrainer, GRPOConfig), "ours": (VLMGRPOTrainer, VLMGRPOConfig)}


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny language model without images, with a template that knows tools."""
    return save_text_model(tmp_path_factory.mktemp("text"), Qwen2ForCausalLM, published("qwen3_vl"))


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny reward model whose template takes strings alone, as most do."""
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\\n' }}{% endfor %}"
    return save_text_model(tmp_path_factory.mktemp("judge"), Qwen2ForSequenceClassification, template, num_labels=1)


def save_text_model(folder: Path, kind: type, template: str, **options: Any) -> Path:
    words = build_tiny_qwen()[1].tokenizer
    words.chat_template = template
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"eos_token_id": words.eos_token_id, "pad_token_id": words.pad_token_id, "bos_token_id": None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = kind(Qwen2Config(vocab_size=len(words), num_key_value_heads=1, **sizes, **ends, **options))
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


class Calls:
    """A reward that keeps what it was given."""

    __name__ = "calls"

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def __call__(self, prompts: list, completions: list, **columns: Any) -> list[float]:
        self.seen.append({"prompts": prompts, "completions": completions, **columns})
        return [float(row % 2) for row in range(len(prompts))]


def look(place: str) -> str:
    """Look at a place.

    Args:
        place: Where to look.
    """
    return f"nothing on the {place}"


class Room:
    """An environment that gives the prompt itself."""

    def reset(self, **row: Any) -> str:
        self.looks = 0
        return "Where is the cat?"

    def look(self, place: str) -> str:
        """Look at a place.

        Args:
            place: Where to look.
        """
        self.looks += 1
        return look(place)

    def get_reward(self) -> float:
        return float(self.looks)


class SlowRoom(Room):
    """The same, with a reward that has to be waited for."""

    async def get_reward(self) -> float:
        return float(self.looks)


def train(name: str, model: Path, folder: Path, *given: Any, scripted: bool = False, **options: Any) -> Any:
    """One step of the stock trainer or of ours; `given` and `options` are its arguments after `args`."""
    kind, config = BOTH[name]
    own = {key: options.pop(key) for key in list(options) if key in OF_TRAINERS}
    args = config(**settings(folder, **{"max_steps": 1, "max_completion_length": 60, **options}))
    trainer = kind(str(model), own.pop("reward_funcs", None), args, *given, **own)
    if scripted:
        follow_script(trainer)
    trainer.train()
    return trainer


OF_TRAINERS = ("reward_funcs", "train_dataset", "tools", "environment_factory", "reward_processing_classes")


def follow_script(trainer: Any) -> None:
    """Let the model write SCRIPT: its first turns are those that a prompt without a result of a tool gets."""
    words = getattr(trainer.processing_class, "tokenizer", trainer.processing_class)
    result = words("nothing on the", add_special_tokens=False)["input_ids"]

    def write(*, input_ids: torch.Tensor, **rest: Any) -> torch.Tensor:
        turns = [SCRIPT[contains(row, result)] for row in input_ids.tolist()]
        ids = [[*words(turn, add_special_tokens=False)["input_ids"], words.eos_token_id] for turn in turns]
        longest = max(map(len, ids))
        filled = [one + [words.pad_token_id] * (longest - len(one)) for one in ids]
        return torch.cat([input_ids, torch.tensor(filled)], dim=1)

    trainer.model.generate = write


def contains(row: Sequence[int], part: Sequence[int]) -> bool:
    return any(list(row[start : start + len(part)]) == list(part) for start in range(len(row)))


def text_rows() -> Dataset:
    return Dataset.from_list([{"prompt": user("what color is x"), "answer": "red"}])


def image_rows() -> Dataset:
    return Dataset.from_list([{"prompt": user("what color"), "images": [picture(0)], "answer": "red"}])


def shapes(values: Any) -> Any:
    """The types of nested values, with the text of roles, names and types."""
    if isinstance(values, dict):
        return {key: value if key in ("role", "type", "name") else shapes(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [shapes(value) for value in values]
    return Image.Image if isinstance(values, Image.Image) else type(values)


def both(model: Path, folder: Path, *given: Any, **options: Any) -> Iterator[tuple[Any, Calls]]:
    """The trained trainers, stock first, and what a reward was given in each."""
    for name in BOTH:
        calls = Calls()
        yield train(name, model, folder / name, *given, **{"reward_funcs": calls, **options}), calls


def logged(trainer: Any) -> set[str]:
    return {key for entry in trainer.state.log_history for key in entry}


@pytest.mark.parametrize("data", [text_rows, image_rows])
def test_rewards_see_messages_in_the_shape_of_stock(data: Callable[[], Dataset], tiny_model: Path, tmp_path: Path):
    """Strings stay strings; with images there are blocks, which hold the decoded images."""
    (stock, one), (ours, other) = both(tiny_model, tmp_path, train_dataset=data())
    assert shapes(one.seen[0]["prompts"]) == shapes(other.seen[0]["prompts"])
    assert shapes(one.seen[0]["completions"]) == shapes(other.seen[0]["completions"])
    assert set(one.seen[0]) <= set(other.seen[0])
    assert logged(stock) <= logged(ours)


def test_arguments_may_come_by_place(tiny_model: Path, tmp_path: Path):
    (_, one), (_, other) = both(tiny_model, tmp_path, text_rows(), text_rows())
    assert len(one.seen) == len(other.seen) == 1


@pytest.mark.parametrize("is_vision", [True, False])
def test_a_reward_model_by_its_folder(
    is_vision: bool, reward_model: Path, text_model: Path, tiny_model: Path, tmp_path: Path
):
    model = tiny_model if is_vision else text_model
    for name in BOTH:
        trainer = train(name, model, tmp_path / name, reward_funcs=str(reward_model), train_dataset=text_rows())
        assert f"rewards/{reward_model.name}/mean" in logged(trainer)


def test_an_unknown_reward_is_no_model(tiny_model: Path, tmp_path: Path):
    with pytest.raises(KeyError, match=r"unknown reward 'formatt'; did you mean 'format'"):
        train("ours", tiny_model, tmp_path, reward_funcs="formatt", train_dataset=text_rows())


def with_tools(name: str, model: Path, folder: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    """The trainer after a step with a scripted call, and what its reward was given."""
    calls = Calls()
    given = {"reward_funcs": calls, "tools": [look], "train_dataset": text_rows(), **options}
    own = {"shared_prefix": "off"} if name == "ours" else {}  # so that the model's own `generate` is called
    trainer = train(name, model, folder / name, scripted=True, max_completion_length=300, **given, **own)
    return trainer, calls.seen[0]


@pytest.mark.parametrize("is_vision", [True, False])
def test_turns_with_tools_are_shown_as_stock_shows_them(
    is_vision: bool, folder_of: Callable[[str], Path], text_model: Path, tmp_path: Path
):
    """Calls are in `tool_calls`, results are strings; how often tools are called is logged under the same names."""
    model = folder_of("qwen3_vl") if is_vision else text_model
    (stock, one), (ours, other) = (with_tools(name, model, tmp_path) for name in BOTH)
    assert len(one["completions"][0]) == 3 and one["completions"][0][0]["tool_calls"]
    assert one["completions"] == other["completions"] and one["prompts"] == other["prompts"]
    metrics = [{k: v for k, v in t.state.log_history[0].items() if k.startswith("tools/")} for t in (stock, ours)]
    assert metrics[0] == metrics[1] == {"tools/call_frequency": 1.0, "tools/failure_frequency": 0.0}
    assert logged(stock) <= logged(ours)


@pytest.mark.parametrize(("iterations", "messages"), [(0, 1), (1, 3), (None, 3)])
def test_turns_that_call_tools_are_limited_as_in_stock(
    iterations: int | None, messages: int, text_model: Path, tmp_path: Path
):
    for name in BOTH:
        _, seen = with_tools(name, text_model, tmp_path, max_tool_calling_iterations=iterations)
        assert {len(completion) for completion in seen["completions"]} == {messages}


@pytest.mark.parametrize("room", [Room, SlowRoom])
@pytest.mark.parametrize("is_vision", [True, False])
def test_an_environment_may_give_the_prompts(
    is_vision: bool, room: type, folder_of: Callable[[str], Path], text_model: Path, tmp_path: Path
):
    """Without a data set, with a reward of its own, which may be a coroutine."""
    model = folder_of("qwen3_vl") if is_vision else text_model
    data = {"tools": None, "train_dataset": None, "environment_factory": room}
    (stock, one), (ours, other) = (with_tools(name, model, tmp_path, **data) for name in BOTH)
    assert one["completions"] == other["completions"] and one["prompts"] == other["prompts"]
    assert ours.state.log_history[0][f"rewards/{room.__name__}/mean"] == 1.0
    assert logged(stock) <= logged(ours)


def test_rloo_has_tools_for_models_without_images(text_model: Path, tmp_path: Path):
    """Stock's has none at all."""
    args = VLMRLOOConfig(**settings(tmp_path, max_steps=1, max_completion_length=300))
    trainer = VLMRLOOTrainer(str(text_model), None, args, environment_factory=Room)
    follow_script(trainer)
    trainer.train()
    assert trainer.state.log_history[0]["rewards/Room/mean"] == 1.0


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"environment_factory": Room, "max_steps": -1}, "no train_dataset: .* max_steps must say how long"),
        ({"environment_factory": {"room": Room}}, "several environments and no train_dataset"),
    ],
)
def test_what_an_environment_without_data_needs(
    options: dict[str, Any], problem: str, text_model: Path, tmp_path: Path
):
    with pytest.raises(ValueError, match=problem):
        train("ours", text_model, tmp_path, **options)


def test_coroutines_are_rewards(tiny_model: Path, tmp_path: Path):
    async def half(completions: list, **columns: Any) -> list[float]:
        return [0.5] * len(completions)

    for name in BOTH:
        trainer = train(name, tiny_model, tmp_path / name, reward_funcs=[half], train_dataset=text_rows())
        assert trainer.state.log_history[0]["rewards/half/mean"] == 0.5


def test_a_picture_from_a_tool_is_refused_by_a_model_without_images(text_model: Path, tmp_path: Path):
    def look(place: str) -> list[dict[str, Any]]:
        """Look at a place.

        Args:
            place: Where to look.
        """
        return [{"type": "image", "image": picture(0)}]

    with pytest.raises(ValueError, match="a tool has returned an image, and this model reads text alone"):
        with_tools("ours", text_model, tmp_path, tools=[look])


def test_a_language_model_gets_a_card_whose_snippet_answers(text_model: Path, tmp_path: Path, capsys: Any):
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": "How many legs has a cat?"}]}] * 4)
    args = VLMGRPOConfig(**settings(tmp_path / "out", max_steps=1))
    trainer = VLMGRPOTrainer(str(text_model), length_reward, args, train_dataset=rows)
    trainer.train()
    trainer.save_model()
    text = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["pipeline_tag"] == "text-generation" and "A language model, trained by" in text
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(code, "README.md", "exec"), names := {})
    assert "image" not in code and names["output"].shape[1] > names["inputs"]["input_ids"].shape[1]
    assert capsys.readouterr().out
    trainer.create_model_card("org/legs", "org/cats", tags="animals")
    card = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front["datasets"] == ["org/cats"] and "animals" in front["tags"] and "\n# legs\n" in card
