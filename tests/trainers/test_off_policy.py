"""An expert's answers inside a training: what the loss sees; packing, paths and a resume change nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.data.files import write_jsonl
from tests.support.scripted import scripted_of
from tests.support.training import differences, image_rows, settings
from vlm_grpo.algorithms.hpt import replace_completions
from vlm_grpo.algorithms.uft import segments
from vlm_grpo.data.demonstrations import demonstrations
from vlm_grpo.data.errors import DataError
from vlm_grpo.rollouts.batch import RolloutBatch
from vlm_grpo.rollouts.encoder import EncodedPrompt
from vlm_grpo.rollouts.engines.engine import Generation
from vlm_grpo.rollouts.engines.transformers import TransformersEngine
from vlm_grpo.shared_prefix.zero_advantage import ZeroAdvantageRows
from vlm_grpo.trainers.config import VLMGRPOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer
from vlm_grpo.trainers.logprobs import TokenLogprobs

NAMES = ("luffy", "srft", "hpt", "chord", "uft")
ANSWERS = (
    "red circle. The answer",
    "blue. It is a square. So",
    "What is this? It is",
    "green",
    None,
    "two. three. four. 5",
)
# Options with which an expert's answers have an effect from the first step on.
ACTIVE = {"chord": {"mu_warmup": 0, "expert_batch": 3}, "hpt": {"correct_above": 0.75}, "uft": {"hint_coef": 0.5}}
LIMIT = 32


def rows(count: int = 8) -> Dataset:
    """Image rows of which the fifth has no answer, and the others one or two."""
    answers = [None if (text := ANSWERS[n % 6]) is None else [text, text + " 7"][: 1 + n % 2] for n in range(count)]
    return image_rows(count).add_column("expert", answers)


def by_text(completions: list, **columns: Any) -> list[float]:
    return [(sum(map(ord, completion[0]["content"])) % 11) / 10 for completion in completions]


def build(
    name: str, model: Path, folder: Path, *, data: Any = None, adapter: Any = None, shown: Any = None, **options: Any
) -> Any:
    chosen = settings(folder, per_device_train_batch_size=8, max_steps=1, max_completion_length=LIMIT)
    chosen |= {"algorithm_options": ACTIVE.get(name), **options}
    args = VLMGRPOConfig.of(name, chosen.pop("output_dir"), **chosen)
    data = rows() if data is None else data
    return VLMGRPOTrainer(str(model), by_text, args, train_dataset=data, peft_config=adapter, demonstrations=shown)


def trained(*args: Any, **options: Any) -> Any:
    made = build(*args, **options)
    made.train()
    return made


def losses_of(trainer: Any) -> list[dict[str, Any]]:
    """Train, and give what the losses saw."""
    seen: list[dict[str, Any]] = []
    compute = trainer._compute_loss
    trainer._compute_loss = lambda model, inputs: (seen.append(inputs), compute(model, inputs))[1]
    trainer.train()
    return seen


@pytest.fixture
def same_completions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Completions that depend on prompt and row alone, so that runs can be compared."""
    sample = TransformersEngine.generate

    def generate(self: TransformersEngine, prompts: Sequence[EncodedPrompt], **options: Any) -> Generation:
        sample(self, prompts, **options)
        return scripted_of(prompts)

    monkeypatch.setattr(TransformersEngine, "generate", generate)


def row_of(sample: Any) -> int:
    """Which of `image_rows` a prompt is: each repeats its question of five words once more."""
    return len(sample.messages[0]["content"][-1]["text"].split()) // 5 - 1


def texts_of(trainer: Any, inputs: dict[str, Any]) -> list[str]:
    pairs = zip(inputs["completion_ids"].tolist(), inputs["completion_mask"].sum(dim=1).tolist(), strict=True)
    return [trainer._tokenizer.decode(ids[:count]) for ids, count in pairs]


@pytest.mark.parametrize(("count", "name"), [(1, "luffy"), (2, "luffy"), (1, "srft")])
def test_the_last_rows_of_a_group_are_the_experts(count: int, name: str, tiny_model: Path, tmp_path: Path):
    """Rewarded, compared with those of the policy, and ended like them; one prompt has one answer, one has two."""
    trainer = build(name, tiny_model, tmp_path, algorithm_options={"expert_rows": count}, shuffle_dataset=False)
    (inputs,) = losses_of(trainer)
    texts, marks = texts_of(trainer, inputs), inputs["is_expert"][:, 0]
    for group in range(2):
        part = slice(4 * group, 4 * group + 4)
        known = [f"{answer}<|im_end|>" for answer in rows()[row_of(inputs["samples"][4 * group])]["expert"]]
        number = min(count, len(known))
        assert marks[part].tolist() == [False] * (4 - number) + [True] * number
        assert set(texts[part][4 - number :]) <= set(known) and len(set(texts[part][4 - number :])) == number
        plain = trainer._tokenizer.batch_decode(inputs["completion_ids"][part], skip_special_tokens=True)
        rewards = torch.tensor(by_text([[{"content": text}] for text in plain]))
        assert torch.allclose(inputs["advantages"][part], rewards - rewards.mean(), atol=1e-5)


def test_statistics_are_those_of_what_was_sampled(same_completions: None, tiny_model: Path, tmp_path: Path):
    """Scripted completions of 2, 3 and 4 tokens, none with an end; an answer in place of the one of 5."""
    trainer = trained("luffy", tiny_model, tmp_path, shuffle_dataset=False)
    log, rewards = trainer.state.log_history[0], torch.tensor(list(trainer._logs["rewards"]["by_text"])).view(2, 4)
    lengths = [log[f"completions/{kind}_length"] for kind in ("min", "mean", "max")]
    assert lengths == [2, 3, 4] and log["completions/clipped_ratio"] == 1
    assert log["completions/mean_terminated_length"] == 0
    assert log["reward"] == log["rewards/by_text/mean"] == pytest.approx(rewards[:, :3].mean().item())
    assert log["reward_std"] == pytest.approx(rewards[:, :3].std().item(), abs=1e-5)
    assert log["expert/reward"] == pytest.approx(rewards[:, 3].mean().item()) and log["expert/share"] == 0.25
    assert log["rewards/by_text/mean"] != pytest.approx(rewards.mean().item(), abs=1e-3)


def test_entropy_and_kl_are_those_of_what_was_sampled(tiny_model: Path, tmp_path: Path):
    """On both paths; the second step is off the reference."""
    trainer = build("luffy", tiny_model, tmp_path, beta=0.1, max_steps=2, learning_rate=1e-2)
    logged: list[tuple[torch.Tensor, torch.Tensor]] = []
    trainer.ranks.masked_mean = lambda values, mask: logged.append((values, mask)) or 0.0
    first, second = losses_of(trainer)
    for (_, mask), inputs in zip(logged, (first, first, second, second), strict=True):
        assert torch.equal(mask, inputs["completion_mask"] * ~inputs["is_expert"])
    kl = logged[2][0]
    assert kl[second["is_expert"][:, 0]].abs().sum() == 0 and kl[~second["is_expert"][:, 0]].sum() > 1e-3
    ones, is_expert = torch.ones(2, 3), torch.tensor([[True], [False]])
    silence = ZeroAdvantageRows(RolloutBatch(ones, ones, ones, ones, torch.ones(2), is_expert=is_expert))
    silence.fill_logprobs(TokenLogprobs(torch.zeros(2, 3), torch.tensor([[9.0] * 3, [1.0, 2.0, 3.0]]), None))
    assert silence.entropy_stats.tolist() == [6, 3]


def test_rows_of_the_expert_are_not_sampled(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    sizes = []
    generate = TransformersEngine.generate
    monkeypatch.setattr(
        TransformersEngine,
        "generate",
        lambda self, prompts, **options: (sizes.append(len(prompts)), generate(self, prompts, **options))[1],
    )
    for options, expected in (({}, 6), ({"expert_rows": 3}, 5)):  # the first two rows have one and two answers
        trained("luffy", tiny_model, tmp_path, algorithm_options=options, shuffle_dataset=False)
        assert sizes == [expected]
        sizes.clear()


def test_srft_sees_what_is_right(tiny_model: Path, tmp_path: Path):
    """Right is a reward above the bar, wrong any other; both have a loss though all rewards of a group are equal."""
    bars = {}
    for bar in (0.45, 2.0):
        trainer = build("srft", tiny_model, tmp_path, algorithm_options={"correct_above": bar}, shuffle_dataset=False)
        (inputs,) = losses_of(trainer)
        rewards = torch.tensor(list(trainer._logs["rewards"]["by_text"]))
        assert torch.equal(inputs["is_correct"][:, 0], torch.where(rewards > bar, 1.0, -1.0))
        bars[bar] = trainer.state.log_history[0]["grad_norm"]
    assert bars[0.45] != bars[2.0]
    flat = build("srft", tiny_model, tmp_path, data=image_rows(8).add_column("expert", [["red"]] * 8))
    flat.reward_funcs = [lambda completions, **columns: [1.0] * len(completions)]
    (inputs,) = losses_of(flat)
    assert inputs["advantages"].abs().sum() == 0 and flat.state.log_history[0]["grad_norm"] > 0
    assert not flat._skips_zero_advantage


@pytest.mark.parametrize("other", [0, 4])  # the fifth row has no answer
def test_hpt_learns_from_the_expert_where_nothing_is_right(
    other: int, same_completions: None, tiny_model: Path, tmp_path: Path
):
    """Rewards .9 .1 .1 .1 reinforce the one prompt; zeros leave the answer alone of the other, if there is one."""
    trainer = build(
        "hpt", tiny_model, tmp_path, data=rows().select([1, other, 2, 3]), algorithm_options={}, shuffle_dataset=False
    )
    trainer.reward_funcs = [lambda completions, **columns: [0.9, 0.1, 0.1, 0.1, 0.0, 0.0, 0.0, 0.0]]
    (inputs,) = losses_of(trainer)
    found = {row_of(inputs["samples"][start]): slice(start, start + 4) for start in (0, 4)}
    assert sorted(inputs["advantages"][found[1]].tolist()) == pytest.approx([-0.2, -0.2, -0.2, 0.6])
    is_known = other == 0
    part = found[other]
    assert inputs["advantages"][part].tolist() == [0, 0, 0, float(is_known)]
    assert inputs["is_expert"][part, 0].tolist() == [False, False, False, is_known]
    assert inputs["completion_mask"][part].sum(dim=1).tolist()[:3] == ([0, 0, 0] if is_known else [2, 3, 4])
    assert inputs["num_items_in_batch"] == inputs["completion_mask"].sum()
    assert trainer.state.log_history[0]["expert/share_of_prompts"] == (0.5 if is_known else 0)
    if is_known:
        assert texts_of(trainer, inputs)[part][3] == f"{ANSWERS[0]}<|im_end|>"


def test_a_prompt_that_hpt_imitates_weighs_as_much_as_any(same_completions: None, tiny_model: Path, tmp_path: Path):
    """Only imitation: the loss is the mean over prompts of the NLL of their answers, over the longest that can be."""
    data = image_rows(8).add_column("expert", [["red circle."]] * 8)
    trainer = build(
        "hpt", tiny_model, tmp_path, data=data, algorithm_options={"correct_above": 5}, shuffle_dataset=False
    )
    trainer.train()
    model, processor = (
        AutoModelForImageTextToText.from_pretrained(tiny_model),
        AutoProcessor.from_pretrained(tiny_model),
    )
    expected = [nll_of(model, processor, data[number], "red circle.<|im_end|>") for number in range(2)]
    assert trainer.state.log_history[0]["loss"] == pytest.approx(sum(map(sum, expected)) / 2 / LIMIT, abs=1e-4)


def nll_of(model: Any, processor: Any, row: dict[str, Any], answer: str) -> list[float]:
    """Of each token of an answer to a row, by the processor and the model as transformers have them."""
    content, images = row["prompt"][0]["content"], [row["image"]] if "image" in row else None
    asked = content if images is None else [{"type": "image", "image": images[0]}, {"type": "text", "text": content}]
    prompt = processor.apply_chat_template([{"role": "user", "content": asked}], add_generation_prompt=True)
    inputs = processor(text=[prompt + answer], images=images, return_tensors="pt")
    count = len(processor.tokenizer(answer)["input_ids"])
    with torch.no_grad():
        logits = model(**inputs).logits[0, -count - 1 : -1]
    return (-logits.log_softmax(dim=-1)[torch.arange(count), inputs["input_ids"][0, -count:]]).tolist()


@pytest.mark.parametrize("phi", [False, True])
def test_chord_adds_the_mean_over_tokens_of_its_own_batch(phi: bool, tiny_model: Path, tmp_path: Path):
    """mu 1: nothing but the answers of the batch, also where there are images."""
    options = {"mu_warmup": 0, "mu_peak": 1.0, "mu_valley": 1.0, "expert_batch": 3, "phi": phi}
    data = rows().select([0, 2, 3])
    trainer = trained(
        "chord", tiny_model, tmp_path, data=data, algorithm_options=options, per_device_train_batch_size=4
    )
    model, processor = (
        AutoModelForImageTextToText.from_pretrained(tiny_model),
        AutoProcessor.from_pretrained(tiny_model),
    )
    found = [loss for row in data for loss in nll_of(model, processor, row, row["expert"][0] + "<|im_end|>")]
    weights = [(chance := torch.tensor(-loss).exp()) * (1 - chance) if phi else 1.0 for loss in found]
    expected = sum(loss * weight for loss, weight in zip(found, weights, strict=True)) / len(found)
    assert trainer.state.log_history[0]["loss"] == pytest.approx(float(expected), abs=2e-4)
    assert trainer.state.log_history[0]["expert/loss"] == pytest.approx(float(expected), abs=2e-4)


def test_chord_imitates_demonstrations_with_questions_of_their_own(tiny_model: Path, tmp_path: Path):
    """mu 1 and a batch of both rows: the loss is theirs, whatever answers the training rows have."""
    said = ["green", "red circle. The answer"]
    path = write_jsonl(tmp_path / "sft.jsonl", [{"problem": f"What is {text}?", "answer": text} for text in said])
    options = {"mu_warmup": 0, "mu_peak": 1.0, "mu_valley": 1.0, "expert_batch": 2}
    shown = demonstrations([path])
    trainer = trained("chord", tiny_model, tmp_path, shown=shown, algorithm_options=options)
    model = AutoModelForImageTextToText.from_pretrained(tiny_model)
    processor = AutoProcessor.from_pretrained(tiny_model)
    found = [loss for row in shown for loss in nll_of(model, processor, row, row["expert"] + "<|im_end|>")]
    assert trainer.state.log_history[0]["expert/loss"] == pytest.approx(sum(found) / len(found), abs=2e-4)
    with pytest.raises(ValueError, match=r"demonstrations, .*, go with --algorithm chord alone"):
        build("luffy", tiny_model, tmp_path, shown=shown)


def test_chord_takes_every_row_once_in_a_pass(tiny_model: Path, tmp_path: Path):
    trainer = build("chord", tiny_model, tmp_path)
    assert trainer.algorithm.stream.rows == [0, 1, 2, 3, 5, 6, 7]  # the fifth has no answer
    passes = [trainer.algorithm.stream.take(7) for _ in range(2)]
    assert all(sorted(number for number, _ in taken) == trainer.algorithm.stream.rows for taken in passes)
    assert passes[0] != [(number, 0) for number, _ in passes[1]]


def test_mu_follows_the_step(tiny_model: Path, tmp_path: Path):
    options = {"mu_warmup": 2, "mu_decay": 2, "mu_peak": 0.5, "mu_valley": 0.1}
    trainer = trained("chord", tiny_model, tmp_path, max_steps=5, algorithm_options=options)
    assert [entry["expert/mu"] for entry in trainer.state.log_history[:5]] == pytest.approx([0, 0.25, 0.5, 0.3, 0.1])
    assert trainer.algorithm.stream.position == 4 * 2  # a quarter of eight completions, but nothing where mu is 0


def test_a_hint_begins_the_answers_of_a_prompt(tiny_model: Path, tmp_path: Path):
    """Every rollout of a prompt has the same; rewards see whole answers, the loss what follows."""
    seen = []
    trainer = build("uft", tiny_model, tmp_path, algorithm_options={"hint_high": 1.0}, shuffle_dataset=False)
    trainer.reward_funcs = [lambda completions, **c: (seen.extend(completions), by_text(completions))[1]]
    (inputs,) = losses_of(trainer)
    for group in range(2):
        samples = inputs["samples"][4 * group : 4 * group + 4]
        assert len({id(sample) for sample in samples}) == 1 and samples[0].answer_prefix_length
        hint = trainer._tokenizer.decode(samples[0].input_ids[-samples[0].answer_prefix_length :])
        assert trainer._tokenizer.decode(samples[0].input_ids).endswith("<|im_start|>assistant\n" + hint)
    hints = {"".join(segments(answer, 5)) for row in rows()[:2]["expert"] for answer in row}
    assert all(any(message[0]["content"].startswith(hint) for hint in hints) for message in seen)
    assert inputs["num_hint_tokens"] == sum(sample.answer_prefix_length for sample in inputs["samples"])
    assert {len(prompt) for prompt in trainer._logs["prompt"]} == {2}  # the log shows the hint as a turn
    draw, step = trainer.algorithm.random_of, trainer.state.global_step
    here = draw(0, step).integers(1 << 30)
    assert draw(0, step).integers(1 << 30) == here != draw(1, step).integers(1 << 30)
    trainer.state.global_step += 1
    assert trainer.algorithm.random_of(0, trainer.state.global_step).integers(1 << 30) != here


def test_the_loss_of_hints_is_their_mean_over_tokens(same_completions: None, tiny_model: Path, tmp_path: Path):
    """Rewards are equal, KL is 0 at first: what is left is the coefficient times the NLL."""
    options = {"hint_high": 1.0, "hint_low": 1.0, "hint_coef": 0.25}
    data = image_rows(8).add_column("expert", [["red circle."]] * 4 + [None] * 4)
    trainer = build("uft", tiny_model, tmp_path, data=data.select([0, 5]), algorithm_options=options)
    trainer.reward_funcs = [lambda completions, **columns: [1.0] * len(completions)]
    trainer.train()
    model, processor = (
        AutoModelForImageTextToText.from_pretrained(tiny_model),
        AutoProcessor.from_pretrained(tiny_model),
    )
    found = nll_of(model, processor, data[0], "red circle.")
    assert trainer.state.log_history[0]["loss"] == pytest.approx(0.25 * sum(found) / len(found), abs=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_packing_and_paths_change_nothing(name: str, same_completions: None, tiny_model: Path, tmp_path: Path):
    """One micro-batch, four of them (whose groups are torn), and the plain path; two steps, one of them off-policy."""
    common = {"max_steps": 2, "num_iterations": 2, "learning_rate": 1e-2, "shuffle_dataset": False}
    whole = trained(name, tiny_model, tmp_path, **common)
    parts = trained(name, tiny_model, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4, **common)
    plain = trained(name, tiny_model, tmp_path, shared_prefix="off", **common)
    start = AutoModelForImageTextToText.from_pretrained(tiny_model).state_dict()
    moved = max((value - start[key]).abs().max().item() for key, value in whole.model.state_dict().items())
    assert moved > 1e-3
    for other in (parts, plain):
        assert differences(whole, other)["weights"] < 2e-4  # a step moves by 1e-2
        norms = [[entry["grad_norm"] for entry in run.state.log_history[:2]] for run in (whole, other)]
        assert norms[0] == pytest.approx(norms[1], rel=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_run_is_bit_equal(name: str, tiny_model: Path, tmp_path: Path):
    """In the middle of the second rollout; with an adapter, as most run it."""
    common = {"num_iterations": 2, "max_steps": 5, "save_strategy": "steps", "save_steps": 3, "learning_rate": 1e-2}
    adapter = LoraConfig(r=4, lora_alpha=64) if name in ("luffy", "chord") else None
    whole = trained(name, tiny_model, tmp_path, adapter=adapter, **common)
    again = build(name, tiny_model, tmp_path, adapter=adapter, **common)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    pairs = zip(whole.model.state_dict().values(), again.model.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    losses = [[entry["loss"] for entry in run.state.log_history if "loss" in entry] for run in (whole, again)]
    assert losses[0] == losses[1] and len(losses[0]) == 5


def test_other_answers_do_not_go_on_with_a_checkpoint(tiny_model: Path, tmp_path: Path):
    common = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    trained("chord", tiny_model, tmp_path, **common)
    again = build("chord", tiny_model, tmp_path, data=rows(7), **common)
    with pytest.raises(ValueError, match="drawn with rows 7, now 6: resume with the original values"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


OPTIONS = {
    "luffy": [{"expert_rows": 2}, {"luffy_gamma": 0.5}],
    "srft": [{"correct_above": 0.2}, {"srft_sft": 5.0}, {"srft_rl": 0.5}],
    "hpt": [{"correct_above": 0.75, "hpt_threshold": 0.6}],
    "chord": [{"mu_warmup": 0, "expert_batch": 5}, {"mu_warmup": 0, "expert_batch": 3, "phi": True}],
    "uft": [
        {"hint_high": 0.05},
        {"hint_steps": 1},
        {"hint_low": 0.5, "hint_steps": 1},
        {"hint_coef": 5.0},
        {"hint_segments": 1},
    ],
}


@pytest.mark.parametrize(("name", "options"), [(name, one) for name, many in OPTIONS.items() for one in many])
def test_every_option_has_an_effect(name: str, options: dict, same_completions: None, tiny_model: Path, tmp_path: Path):
    common = {"max_steps": 2, "learning_rate": 1e-2, "shuffle_dataset": False}
    default = trained(name, tiny_model, tmp_path, **common)
    changed = trained(name, tiny_model, tmp_path, algorithm_options=options, **common)
    pairs = zip(default.model.state_dict().values(), changed.model.state_dict().values(), strict=True)
    assert max((one - other).abs().max().item() for one, other in pairs) > 1e-4


def test_the_reward_that_decides_can_be_named(tiny_model: Path, tmp_path: Path):
    def other(completions: list, **columns: Any) -> list[float]:
        return [0.0] * len(completions)

    args = settings(tmp_path, per_device_train_batch_size=8, max_completion_length=LIMIT)
    for wanted, index in ((None, 0), ("other", 1)):
        made = VLMGRPOConfig.of("hpt", algorithm_options={"correct_reward": wanted}, **args)
        trainer = VLMGRPOTrainer(str(tiny_model), [by_text, other], made, train_dataset=rows())
        assert trainer.algorithm.correctness.index == index
    made = VLMGRPOConfig.of("hpt", algorithm_options={}, **args)
    trainer = VLMGRPOTrainer(str(tiny_model), ["format", by_text], made, train_dataset=rows())
    assert trainer.algorithm.correctness.index == 1  # a form is not an answer
    made = VLMGRPOConfig.of("hpt", algorithm_options={"correct_reward": "acuracy"}, **args)
    with pytest.raises(ValueError, match="correct_reward must be one of by_text, other, got 'acuracy'"):
        VLMGRPOTrainer(str(tiny_model), [by_text, other], made, train_dataset=rows())


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


class KnownLogprobs:
    """An engine that also returns log-probabilities, as vLLM does, far from those of the policy."""

    needs_whole_groups = False

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def generate(self, prompts: Any, **options: Any) -> Generation:
        ids = self.engine.generate(prompts, **options).ids
        return Generation(ids, [[-1.0] * len(row) for row in ids])


def test_demonstrations_stay_out_of_the_sampler_correction(tiny_model: Path, tmp_path: Path):
    """No engine has sampled them: their weight is 1; the weights of sampled tokens are not."""
    trainer = build("luffy", tiny_model, tmp_path, shuffle_dataset=False)
    trainer.collector.engine = KnownLogprobs(trainer.collector.engine)
    (inputs,) = losses_of(trainer)
    weights, is_expert = inputs["importance_sampling_ratio"], inputs["is_expert"][:, 0]
    assert is_expert.sum() == 2 and (weights[is_expert] == 1).all()
    assert (weights[~is_expert] != 1).any(dim=1).all()


def test_replaced_rows_have_no_past():
    """A longer answer widens every tensor of tokens; weights of the sampler are 1, by token or by completion."""
    output = RolloutBatch(
        prompt_ids=torch.ones(2, 1),
        prompt_mask=torch.ones(2, 1),
        completion_ids=torch.tensor([[1, 2], [3, 4]]),
        completion_mask=torch.ones(2, 2, dtype=torch.long),
        old_logps=torch.full((2, 2), -5.0),
        importance_sampling_ratio=torch.full((2, 1), 0.5),
        advantages=torch.tensor([0.5, -0.5]),
    )
    replace_completions(output, {1: [7, 8, 9]}, [0], pad=0)
    assert output.completion_ids.tolist() == [[1, 2, 0], [7, 8, 9]]
    assert output.completion_mask.tolist() == [[0, 0, 0], [1, 1, 1]]
    assert output.old_logps.tolist() == [[-5, -5, 0], [0, 0, 0]]
    assert output.importance_sampling_ratio.tolist() == [[0.5], [1.0]]
    assert output.advantages.tolist() == [0, 1] and output.is_expert.tolist() == [[False], [True]]
