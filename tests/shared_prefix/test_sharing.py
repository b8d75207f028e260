"""The fast path inside a training: what it saves, that it changes nothing, and when it steps back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.support.families import FAMILIES_TINY
from tests.support.training import differences, image_rows, picture, settings, user
from vlm_grpo.model_utils import vision_towers
from vlm_grpo.shared_prefix import attention
from vlm_grpo.trainers.config import VLMGRPOConfig, VLMRLOOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer
from vlm_grpo.trainers.rloo import VLMRLOOTrainer

KINDS = {"grpo": (VLMGRPOTrainer, VLMGRPOConfig), "rloo": (VLMRLOOTrainer, VLMRLOOConfig)}
SAME_LENGTH = {"generation_kwargs": {"min_new_tokens": 8}}  # else other random numbers are drawn once a row has ended


def two_of_four(completions: list, **columns: Any) -> list[float]:
    """A signal in every group of four."""
    return [float(number % 4 > 1) for number in range(len(completions))]


def every_second_group(completions: list, **columns: Any) -> list[float]:
    """A signal in every second group of four only."""
    return [float(number % 4 > 1) if number % 8 < 4 else 0.5 for number in range(len(completions))]


def nothing(completions: list, **columns: Any) -> list[float]:
    return [1.0] * len(completions)


def build(
    model: Path,
    folder: Path,
    kind: str = "grpo",
    reward: Callable = two_of_four,
    rows: Sequence[int] = range(4),
    **options: Any,
) -> Any:
    """A trainer on some of four rows with images."""
    trainer, config = KINDS[kind]
    args = config(**settings(folder, **{"per_device_train_batch_size": 8, **SAME_LENGTH, **options}))
    return trainer(str(model), reward, args, train_dataset=image_rows().select(rows))


def trained(*args: Any, **options: Any) -> Any:
    made = build(*args, **options)
    made.train()
    return made


def seen_rows(module: nn.Module) -> list[int]:
    """Grows by the first size of a module's first tensor at each of its forwards."""
    seen: list[int] = []

    def look(module: nn.Module, args: tuple, options: dict) -> None:
        seen.append(next(value for value in (*args, *options.values()) if isinstance(value, torch.Tensor)).size(0))

    module.register_forward_pre_hook(look, with_kwargs=True)
    return seen


def without_entropy(trainer: Any) -> Any:
    trainer.state.log_history = [{k: v for k, v in e.items() if k != "entropy"} for e in trainer.state.log_history]
    return trainer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [{"gradient_checkpointing": True}, {"max_tokens_per_forward": 40, "num_iterations": 2}, {"beta": 0.1}],
    ids=str,
)
def test_a_training_is_the_same_with_and_without_sharing(kind: str, options: dict, tiny_model: Path, tmp_path: Path):
    plain = trained(tiny_model, tmp_path, kind, shared_prefix="off", **options)
    fast = trained(tiny_model, tmp_path, kind, **options)
    assert fast.shared_prefix.is_on and fast.shared_prefix.is_checked
    worst = differences(plain, fast)
    assert worst["logs"] < 1e-5 and worst["weights"] < 1e-4


ODD_ROLLOUTS = {
    "one token each": {"max_completion_length": 1, "generation_kwargs": {}},
    "nothing but the end": {
        "max_completion_length": 1,
        "generation_kwargs": {"forced_eos_token_id": 2},
        "optim": "sgd",
    },
    "part of a group in a micro-batch": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    "one row in a micro-batch": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 8},
    "the same prompt twice": {"rows": [0, 0]},
}


@pytest.mark.parametrize("odd", ODD_ROLLOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_odd_rollouts_are_the_same_with_and_without_sharing(kind: str, odd: str, tiny_model: Path, tmp_path: Path):
    plain, fast = (trained(tiny_model, tmp_path, kind, shared_prefix=m, **ODD_ROLLOUTS[odd]) for m in ("off", "auto"))
    assert fast.shared_prefix.is_on and fast.shared_prefix.is_checked
    worst = differences(plain, fast)
    assert worst["logs"] < 1e-5 and worst["weights"] < 1e-4
    assert any(entry.get("grad_norm", 0) > 0 for entry in fast.state.log_history)


def test_sharing_in_bf16_stays_as_close_as_rounding_allows(tiny_model: Path, tmp_path: Path):
    plain = trained(tiny_model, tmp_path, shared_prefix="off", bf16=True, max_steps=1)
    fast = trained(tiny_model, tmp_path, bf16=True, max_steps=1)
    assert fast.shared_prefix.is_on and fast.shared_prefix.is_checked
    norms = [run.state.log_history[0]["grad_norm"] for run in (plain, fast)]
    assert norms[0] != norms[1] and norms[0] == pytest.approx(norms[1], rel=0.05)


def test_the_update_takes_the_tokens_of_prompts_and_completions_once(tiny_model: Path, tmp_path: Path):
    trainer = build(tiny_model, tmp_path, max_steps=1)
    lengths: list[int] = []
    embedding = trainer.model.get_input_embeddings()
    embedding.register_forward_hook(
        lambda module, args, output: lengths.append(args[0].numel()) if trainer.is_counted else None
    )
    trainer.is_counted = False
    compute = trainer._compute_loss

    def counted(model: nn.Module, inputs: dict[str, Any]) -> Any:
        trainer.shared_prefix.is_checked = True  # without the check of the first step
        trainer.is_counted = True
        loss = compute(model, inputs)
        trainer.is_counted = False
        prompts = {id(sample): len(sample.input_ids) for sample in inputs["samples"]}
        trainer.expected = sum(prompts.values()) - len(prompts) + inputs["completion_mask"].sum().item()
        return loss

    trainer._compute_loss = counted
    trainer.train()
    assert lengths == [trainer.expected]


def test_max_tokens_per_forward_divides_the_update(tiny_model: Path, tmp_path: Path):
    trainer = build(tiny_model, tmp_path, max_steps=1, max_tokens_per_forward=40)
    trainer.shared_prefix.is_checked = True
    compute, counts = trainer._compute_loss, []

    def counted(model: nn.Module, inputs: dict[str, Any]) -> Any:
        seen = seen_rows(model.get_input_embeddings())
        loss = compute(model, inputs)
        counts.append(len(seen))
        return loss

    trainer._compute_loss = counted
    trainer.train()
    assert counts == [2]  # two prompts, each longer than the budget with its completions


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("iterations", [1, 2])
def test_groups_without_signal_are_left_out_and_nothing_changes(
    kind: str, iterations: int, tiny_model: Path, tmp_path: Path
):
    options = {"reward": every_second_group, "num_iterations": iterations, "max_steps": 3, "beta": 0.0}
    plain = trained(tiny_model, tmp_path, kind, shared_prefix="off", **options)
    trainer = build(tiny_model, tmp_path, kind, **options)
    compute, scored = trainer._compute_loss, []

    def watched(model: nn.Module, inputs: dict[str, Any]) -> Any:
        seen = seen_rows(trainer.model.model.visual)
        loss = compute(model, inputs)
        scored.append(len(seen))
        assert inputs["advantages"].eq(0).sum() == 4
        return loss

    trainer._compute_loss = watched
    trainer.train()
    worst = differences(without_entropy(plain), without_entropy(trainer))
    assert worst["logs"] < 1e-5 and worst["weights"] < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_without_any_signal_moves_the_optimizer_as_the_plain_path_does(
    kind: str, tiny_model: Path, tmp_path: Path
):
    """Gradients are 0, not missing: momentum would stand still without them. The entropy is not logged."""
    options = {"reward": nothing, "max_steps": 1, "beta": 0.0}
    plain = trained(tiny_model, tmp_path, kind, shared_prefix="off", **options)
    fast = trained(tiny_model, tmp_path, kind, **options)
    assert "entropy" in plain.state.log_history[0] and "entropy" not in fast.state.log_history[0]
    assert fast.state.log_history[0]["grad_norm"] == 0
    worst = differences(without_entropy(plain), without_entropy(fast))
    assert worst == {"logs": 0.0, "weights": 0.0}
    steps = [state["step"] for state in fast.optimizer.state.values()]
    assert len(steps) == len(plain.optimizer.state)


@pytest.mark.parametrize("options", [{"beta": 0.1}, {"top_entropy_quantile": 0.5}, {"entropy_coef": 0.1}], ids=str)
def test_rows_without_advantage_are_scored_where_the_loss_has_another_term(
    options: dict, tiny_model: Path, tmp_path: Path
):
    plain = trained(tiny_model, tmp_path, reward=every_second_group, max_steps=1, shared_prefix="off", **options)
    trainer = trained(tiny_model, tmp_path, reward=every_second_group, max_steps=1, **options)
    assert not trainer._skips_zero_advantage
    assert differences(plain, trainer)["logs"] < 1e-5


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "gemma3"])
def test_a_frozen_tower_runs_once_for_each_prompt(family: str, tmp_path: Path):
    """Two prompts a rollout, one rollout for two steps, three passes: sampling, old and policy twice."""
    FAMILIES_TINY[family](tmp_path / "model")
    options = {"num_iterations": 2, "freeze_vision_modules": True, "freeze_projector": True}
    plain = trained(tmp_path / "model", tmp_path, shared_prefix="off", **options)
    trainer = build(tmp_path / "model", tmp_path, **options)
    trainer.shared_prefix.is_checked = True
    seen = seen_rows(vision_towers(trainer.model)[0])
    trainer.train()
    assert len(seen) == 2
    assert differences(plain, trainer)["logs"] < 1e-5


def test_an_adapter_in_the_tower_is_trained_beside_a_reference(tiny_model: Path, tmp_path: Path):
    """The reference pass switches it off: features from there must not reach the policy."""
    runs = []
    for mode in ("off", "on"):
        args = VLMRLOOConfig(**settings(tmp_path, beta=0.1, shared_prefix=mode, **SAME_LENGTH))
        adapter = LoraConfig(target_modules="all-linear", lora_dropout=0.0)
        options = {"train_dataset": image_rows(), "peft_config": adapter}
        runs.append(VLMRLOOTrainer(str(tiny_model), two_of_four, args, **options))
        runs[-1].train()
    assert differences(*runs)["logs"] < 1e-5
    tower = [p for name, p in runs[1].model.named_parameters() if "visual" in name and "lora_B" in name]
    assert tower and all(parameter.abs().max() > 0 for parameter in tower)


def test_a_trained_tower_runs_once_for_each_prompt_and_pass(tiny_model: Path, tmp_path: Path):
    trainer = build(tiny_model, tmp_path, max_steps=1)
    trainer.shared_prefix.is_checked = True
    seen = seen_rows(trainer.model.model.visual)
    trainer.train()
    plain = build(tiny_model, tmp_path, max_steps=1, shared_prefix="off")
    seen_plain = seen_rows(plain.model.model.visual)
    plain.train()
    assert sum(seen) * 4 == sum(seen_plain)  # sampling and update, for groups of four


def test_a_trained_tower_runs_once_for_each_prompt_where_prompts_are_not_shared(tmp_path: Path, caplog: Any):
    FAMILIES_TINY["gemma3"](tmp_path / "model")
    with caplog.at_level(logging.WARNING):
        trainer = build(tmp_path / "model", tmp_path, max_steps=1)
    assert [record.message for record in caplog.records if "share" in record.message] == [
        "Gemma3ForConditionalGeneration does not share prompts between completions in scoring: layers of "
        "sliding_attention; the plain path is used"
    ]
    seen = seen_rows(vision_towers(trainer.model)[0])
    trainer.train()
    assert seen == [2, 2]  # the images of two prompts: sampling and update
    plain = trained(tmp_path / "model", tmp_path, max_steps=1, shared_prefix="off")
    assert differences(plain, trainer)["logs"] < 1e-5


@pytest.mark.parametrize("options", [{}, {"freeze_vision_modules": True}], ids=["trained", "frozen"])
def test_prompts_with_the_same_image_share_its_tower_pass(options: dict, tiny_model: Path, tmp_path: Path):
    rows = [{"prompt": user(question), "image": picture(0)} for question in ("what color", "which shape is it")]
    runs, seen = [], []
    for mode in ("off", "on"):
        args = VLMGRPOConfig(
            **settings(
                tmp_path, per_device_train_batch_size=8, max_steps=1, shared_prefix=mode, **SAME_LENGTH, **options
            )
        )
        runs.append(VLMGRPOTrainer(str(tiny_model), two_of_four, args, train_dataset=Dataset.from_list(rows)))
        runs[-1].shared_prefix.is_checked = True
        seen.append(seen_rows(runs[-1].model.model.visual))
        runs[-1].train()
    patches = seen[0][0] // 8  # eight rows in stock's first pass
    assert seen[1] == ([patches] if options else [2 * patches, patches])  # sampling has a prompt for each question
    assert differences(*runs)["logs"] < 1e-5


def test_a_model_may_be_trained_by_one_trainer_after_another(tiny_model: Path, tmp_path: Path):
    logs = []
    for mode in ("off", "on"):
        model = AutoModelForImageTextToText.from_pretrained(tiny_model)
        processor = AutoProcessor.from_pretrained(tiny_model)
        for _ in range(2):
            args = VLMGRPOConfig(**settings(tmp_path, max_steps=1, shared_prefix=mode, **SAME_LENGTH))
            trainer = VLMGRPOTrainer(model, two_of_four, args, train_dataset=image_rows(), processing_class=processor)
            trainer.train()
        logs.append(trainer)
    assert differences(*logs)["logs"] < 1e-5


def test_on_refuses_what_auto_leaves(tmp_path: Path):
    FAMILIES_TINY["gemma3"](tmp_path / "model")
    with pytest.raises(
        ValueError, match=r"--shared_prefix on: Gemma3.* cannot share prompts in scoring: layers of sliding_attent"
    ):
        build(tmp_path / "model", tmp_path, shared_prefix="on")


def test_a_model_that_scores_otherwise_when_packed_takes_the_plain_path(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    whole = attention._group

    def blind(group: Any, query: Any, key: Any, value: Any, scaling: float | None) -> Any:
        return [part * 0.9 for part in whole(group, query, key, value, scaling)]

    monkeypatch.setattr(attention, "_group", blind)
    plain = trained(tiny_model, tmp_path, shared_prefix="off")
    with caplog.at_level(logging.WARNING):
        fast = trained(tiny_model, tmp_path)
    assert not fast.shared_prefix.is_on and "from those of the plain path" in caplog.text
    assert differences(plain, fast)["logs"] < 1e-5
    with pytest.raises(ValueError, match=r"--shared_prefix on: .* from those of the plain path"):
        trained(tiny_model, tmp_path, shared_prefix="on")


def test_completions_of_a_prompt_stay_in_one_micro_batch(tiny_model: Path, tmp_path: Path):
    trainer = build(tiny_model, tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=4, max_steps=1)
    compute, prompts = trainer._compute_loss, []

    def watched(model: nn.Module, inputs: dict[str, Any]) -> Any:
        prompts.append(len({id(sample) for sample in inputs["samples"]}))
        return compute(model, inputs)

    trainer._compute_loss = watched
    trainer.train()
    assert prompts == [1, 1, 1, 1]


def test_sampled_completions_have_the_probabilities_that_the_model_gives_them(tiny_model: Path, tmp_path: Path):
    """From a shared prefill and a batch that shrinks: first tokens as often as their probabilities say."""
    from vlm_grpo.rollouts.engines.shared_prefill import SharedPrefillGenerate, prompt_batch, prompt_indices

    trainer = build(tiny_model, tmp_path)
    (prompt,) = trainer.encoder.encode([image_rows(1)[0]])
    inputs = prompt_batch([prompt], 0)
    model = trainer.model.eval()
    with torch.no_grad():
        scores = model(**inputs).logits[0, -1] * 20  # sharper than a random model is
    allowed = scores.topk(4).indices
    probabilities = scores[allowed].softmax(dim=-1)
    torch.manual_seed(0)
    options = {"max_new_tokens": 2, "do_sample": True, "temperature": 1 / 20, "top_k": 4}
    options |= {"eos_token_id": int(allowed[0]), "pad_token_id": 0}  # the likeliest token ends a row at once
    batches = seen_rows(model.get_input_embeddings())
    drawn = model.generate(**inputs, custom_generate=SharedPrefillGenerate(prompt_indices([prompt] * 4000)), **options)
    first = drawn[:, inputs["input_ids"].size(1)]
    assert batches == [1, 4000 - (first == allowed[0]).sum().item()]  # one prefill; rows that have ended are gone
    shares = torch.stack([(first == token).float().mean() for token in allowed])
    assert shares.sum().item() == pytest.approx(1)
    assert torch.allclose(shares, probabilities, atol=0.03)  # about four standard errors


def flash_stand_in(seen: list[tuple[int, int]]) -> Callable:
    """An attention with the arguments of transformers' flash attention: a mask of two dimensions, or none.

    `seen` grows by the rows and query tokens of each call.
    """

    def attend(module: nn.Module, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> tuple[Any, None]:
        assert mask is None or mask.ndim == 2
        seen.append((query.size(0), query.size(2)))
        visible = torch.ones(query.size(2), key.size(2), dtype=torch.bool).tril(key.size(2) - query.size(2))
        visible = visible if mask is None else visible & mask.bool()[:, None, None]
        visible = visible | ~visible.any(dim=-1, keepdim=True)  # padding sees everything and is seen by nothing
        output = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=visible, scale=options["scaling"], enable_gqa=True
        )
        return output.transpose(1, 2), None

    return attend


def trained_over(implementation: str, tiny_model: Path, folder: Path) -> Any:
    model = AutoModelForImageTextToText.from_pretrained(tiny_model)
    model.config.get_text_config()._attn_implementation = implementation
    args = VLMGRPOConfig(**settings(folder, per_device_train_batch_size=8, **SAME_LENGTH))
    processor = AutoProcessor.from_pretrained(tiny_model)
    trainer = VLMGRPOTrainer(model, two_of_four, args, train_dataset=image_rows(), processing_class=processor)
    trainer.train()
    return trainer


def test_a_flash_attention_takes_the_rows_that_are_not_packed(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Packed rows never reach it: of a loss it sees only the two rows of the check on the first step."""
    seen: list[tuple[int, int]] = []
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "flash_stand_in", flash_stand_in(seen))
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._local_mapping, "flash_stand_in", flash_attention_mask)
    with caplog.at_level(logging.WARNING):
        over_flash = trained_over("flash_stand_in", tiny_model, tmp_path)
    assert "plain path" not in caplog.text
    worst = differences(trained_over("sdpa", tiny_model, tmp_path), over_flash)
    assert worst["logs"] < 1e-5 and worst["weights"] < 1e-4
    layers = over_flash.model.config.get_text_config().num_hidden_layers
    checked = [(rows, tokens) for rows, tokens in seen if tokens > 30 and rows == 2]
    assert len(checked) >= layers
    assert not [(rows, tokens) for rows, tokens in seen if rows == 1 and tokens > 30], "a packed row"


def test_an_attention_that_cannot_be_replaced_takes_the_plain_path(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING):
        trained_over("eager", tiny_model, tmp_path)
    assert "attention other than sdpa or flash attention; the plain path is used" in caplog.text
