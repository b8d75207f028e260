"""Rollouts with tools: what was generated is trained, what tools wrote is masked, pixels stay with their row."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from PIL import Image

from tests.support.environments import Gallery, call, scripted_turns
from tests.support.families import FAMILIES_TINY
from tests.support.training import differences, picture, settings, user
from vlm_grpo.envs.pick_image import PickImage, repeatable_episodes
from vlm_grpo.rollouts.batch import RolloutBatch
from vlm_grpo.rollouts.segment import full_row
from vlm_grpo.synthetic.candidates import write_candidates
from vlm_grpo.trainers.config import VLMGRPOConfig, VLMRLOOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer
from vlm_grpo.trainers.rloo import VLMRLOOTrainer

KINDS = {"grpo": (VLMGRPOTrainer, VLMGRPOConfig), "rloo": (VLMRLOOTrainer, VLMRLOOConfig)}
LOOK, READ = call("look", color="red"), call("read", page=3)
SCRIPTS = (
    (LOOK, call("look", color="blue", side=84), "two colors"),
    (READ, "a page"),
    ("nothing at all",),
    (READ, LOOK, "a page and red"),
)


def rows(count: int = 2) -> Dataset:
    return Dataset.from_list(
        [{"prompt": user("what color " * (n + 1)), "image": picture(n), "answer": str(n)} for n in range(count)]
    )


def build(kind: str, model: Path, folder: Path, scripts: Any = SCRIPTS, data: Any = None, **options: Any) -> Any:
    trainer, config = KINDS[kind]
    own = {name: options.pop(name) for name in ("tools", "environment_factory", "reward_funcs") if name in options}
    own.setdefault("environment_factory", None if "tools" in own else Gallery)
    args = config(**settings(folder, **{"max_completion_length": 400, **options}))
    made = trainer(str(model), own.pop("reward_funcs", []), args, train_dataset=data or rows(), **own)
    if scripts:
        scripted_turns(made, scripts)
    return made


def rollout(trainer: Any, count: int = 4) -> dict[str, Any]:
    trainer.model.train()
    row = trainer.train_dataset[0]
    return trainer._generate_and_score_completions([dict(row) for _ in range(count)])


def conversation(trainer: Any, episode_turns: list[Any]) -> dict[str, torch.Tensor]:
    """The whole conversation of a row as the processor renders and tokenises it at once."""
    messages, images = [], []
    for role, content in episode_turns:
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        images += [block["image"] for block in blocks if block["type"] == "image"]
        messages.append({"role": role, "content": blocks})
    text = trainer.processing_class.apply_chat_template(messages, tokenize=False)
    return trainer.processing_class(text=[text.rstrip("\n")], images=images or None, return_tensors="pt")


def expected_turns(trainer: Any) -> list[Any]:
    """Row 0 of SCRIPTS, written out by hand."""
    prompt = trainer._samples_seen[0]

    def shown(color: str, side: int) -> list[dict[str, Any]]:
        text = f"<tool_response>\n{color}: "
        image = Image.new("RGB", (side, side), color)
        return [
            {"type": "text", "text": text},
            {"type": "image", "image": image},
            {"type": "text", "text": "\n</tool_response>"},
        ]

    system, question = prompt.messages
    filled = [
        {**block, "image": prompt.images[0]} if block["type"] == "image" else block for block in question["content"]
    ]
    first, second, last = SCRIPTS[0]
    return [
        ("system", system["content"]),
        ("user", filled),
        ("assistant", first),
        ("user", shown("red", 56)),
        ("assistant", second),
        ("user", shown("blue", 84)),
        ("assistant", last),
    ]


def remember_prompts(trainer: Any) -> None:
    """Keep the encoded prompts of a rollout, with their images."""
    encode = trainer.encoder.encode

    def encode_and_keep(given: Any) -> Any:
        trainer._samples_seen = encode(given)
        return trainer._samples_seen

    trainer.encoder.encode = encode_and_keep


@pytest.mark.parametrize("kind", list(KINDS))
def test_tokens_are_those_of_the_whole_conversation(kind: str, tiny_model: Path, tmp_path: Path):
    """Joined turn by turn, they are what rendering everything at once gives; images of three sizes are expanded."""
    trainer = build(kind, tiny_model, tmp_path)
    remember_prompts(trainer)
    output = rollout(trainer)
    whole = conversation(trainer, expected_turns(trainer))
    prompt = output["prompt_ids"][0][output["prompt_mask"][0] == 1]
    completion = output["completion_ids"][0][output["completion_mask"][0] == 1]
    assert torch.cat([prompt, completion]).tolist() == whole["input_ids"][0].tolist()
    sample = full_row(output["samples"][0])
    assert sample.input_ids == whole["input_ids"][0].tolist()
    assert torch.equal(sample.visual["pixel_values"], whole["pixel_values"])
    assert torch.equal(sample.visual["image_grid_thw"], whole["image_grid_thw"])
    assert sample.per_token["mm_token_type_ids"] == whole["mm_token_type_ids"][0].tolist()


@pytest.mark.parametrize("kind", list(KINDS))
def test_masks_cover_exactly_what_tools_wrote(kind: str, tiny_model: Path, tmp_path: Path):
    trainer = build(kind, tiny_model, tmp_path)
    output = rollout(trainer)
    decode, end = trainer.processing_class.tokenizer.decode, trainer.processing_class.tokenizer.eos_token
    for row, script in enumerate(SCRIPTS):
        real = output["completion_mask"][row] == 1
        ids, mask = output["completion_ids"][row][real], output["tool_mask"][row][real] == 1
        assert decode(ids[mask]) == "".join(turn + end for turn in script)
        others = decode(ids[~mask])
        assert others.count("<tool_response>") == others.count("assistant\n") == len(script) - 1
        assert not mask.all() or len(script) == 1
    assert trainer._metrics["train"]["completions/mean_length"][-1] == pytest.approx(
        (output["completion_mask"] * output["tool_mask"]).sum(dim=1).float().mean().item()
    )


def plain_logps(trainer: Any, whole: dict[str, torch.Tensor], length: int) -> torch.Tensor:
    """By the model's own forward over a conversation."""
    trainer.model.eval()
    with torch.no_grad():
        logits = type(trainer.model).forward(trainer.model, **whole).logits.float()
    scores = logits[0, :-1].log_softmax(dim=-1)
    return scores.gather(1, whole["input_ids"][0, 1:, None])[-length:, 0]


@pytest.mark.parametrize("shared_prefix", ["auto", "off"])
def test_scores_are_those_of_the_whole_conversation(shared_prefix: str, tiny_model: Path, tmp_path: Path):
    """Positions go on through the images of tools, and each completion sees its own pixels."""
    trainer = build("grpo", tiny_model, tmp_path, shared_prefix=shared_prefix)
    remember_prompts(trainer)
    output = rollout(trainer)
    assert trainer.shared_prefix.is_on == (shared_prefix == "auto")
    length = int(output["completion_mask"][0].sum())
    expected = plain_logps(trainer, conversation(trainer, expected_turns(trainer)), length)
    with torch.no_grad():
        found = trainer.completion_logprobs(RolloutBatch.from_trl_dict(output), trainer.model, chunk=4).logps
    assert torch.allclose(found[0, :length], expected, atol=1e-5)


@pytest.mark.parametrize("kind", list(KINDS))
def test_packed_and_plain_training_are_the_same(kind: str, tiny_model: Path, tmp_path: Path):
    runs = []
    for mode in ("on", "off"):
        trainer = build(kind, tiny_model, tmp_path / mode, shared_prefix=mode, beta=0.1, num_iterations=2, max_steps=4)
        trainer.train()
        runs.append(trainer)
    found = differences(*runs)
    assert found["logs"] < 1e-5
    assert found["weights"] < 1e-4  # Adam's first steps are as large for the smallest gradients


@pytest.mark.parametrize("kind", list(KINDS))
def test_tools_tokens_have_no_gradient(kind: str, tiny_model: Path, tmp_path: Path):
    """The loss is that of the model's own tokens by hand: their log-probabilities alone move with the weights."""
    trainer = build(kind, tiny_model, tmp_path)
    output = rollout(trainer)
    trainer.current_gradient_accumulation_steps = 1
    seen = {}
    score = type(trainer)._get_per_token_logps_and_entropies

    def keep(self: Any, *rest: Any, **options: Any) -> Any:
        scores = score(self, *rest, **options)
        scores[0].retain_grad()
        seen["logps"] = scores[0]
        return scores

    trainer._get_per_token_logps_and_entropies = keep.__get__(trainer)
    output["advantages"] = torch.tensor([1.0, -1.0, 0.5, 2.0])
    trainer._compute_loss(trainer.model, output).backward()
    own = (output["completion_mask"] * output["tool_mask"]).bool()
    gradient = seen["logps"].grad
    assert (gradient[own] != 0).all()
    assert (gradient[~own] == 0).all()
    if kind == "rloo":  # -A/B for each own token where the ratio is 1
        assert torch.allclose(gradient, -(output["advantages"] / 4)[:, None] * own, atol=1e-6)


def test_old_log_probabilities_of_rloo_are_of_own_tokens(tiny_model: Path, tmp_path: Path):
    trainer = build("rloo", tiny_model, tmp_path, beta=0.1)
    output = rollout(trainer)
    with torch.no_grad():
        logps = trainer.completion_logprobs(RolloutBatch.from_trl_dict(output), trainer.model, chunk=4).logps
    own = output["completion_mask"] * output["tool_mask"]
    assert torch.allclose(output["old_logps"], (logps * own).sum(dim=1), atol=1e-4)
    assert trainer._metrics["train"]["kl"][-1] == pytest.approx(0.0, abs=1e-6)


def test_a_placeholder_that_the_model_writes_drops_that_sample_alone(tiny_model: Path, tmp_path: Path):
    broken = ("<|image_pad|>", "and on")
    trainer = build("grpo", tiny_model, tmp_path, scripts=(*SCRIPTS[:3], (READ, *broken)))
    output = rollout(trainer)
    own = (output["completion_mask"] * output["tool_mask"]).sum(dim=1)
    assert own[3] == 0
    assert (own[:3] > 0).all()
    assert trainer._metrics["train"]["episodes/dropped"] == [0.25]
    assert len(output["samples"][0].refs) == 3  # the others keep their pixels
    trainer.train()
    assert all(entry["loss"] == entry["loss"] for entry in trainer.state.log_history if "loss" in entry)


def test_results_beyond_the_budget_are_not_shown(tiny_model: Path, tmp_path: Path):
    """The second picture has no room: the episode ends with the call for it."""
    free = build("grpo", tiny_model, tmp_path)
    whole = int(rollout(free)["completion_mask"][0].sum())
    tight = build("grpo", tiny_model, tmp_path)
    tight.max_completion_length = whole - 12
    output = rollout(tight)
    real = output["completion_mask"][0] == 1
    assert output["completion_ids"].size(1) <= whole - 12
    assert tight.processing_class.tokenizer.decode(output["completion_ids"][0][real]).endswith("</tool_call><|im_end|>")
    assert len(output["samples"][0].refs) == 2
    assert tight._metrics["train"]["episodes/shown"] == [3 / 4]  # rows 0 and 3; the second one was made, not shown


@pytest.mark.parametrize(
    ("options", "scripts", "turns", "calls"),
    [
        ({"max_turns": 2}, ((READ,),), 2, 2),  # would go on for ever
        ({}, ((call("look", color="red"),),), 1, 1),  # done after one picture
        ({}, ((READ, READ, "end"),), 3, 2),
        ({}, (("no call",),), 1, 0),
    ],
)
def test_episodes_end(options: dict, scripts: Any, turns: int, calls: int, tiny_model: Path, tmp_path: Path):
    trainer = build("grpo", tiny_model, tmp_path, scripts, environment_factory=lambda: Gallery(limit=1), **options)
    rollout(trainer)
    assert trainer._metrics["train"]["episodes/turns"] == [turns]
    assert trainer._metrics["train"]["episodes/calls"] == [calls]


def test_a_turn_that_was_cut_off_ends_the_episode(tiny_model: Path, tmp_path: Path):
    trainer = build("grpo", tiny_model, tmp_path, scripts=None)
    scripted_turns(trainer, ((READ, "end"),), is_truncated=lambda row, turn: turn == 0)
    rollout(trainer)
    assert trainer._metrics["train"]["episodes/turns"] == [1]
    assert trainer._metrics["train"]["episodes/calls"] == [0]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (call("look", color="pink"), "Error: no color 'pink'"),
        (call("look"), "Error: look: missing a required argument: 'color'"),
        (call("look", colour="red"), "Error: look: missing a required argument: 'color'"),
        (call("paint"), "Error: there is no tool 'paint'"),
        ("<tool_call>{</tool_call>", "Error: the call cannot be read"),
        (call("crash"), "Error: RuntimeError: broken"),
        (call("wait", seconds=60), "Error: wait did not end within 0.2 s"),
        (call("reset"), "Error: there is no tool 'reset'"),
        (call("get_reward"), "Error: there is no tool 'get_reward'"),
    ],
)
def test_errors_are_shown_to_the_model(said: str, told: str, tiny_model: Path, tmp_path: Path):
    trainer = build("grpo", tiny_model, tmp_path, scripts=((said, "end"),), tool_time_limit=0.2)
    rollout(trainer)
    completion = trainer._logs["completion"][0]
    assert trainer._metrics["train"]["episodes/failed_calls"] == [1]
    if "did not end" in told:  # the environment is still busy: the episode is over
        assert len(completion) == 1
        assert len(trainer.env_pool.idle[None]) == 0
    else:
        assert completion[1]["content"].startswith(told)
        assert completion[-1]["content"] == "end"
        assert len(trainer.env_pool.idle[None]) == 4


def test_calls_of_a_turn_run_side_by_side(tiny_model: Path, tmp_path: Path):
    """Four calls wait for each other: one after the other they would never meet."""
    barrier = threading.Barrier(4)

    def meet() -> str:
        """Wait for the others."""
        barrier.wait(timeout=30)
        return "met"

    trainer = build(
        "grpo", tiny_model, tmp_path, scripts=((call("meet"), "end"),), tools=[meet], reward_funcs=["format"]
    )
    rollout(trainer)
    assert [completion[1]["content"] for completion in trainer._logs["completion"]] == ["met"] * 4


def test_environments_are_reused_and_apart(tiny_model: Path, tmp_path: Path):
    made = []

    def make() -> Gallery:
        made.append(Gallery())
        return made[-1]

    trainer = build("grpo", tiny_model, tmp_path, environment_factory=make)
    rollout(trainer)
    rollout(trainer)
    assert len(made) == 4
    assert list(trainer._logs["rewards"]["Gallery"])[-4:] == pytest.approx([2.010, 0.006, 0.014, 1.014])


def test_rows_choose_their_environment(tiny_model: Path, tmp_path: Path):
    class Quiet:
        """Has nothing to say and no tools."""

        def reset(self, **row: Any) -> None:
            """Begin."""

        def get_reward(self) -> float:
            """Always the same."""
            return 0.5

    data = Dataset.from_list([{"prompt": user("a"), "environment": name} for name in ("gallery", "quiet")])
    trainer = build(
        "grpo", tiny_model, tmp_path, scripts=(("hello",),), data=data,
        environment_factory={"gallery": Gallery, "quiet": Quiet},
    )  # fmt: skip
    trainer.model.train()
    trainer._generate_and_score_completions([dict(data[n // 2]) for n in range(4)])
    prompts = list(trainer._logs["prompt"])
    assert "tool_call" in str(prompts[0])
    assert "tool_call" not in str(prompts[2])
    rewards = list(trainer._logs["rewards"]["Quiet"])
    assert rewards[2:] == [0.5, 0.5]
    assert all(value != value for value in rewards[:2])  # NaN: played in another environment
    with pytest.raises(ValueError, match="'environment' must be one of gallery, quiet, got 'other'"):
        trainer._generate_and_score_completions([{"prompt": user("a"), "environment": "other"}])


@pytest.mark.parametrize("options", [{"steps_per_generation": 2}, {"num_iterations": 2, "beta": 0.1}])
@pytest.mark.parametrize("kind", list(KINDS))
def test_resuming_within_a_rollout_is_exact(kind: str, options: dict, tiny_model: Path, tmp_path: Path):
    """Pictures that tools showed come back with the checkpoint."""
    runs = []
    for start in (None, str(tmp_path / "checkpoint-3")):
        trainer = build(kind, tiny_model, tmp_path, max_steps=5, save_strategy="steps", save_steps=3, **options)
        trainer.train(resume_from_checkpoint=start)
        runs.append(trainer)
    assert differences(*runs)["weights"] == 0.0


def for_half(completions: list, answer: list, **columns: Any) -> list[float]:
    """A signal in the groups of every second row only."""
    return [float(n % 4 > 1) if int(number) % 2 else 1.0 for n, number in enumerate(answer)]


def test_dynamic_sampling_of_episodes_trains_as_without_where_every_group_has_a_signal(
    tiny_model: Path, tmp_path: Path
):
    """Gallery's own reward differs in every group."""
    runs = [build("grpo", tiny_model, tmp_path, max_steps=2, dynamic_sampling=rounds) for rounds in (0, 2)]
    for trainer in runs:
        trainer.train()
    weights = [trainer.model.state_dict() for trainer in runs]
    assert max((weights[0][name] - weights[1][name]).abs().max() for name in weights[0]) < 1e-6


def test_dynamic_sampling_of_episodes_fills_rollouts_and_resumes(tiny_model: Path, tmp_path: Path):
    runs, batches = [], []
    options = {"reward_funcs": [for_half], "dynamic_sampling": 8, "dynamic_sampling_reward": "for_half"}
    for start in (None, str(tmp_path / "checkpoint-1")):
        trainer = build(
            "grpo", tiny_model, tmp_path, data=rows(6), max_steps=3, save_strategy="steps", save_steps=1,
            per_device_train_batch_size=4, steps_per_generation=2, **options,
        )  # fmt: skip
        compute = trainer._compute_loss
        trainer._compute_loss = lambda model, inputs, compute=compute: (batches.append(inputs), compute(model, inputs))[
            1
        ]
        trainer.train(resume_from_checkpoint=start)
        runs.append(trainer)
    for batch in batches:
        assert batch["advantages"].abs().min() > 0
        masks = batch["tool_mask"] * batch["completion_mask"]
        assert 0 < masks.sum() < batch["completion_mask"].sum()
    assert differences(*runs)["weights"] == 0.0


@pytest.mark.parametrize("kind", list(KINDS))
def test_endless_episodes_resume_where_they_were(kind: str, tiny_model: Path, tmp_path: Path):
    write_candidates(tmp_path / "toy")
    picks = tuple((call("pick_image", index=index),) for index in range(4))
    runs, last = [], []
    for start in (None, str(tmp_path / "checkpoint-3")):
        trainer = build(
            kind, tiny_model, tmp_path, picks, data=repeatable_episodes(seed=2), max_steps=5, save_strategy="steps",
            save_steps=3, environment_factory=lambda: PickImage(data_root=str(tmp_path / "toy")),
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=start)
        runs.append(trainer)
        last.append(str(trainer._logs["prompt"][-1]))
    assert last[0] == last[1]
    assert differences(*runs)["weights"] == 0.0
    assert runs[0].state.log_history[-2]["reward_std"] > 0


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "llava_clip", "internvl", "smolvlm"])
def test_other_families_show_pictures_in_turns(family: str, tmp_path: Path):
    """Packed and plain scores agree where completions hold images, and training goes through."""
    FAMILIES_TINY[family](tmp_path / "model")
    trainer = build("grpo", tmp_path / "model", tmp_path, max_steps=1)
    trainer.max_completion_length = 1500
    output = rollout(trainer)
    scores = []
    for is_on in (True, False):
        trainer.shared_prefix.is_on = trainer.shared_prefix.is_on and is_on
        with torch.no_grad():
            scores.append(trainer.completion_logprobs(RolloutBatch.from_trl_dict(output), trainer.model, chunk=4).logps)
    real = output["completion_mask"].bool()
    assert torch.allclose(scores[0][real], scores[1][real], atol=1e-4)
    trainer.train()
    assert len(output["samples"][0].refs) == 3


def test_tags_call_tools(tiny_model: Path, tmp_path: Path):
    trainer = build("grpo", tiny_model, tmp_path, scripts=(("<look>green</look>", "end"),), tool_format="tags",
                    environment_factory=type("Tagged", (Gallery,), {"TAGS": {"look": "look"}}))  # fmt: skip
    output = rollout(trainer)
    assert "<look>color</look>" in str(trainer._logs["prompt"][0])
    assert "<result>" in trainer.processing_class.tokenizer.decode(output["completion_ids"][0])
    assert trainer._metrics["train"]["episodes/shown"] == [1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_prompt_length": 100}, "--max_prompt_length cannot know what environments add"),
        ({"tool_format": "native"}, "--tool_format native: this model's chat template does not support tools"),
        ({"environment_factory": object}, "environment 'object': object must have a method 'reset'"),
        ({"tools": [lambda x: x]}, "needs a type hint for every argument"),
        ({"algorithm": "remax"}, "needs a greedy completion of each prompt"),
    ],
)
def test_what_does_not_go_with_tools_is_refused(options: dict, message: str, tiny_model: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        build("grpo", tiny_model, tmp_path, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"algorithm": "ppo", "steps_per_generation": 1},
        {"algorithm": "gspo", "steps_per_generation": 1},
        {"algorithm": "reinforce_plus_plus"},
        {"kl_reward_coef": 0.1},
        {"dynamic_sampling": 2},
        {"mask_truncated_completions": True},
        {"gradient_checkpointing": True},
    ],
    ids=str,
)
def test_what_goes_with_tools(options: dict, tiny_model: Path, tmp_path: Path):
    trainer = build("grpo", tiny_model, tmp_path, **options)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 2
    assert all(entry["grad_norm"] > 0 for entry in logs)
    assert any(not torch.equal(before[name], value) for name, value in trainer.model.state_dict().items())


def test_named_rewards_see_the_last_turn(tiny_model: Path, tmp_path: Path):
    trainer = build("grpo", tiny_model, tmp_path, scripts=((READ, "<answer>0</answer>"), (READ, "<answer>7</answer>")),
                    reward_funcs=["accuracy"])  # fmt: skip
    rollout(trainer)
    assert list(trainer._logs["rewards"]["accuracy"]) == [1.0, 0.0, 1.0, 0.0]


class AsyncGallery(Gallery):
    """A gallery that asks a server for its reward."""

    async def get_reward(self) -> float:
        """The number of pictures that were shown."""
        return float(self.shown)


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_reward_of_an_environment_may_be_a_coroutine(kind: str, tiny_model: Path, tmp_path: Path):
    trainer = build(kind, tiny_model, tmp_path, environment_factory=AsyncGallery)
    rollout(trainer)
    assert trainer._metrics["train"]["rewards/AsyncGallery/mean"] == [0.75]  # 2, 0, 0 and 1 pictures


@pytest.mark.parametrize(
    ("method", "failure", "said"),
    [
        *((name, "raise ValueError('gone')", "ValueError: gone") for name in ("reset", "see", "finish", "metrics")),
        ("get_reward", "raise SystemExit(0)", "SystemExit: 0"),
        *(
            ("metrics", f"return {value}", "must return a mapping from name to a")
            for value in ("[1]", "{1: 'a'}", "{'a': float('nan')}")
        ),
        ("reset", "import time; time.sleep(60)", "has not returned for 2 s"),
    ],
)
def test_what_fails_in_an_environment_is_named_with_its_row(
    method: str, failure: str, said: str, tiny_model: Path, tmp_path: Path
):
    names: dict[str, Any] = {}
    exec(f"def {method}(self, *words, **options):\n    {failure}", names)
    kind = type("Torn", (Gallery,), {method: names[method]})
    data = rows(1).map(lambda row: {"where": "a.jsonl:7"})
    trainer = build("grpo", tiny_model, tmp_path, environment_factory=kind, data=data, reward_time_limit=2.0)
    with pytest.raises(RuntimeError, match=rf"environment 'Torn', {method}\(\) on row a.jsonl:7.*{said}"):
        rollout(trainer)
