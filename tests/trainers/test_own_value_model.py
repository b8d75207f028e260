"""PPO with a value model of its own: against the shared head, what it learns, its file, several processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForImageTextToText

from tests.support.training import differences, image_rows, picture, settings, user
from tests.trainers.test_algorithms import by_text, trained
from tests.trainers.test_critic import FAST, TWO_UPDATES, expected_values, head_of, rollouts_of
from tests.trainers.test_distributed import train, weights, write_data
from vlm_grpo.trainers.config import VLMGRPOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer
from vlm_grpo.trainers.resume import deepspeed_shapes
from vlm_grpo.trainers.value_head import add_value_head, twin_of, without_head

OWN = {"value_model": "own"}
FROZEN = {"freeze_vision_modules": True, "freeze_projector": True}  # image features are kept
SMALL_ADAPTER = {"target_modules": ["q_proj", "v_proj"], "lora_dropout": 0.0}


def ppo(model: Path, folder: Path, *, adapter: bool = False, rows: Any = None, **options: Any) -> VLMGRPOTrainer:
    """A trainer with a value model of its own, unless `algorithm_options` say otherwise."""
    chosen = {"per_device_train_batch_size": 8, "algorithm_options": OWN, **TWO_UPDATES, **options}
    args = VLMGRPOConfig.of("ppo", **settings(folder, **chosen))
    config = LoraConfig(**SMALL_ADAPTER) if adapter else None
    return VLMGRPOTrainer(str(model), by_text, args, train_dataset=rows or image_rows(16), peft_config=config)


def saved_own(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "value_model.safetensors")


@pytest.mark.parametrize(
    "way", [{}, {"shared_prefix": "off"}, FROZEN, {"adapter": True}], ids=["packed", "plain", "frozen", "lora"]
)
def test_equal_weights_give_the_values_and_losses_of_a_shared_head(way: dict, tiny_model: Path, tmp_path: Path):
    """The first update of a rollout with the same head weights: the own backbone is still the policy's."""
    found, logs = [], []
    for kind in ("shared", "own"):
        trainer = ppo(tiny_model, tmp_path, algorithm_options={"value_model": kind, "gamma": 0.9}, max_steps=1, **way)
        generator = torch.Generator().manual_seed(1)
        trainer.critic.head.weight.data.normal_(generator=generator)
        trainer.critic.head.bias.data.fill_(0.3)
        found += rollouts_of(trainer)
        logs.append(trainer.state.log_history[0])
    shared, own = found
    assert torch.equal(shared["completion_ids"], own["completion_ids"])
    assert own["values"][own["completion_mask"].bool()].std() > 0.1
    for name in ("values", "returns"):
        assert torch.allclose(shared[name], own[name], atol=1e-5)
    assert torch.allclose(shared["advantages"], own["advantages"], atol=1e-4)  # divided by a small spread
    for name in ("loss", "value_loss", "explained_variance"):
        assert logs[1][name] == pytest.approx(logs[0][name], rel=1e-4, abs=1e-5)


ONE_IMAGE = [{"prompt": user("what color" * (n + 1)), "image": picture(0), "answer": str(n)} for n in range(16)]
LATER = {"packed": {}, "plain": {"shared_prefix": "off"}, "frozen": FROZEN, "lora": {"adapter": True}}
LATER["tower_once"] = {"rows": Dataset.from_list(ONE_IMAGE)}  # two prompts of a pass show it


@pytest.mark.parametrize("way", LATER.values(), ids=LATER)
def test_later_values_are_those_of_the_own_backbone(way: dict, tiny_model: Path, tmp_path: Path):
    """By transformers' own forward of one row with its image; the policy's hidden states give other ones."""
    trainer = ppo(tiny_model, tmp_path, max_steps=4, **way)
    _, second = rollouts_of(trainer)
    for row, values in enumerate(second["expected"]):
        assert torch.allclose(second["values"][row, : len(values)], values, atol=1e-5) and values.abs().min() > 1e-4
    own = expected_values(trainer, second, 0)
    trainer.critic.head.backbone = None
    assert (expected_values(trainer, second, 0) - own).abs().max() > 1e-3


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_it_learns_a_reward_that_shows_in_the_image_alone(adapter: bool, tiny_model: Path, tmp_path: Path):
    """Bright or dark pictures with the same question; the policy stays as good as it is."""

    def by_brightness(completions: list, answer: list, **columns: Any) -> list[float]:
        return [float(number) for number in answer]

    options = {"num_generations": 1, "per_device_train_batch_size": 8, "max_completion_length": 4, "max_steps": 48}
    rates = {"learning_rate": 1e-9, "value_learning_rate": 3e-3}
    rows = [
        {"prompt": user("what color"), "image": picture(n).point(lambda value, n=n: value // 4 + 190 * (n % 2))}
        | {"answer": str(n % 2)}
        for n in range(32)
    ]
    given = settings(tmp_path, algorithm_options={**OWN, "lam": 1.0}, **options, **rates)
    args = VLMGRPOConfig.of("ppo", **given)
    config = LoraConfig(**SMALL_ADAPTER) if adapter else None
    trainer = VLMGRPOTrainer(
        str(tiny_model), by_brightness, args, train_dataset=Dataset.from_list(rows), peft_config=config
    )
    trainer.train()
    log = [entry["explained_variance"] for entry in trainer.state.log_history if "explained_variance" in entry]
    assert abs(log[0]) < 1e-6 and log[-1] > 0.9, log


def test_while_it_warms_up_only_the_value_model_moves(tiny_model: Path, tmp_path: Path):
    before = AutoModelForImageTextToText.from_pretrained(tiny_model).state_dict()
    trainer = ppo(tiny_model, tmp_path, max_steps=3, value_warmup_steps=3)
    first = {name: value.clone() for name, value in trainer.critic.head.named_parameters()}
    trainer.train()
    after = trainer.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    moved = {name for name, value in trainer.critic.head.named_parameters() if not torch.equal(value, first[name])}
    assert {"weight", "bias"} < moved and any("language_model" in name for name in moved)
    assert any("visual" in name for name in moved)


def test_the_value_loss_does_not_reach_the_policy(tiny_model: Path, tmp_path: Path):
    """A constant reward is no advantage; the shared head's loss would teach the policy's layers."""
    options = {"max_steps": 3, "algorithm_options": {**OWN, "lam": 1.0}, **FAST}
    args = VLMGRPOConfig.of("ppo", **settings(tmp_path, **options))
    trainer = VLMGRPOTrainer(
        str(tiny_model), lambda completions, **columns: [1.0] * len(completions), args, train_dataset=image_rows()
    )
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.state_dict().items())
    losses = [entry["value_loss"] for entry in trainer.state.log_history[:3]]
    assert losses[0] > losses[1] > losses[2]


def test_it_has_a_learning_rate_of_its_own(tiny_model: Path, tmp_path: Path):
    """1e-5 by default; --weight_decay is for its matrices as for the policy's, the head has none."""
    for given, expected in ((None, 1e-5), (3e-3, 3e-3)):
        options = {"algorithm_options": OWN, "value_learning_rate": given, "weight_decay": 0.1}
        trainer = trained("ppo", tiny_model, tmp_path, **options)
        own = {id(each) for each in trainer.critic.head.parameters()}
        groups = trainer.optimizer.param_groups
        of_values = [[id(each) in own for each in group["params"]] for group in groups]
        assert [all(found) for found in of_values] == [any(found) for found in of_values]
        assert [group["initial_lr"] for group in groups] == [1e-3, 1e-3, expected, expected, expected]
        assert [group["weight_decay"] for group in groups] == [0.1, 0.0, 0.1, 0.0, 0.0]
        assert sum(map(len, of_values)) == len(list(trainer.model.parameters()))
        assert trainer.critic.head.weight.abs().max().item() == pytest.approx(expected, rel=1e-3)  # Adam's first step


def test_beside_an_adapter_it_is_the_model_below(tiny_model: Path, tmp_path: Path):
    """Trained are the language model's parameters; the tower is, where the adapter changes it."""
    plain = dict(AutoModelForImageTextToText.from_pretrained(tiny_model).model.named_parameters())
    own = ppo(tiny_model, tmp_path, adapter=True, gradient_checkpointing=True).critic.head
    found = dict(own.backbone.named_parameters())
    assert found.keys() == plain.keys() and all(torch.equal(found[name], plain[name]) for name in plain)
    assert all(each.requires_grad == name.startswith("language_model.") for name, each in found.items())
    assert own.backbone.is_gradient_checkpointing
    args = VLMGRPOConfig.of("ppo", **settings(tmp_path, algorithm_options=OWN))
    config = LoraConfig(target_modules=["q_proj", "qkv"])
    wide = VLMGRPOTrainer(str(tiny_model), by_text, args, train_dataset=image_rows(), peft_config=config)
    kinds = {name: each.requires_grad for name, each in wide.critic.head.backbone.named_parameters()}
    assert all(is_trained == ("merger" not in name) for name, is_trained in kinds.items())


def test_a_quantized_policy_is_refused(tiny_model: Path):
    model = AutoModelForImageTextToText.from_pretrained(tiny_model)
    layer = model.model.language_model.layers[0].mlp.up_proj
    layer.weight = torch.nn.Parameter(layer.weight.to(torch.uint8), requires_grad=False)  # as bitsandbytes packs it
    with pytest.raises(ValueError, match="weights are quantized, and a copy of them cannot be trained"):
        twin_of(model)


def test_the_policys_own_weights_are_the_only_ones_that_others_see(tiny_model: Path):
    model = AutoModelForImageTextToText.from_pretrained(tiny_model)
    names, keys = [name for name, _ in model.named_parameters()], set(model.state_dict())
    own = add_value_head(model, "own")
    assert set(model.state_dict()) == keys
    assert not model.load_state_dict(model.state_dict(), strict=True).missing_keys
    with pytest.raises(RuntimeError, match=r"Missing key.*lm_head"):
        model.load_state_dict({name: value for name, value in model.state_dict().items() if name != "lm_head.weight"})
    for hidden in (without_head(model), own.aside()):
        with hidden:
            assert [name for name, _ in model.named_parameters()] == names
    assert len(list(model.parameters())) == len(names) + len(list(model.model.parameters())) + 2


def test_generation_gathers_the_policy_alone(tiny_model: Path, tmp_path: Path):
    """ZeRO-3 makes all that `parameters()` gives whole on every process."""
    trainer = ppo(tiny_model, tmp_path, max_steps=1)
    seen, generate = [], trainer.model.generate

    def watched(*args: Any, **options: Any) -> Any:
        seen.append(len(list(trainer.model.parameters())))
        return generate(*args, **options)

    trainer.model.generate = watched
    trainer.train()
    assert seen == [len(list(AutoModelForImageTextToText.from_pretrained(tiny_model).parameters()))]


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_a_resumed_run_is_bit_identical(adapter: bool, tiny_model: Path, tmp_path: Path):
    """Checkpoint 3 lies in the middle of the second rollout; beside the value model's file it is a plain one."""
    options = {"max_steps": 6, "save_strategy": "steps", "save_steps": 3, "value_warmup_steps": 1, "adapter": adapter}
    whole, resumed = (ppo(tiny_model, tmp_path, rows=image_rows(), **options) for _ in range(2))
    start = {name: value.clone() for name, value in whole.critic.head.named_parameters()}
    whole.train()
    checkpoint = tmp_path / "checkpoint-3"
    saved = saved_own(checkpoint)
    assert saved.keys() == start.keys() and not (checkpoint / "value_head.safetensors").exists()
    name = "backbone.language_model.layers.0.mlp.up_proj.weight"
    held = [start[name], saved[name], saved_own(tmp_path / "checkpoint-6")[name]]
    assert not torch.equal(held[0], held[1]) and not torch.equal(held[1], held[2])
    if not adapter:
        assert weights(checkpoint).keys() == weights(tiny_model).keys()
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert torch.equal(head_of(resumed), head_of(whole))
    assert differences(whole, resumed)["weights"] == 0
    names = ("loss", "value_loss", "explained_variance")
    logs = [[[entry.get(name) for name in names] for entry in run.state.log_history[:6]] for run in (whole, resumed)]
    assert logs[0] == logs[1]


def test_a_checkpoint_of_the_other_kind_is_refused(tiny_model: Path, tmp_path: Path):
    saving = {"max_steps": 1, "save_strategy": "steps", "save_steps": 1}
    for kind, other in (("shared", "own"), ("own", "shared")):
        folder = tmp_path / kind
        ppo(tiny_model, folder, algorithm_options={"value_model": kind}, **saving).train()
        trainer = ppo(tiny_model, folder, algorithm_options={"value_model": other}, max_steps=2)
        with pytest.raises(ValueError, match=rf'resume with --algorithm_options \'{{"value_model": "{kind}"}}\''):
            trainer.train(resume_from_checkpoint=str(folder / "checkpoint-1"))


def test_an_unknown_kind_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="value_model must be one of shared, own, got 'both'"):
        VLMGRPOConfig.of("ppo", **settings(tmp_path, algorithm_options={"value_model": "both"}))


def test_a_saved_model_is_a_plain_one(tiny_model: Path, tmp_path: Path):
    trainer = ppo(tiny_model, tmp_path, max_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "saved"))
    assert weights(tmp_path / "saved").keys() == weights(tiny_model).keys()
    trainer._save(str(tmp_path / "gathered"), dict(trainer.model.named_parameters()))  # as DeepSpeed gathers it
    assert weights(tmp_path / "gathered").keys() == weights(tiny_model).keys()


OVER_TWO = {"algorithm": "ppo", "gradient_checkpointing": True, "value_learning_rate": 1e-2, "kl_reward_coef": 0.5}
ADAPTED = {"use_peft": True, "lora_r": 4, "lora_alpha": 64, "lora_dropout": 0}


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("mode", "more"),
    [
        pytest.param("ddp", {}, id="ddp"),
        pytest.param("zero2.yaml", {}, id="zero2", marks=pytest.mark.extended),
        pytest.param("zero3", {}, id="zero3"),
        pytest.param("ddp", ADAPTED, id="ddp_lora", marks=pytest.mark.extended),
        pytest.param("zero3", ADAPTED, id="zero3_lora"),
    ],
)
def test_two_processes_equal_one(mode: str, more: dict, tiny_model: Path, tmp_path: Path):
    """Losses, values and weights of both models; a run resumes in mid-rollout."""
    write_data(tmp_path)
    options = {**OVER_TWO, "algorithm_options": '{"value_model": "own"}', **more}
    options |= {"max_steps": 3, "steps_per_generation": 1, "num_iterations": 2, "save_steps": 1}
    one = train("one", "grpo", tiny_model, tmp_path, **options)
    two = train(mode, "grpo", tiny_model, tmp_path, **options)
    for first, second in zip(one[:3], two[:3], strict=True):
        for name in ("loss", "grad_norm", "value_loss", "explained_variance", "kl_in_reward"):
            assert second.get(name, 0.0) == pytest.approx(first.get(name, 0.0), abs=2e-5, rel=1e-4), name
    if not more:
        expected, saved = weights(tmp_path / "one"), weights(tmp_path / mode)
        assert max((saved[name] - expected[name]).abs().max() for name in expected) < 1e-4
    if mode == "zero3":
        states = sorted((tmp_path / mode / "checkpoint-3").glob("global_step3/*rank_*optim_states.pt"))
        sizes = [path.stat().st_size for path in states]
        assert len(sizes) == 2 and min(sizes) > 0.9 * max(sizes)
        held = deepspeed_shapes(tmp_path / mode / "checkpoint-3")
        assert {name for name in held if name.startswith("value_head.backbone.language_model")}
    owns = [saved_own(tmp_path / run / "checkpoint-3") for run in ("one", mode)]
    assert owns[0]["weight"].abs().max() > 1e-2 and owns[0].keys() == owns[1].keys()
    assert max((owns[0][name] - owns[1][name]).abs().max() for name in owns[0]) < 1e-3  # a step moves by 1e-2
    again = train(
        mode, "grpo", tiny_model, tmp_path, **options, resume_from_checkpoint=tmp_path / mode / "checkpoint-1"
    )
    assert [entry["loss"] for entry in again[:3]] == [entry["loss"] for entry in two[:3]]
    resumed = saved_own(tmp_path / mode / "checkpoint-3")
    assert all(torch.equal(resumed[name], owns[1][name]) for name in resumed)
