"""Templates that begin the answer: everybody who reads a completion sees what the prompt has opened of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoProcessor, Qwen2Config, Qwen2ForCausalLM

from tests.support import families
from tests.support.agents import Speaker
from tests.support.environments import Gallery, call, scripted_turns
from tests.support.templates import published, tokenizer_with, with_template
from tests.support.training import picture, rewards_of, scripted_completions, settings, user
from vlm_grpo.algorithms.demonstration_encoder import demonstration_encoder
from vlm_grpo.evaluation import predict
from vlm_grpo.rollouts.decoding import TurnDecoder
from vlm_grpo.rollouts.encoder import PromptEncoder
from vlm_grpo.trainers.config import VLMGRPOConfig, VLMRLOOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer
from vlm_grpo.trainers.rloo import VLMRLOOTrainer

THINKS, SILENT = "<think>\n", "<think>\n\n</think>\n\n"
# What is sampled after <think>, and what it earns: accuracy, format.
THOUGHTS = {
    "It is red.</think>\n\n<answer>red</answer>": (1.0, 1.0),
    "Perhaps <answer>red</answer>, or not": (0.0, 0.0),
    "Not <answer>blue</answer>.</think>\n\n<answer>red</answer>": (1.0, 1.0),
    "<think>Red.</think><answer>red</answer>": (1.0, 0.0),
}
LOOK = call("look", color="red")


@pytest.fixture(scope="module")
def thinker(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with the template of Qwen3.5 that begins a thought."""
    return with_template(tiny_model, tmp_path_factory.mktemp("thinker") / "model", published("qwen3_5_think"))


def rows() -> Dataset:
    return Dataset.from_list([{"prompt": user("what color?"), "image": picture(0), "answer": "red"}])


@pytest.mark.parametrize("kind", [(VLMGRPOTrainer, VLMGRPOConfig), (VLMRLOOTrainer, VLMRLOOConfig)])
def test_rewards_and_logs_see_the_whole_turn(kind: tuple, thinker: Path, tmp_path: Path, monkeypatch: Any):
    monkeypatch.setenv("DEBUG_MODE", "true")
    monkeypatch.setenv("LOG_PATH", str(tmp_path / "d.txt"))
    seen: dict[str, list[Any]] = {}

    def own(completions: list, whole_turns: list, turn_opening: list, **columns: Any) -> list[float]:
        seen.update(completions=completions, turns=whole_turns, openings=turn_opening)
        return [0.0] * len(completions)

    args = kind[1](**settings(tmp_path, max_steps=1, max_completion_length=100))
    rewards = ["accuracy", "format", own]
    trainer = scripted_completions(kind[0](str(thinker), rewards, args, train_dataset=rows()), list(THOUGHTS))
    watched: list[Any] = []
    trainer.watch_rollout = watched.append
    trainer.train()
    whole = [THINKS + text for text in THOUGHTS]
    for place, reward in enumerate(("accuracy", "format")):
        lines = [json.loads(line) for line in (tmp_path / f"d_{reward}_default.txt").open()]
        assert [line["value"] for line in lines] == [values[place] for values in THOUGHTS.values()]
        assert [line["completion"] for line in lines] == whole
    assert [turn[0]["content"] for turn in watched[0].completions] == whole
    assert [turn[0]["content"] for turn in seen["turns"]] == whole
    assert [turn[0]["content"] for turn in seen["completions"]] == list(THOUGHTS)  # TRL's form stays TRL's
    assert seen["openings"] == [THINKS] * 4


def test_prompts_that_ask_for_written_tags_are_worth_a_word(thinker: Path, tmp_path: Path, caplog: Any):
    for question, count in (("Think in <think> </think>.", 1), ("what color?", 0)):
        asked = Dataset.from_list([{"prompt": user(question), "image": picture(0), "answer": "red"}])
        args = VLMGRPOConfig(**settings(tmp_path, max_steps=2, max_completion_length=100))
        caplog.clear()
        trainer = VLMGRPOTrainer(str(thinker), ["format"], args, train_dataset=asked)
        scripted_completions(trainer, list(THOUGHTS)).train()
        assert [record.getMessage()[:34] for record in caplog.records if "think_tags=False" in record.getMessage()] == [
            "prompts ask for <think> tags, but "
        ] * count


def test_a_template_that_skips_the_thought_asks_for_no_tags(tiny_model: Path, tmp_path: Path):
    model = with_template(tiny_model, tmp_path / "model", published("qwen3_5_nothink"))
    args = VLMGRPOConfig(**settings(tmp_path / "out", max_steps=1, max_completion_length=60))
    texts = ["<answer>red</answer>", "red", "<think>a</think><answer>red</answer>", "<answer>red</answer> yes"]
    trainer = VLMGRPOTrainer(str(model), ["format"], args, train_dataset=rows())
    scripted_completions(trainer, texts).train()
    assert trainer.state.log_history[0]["rewards/format/mean"] == 0.25


def test_calls_that_are_only_thought_of_are_not_made(thinker: Path, tmp_path: Path):
    scripts = [
        (f"I could say {LOOK}",),
        (f"I look.</think>\n{LOOK}", f"Again? {LOOK}"),
        (f"I look.</think>\n{LOOK}", f"Again.</think>\n{LOOK}", "Done.</think>\nred"),
        ("No.</think>\nred",),
    ]
    args = VLMGRPOConfig(**settings(tmp_path, max_completion_length=900, tool_format="hermes"))
    finished: list[str] = []

    class Watched(Gallery):
        def finish(self, text: str) -> None:
            finished.append(text)

    trainer = VLMGRPOTrainer(str(thinker), [], args, train_dataset=rows(), environment_factory=Watched)
    scripted_turns(trainer, scripts)
    trainer.model.train()
    output = trainer._generate_and_score_completions([dict(trainer.train_dataset[0]) for _ in range(4)])
    assert trainer._metrics["train"]["episodes/calls"] == [0.75]  # 0, 1, 2 and 0
    assert finished == [THINKS + script[-1] for script in scripts]
    text = trainer.processing_class.tokenizer.decode(output["completion_ids"][2])
    assert text.count(THINKS) == 2  # the prompt has the first one


def test_every_turn_has_its_own_opening(thinker: Path, tmp_path: Path):
    turns = [*user("what color?"), {"role": "assistant", "content": "I look."}]
    begun = Dataset.from_list([{"prompt": turns, "image": picture(0), "answer": "red"}])
    args = VLMGRPOConfig(**settings(tmp_path, max_completion_length=900, tool_format="hermes"))
    trainer = VLMGRPOTrainer(str(thinker), ["accuracy"], args, train_dataset=begun, tools=[Gallery().read])
    scripted_turns(trainer, [(call("read", page=3), "A page.</think>\nred")])
    trainer.model.train()
    seen: list[Any] = []
    trainer.watch_rollout = seen.append
    trainer._generate_and_score_completions([dict(begun[0]) for _ in range(4)])
    first, _, last = seen[0].completions[0]
    assert first["content"] == f"{THINKS}\n</think>\n\nI look.{call('read', page=3)}"
    assert last["content"] == f"{THINKS}A page.</think>\nred"


def test_evaluation_scores_the_whole_turn(thinker: Path):
    processor = AutoProcessor.from_pretrained(thinker)
    texts = list(THOUGHTS)
    asked = [{"prompt": user(f"{n}"), "answer": "red", "images": []} for n in range(4)]
    model = Speaker(processor.tokenizer, lambda prompt, turn: texts[int(prompt.split("user\n")[1][0])])
    found = predict(model, processor, asked, range(4), task="default", max_completion_length=100)
    assert [entry["completion"] for entry in found] == [THINKS + text for text in texts]
    scores = [(entry["scores"]["accuracy"], entry["scores"]["format"]) for entry in found]
    assert scores == list(THOUGHTS.values())
    silent = predict(model, processor, asked, range(1), task="default", template_options={"enable_thinking": False})
    assert silent[0]["completion"] == SILENT + texts[0] and silent[0]["facts"]["turn_opening"] == SILENT


def test_marks_that_say_something_are_kept():
    words = families.tokenizer("<|begin_of_box|>", "<|end_of_box|>", "<|channel>", "<|tool_call>")
    decode = TurnDecoder(words)
    said = "<|channel>thought\nx<|begin_of_box|>3<|end_of_box|><|tool_call>"
    ids = words("<|im_start|>" + said, add_special_tokens=False)["input_ids"] + [words.eos_token_id] * 2
    assert decode(ids) == said
    assert decode(words("<|im_start|>3", add_special_tokens=False)["input_ids"]) == "3"


def test_answers_of_an_expert_go_on_after_the_opening(thinker: Path):
    processor = AutoProcessor.from_pretrained(thinker)
    end = processor.tokenizer.eos_token_id
    for options, answer in (({}, "a</think><answer>7</answer>"), ({"enable_thinking": False}, "<answer>7</answer>")):
        encode = demonstration_encoder(processor, [end], 99, options)
        assert processor.tokenizer.decode(encode("<think>a</think><answer>7</answer>")[:-1]) == answer


@pytest.mark.parametrize("role", ["system", "user"])
def test_a_placeholder_in_text_is_named_with_its_row(role: str, thinker: Path):
    encoder = PromptEncoder(AutoProcessor.from_pretrained(thinker), {})
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    turns = [{**turn, "content": "a <|image_pad|>"} if turn["role"] == role else turn for turn in turns]
    with pytest.raises(ValueError, match=rf"a\.jsonl:7: the text of a turn of the {role} holds '<\|image_pad\|>'"):
        encoder.encode([{"prompt": turns, "where": "a.jsonl:7"}])


def test_models_of_text_have_openings_too(tmp_path: Path):
    words = tokenizer_with(published("nemotron_3_nano"))
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = Qwen2Config(vocab_size=len(words), num_key_value_heads=1, eos_token_id=words.eos_token_id, **sizes)
    asked = Dataset.from_list([{"prompt": user("what color?"), "answer": "red"}])
    args = VLMGRPOConfig(**settings(tmp_path, max_steps=1, max_completion_length=100))

    trainer = VLMGRPOTrainer(Qwen2ForCausalLM(config), ["format"], args, train_dataset=asked, processing_class=words)
    assert rewards_of(trainer, list(THOUGHTS))["format"] == [form for _, form in THOUGHTS.values()]
