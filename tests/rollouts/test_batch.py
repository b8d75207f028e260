"""The typed batch of a rollout: TRL's dict and back, rows selected, joined and shuffled."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch

from vlm_grpo.rollouts.batch import RolloutBatch
from vlm_grpo.rollouts.encoder import EncodedPrompt


def batch_of(prompt: list[int], completion: list[int], **others: Any) -> RolloutBatch:
    """One row without padding."""
    ids, tokens = torch.tensor([prompt]), torch.tensor([completion])
    return RolloutBatch(ids, torch.ones_like(ids), tokens, torch.ones_like(tokens), torch.tensor([0.5]), **others)


def test_a_batch_has_trls_names_in_a_dict_and_comes_back():
    one = torch.ones(1, 2)
    optional = {each.name: one for each in fields(RolloutBatch) if each.default is None}
    given = {**optional, "prompts": [EncodedPrompt([5], "a")], "media_anywhere": [True, False]}
    batch = batch_of([5], [7, 8], **given, others={"pixel_values": torch.zeros(3, 4)})
    values = batch.to_trl_dict()
    renamed = {"old_per_token_logps", "old_logps", "ref_per_token_logps", "sampling_per_token_logps", "samples"}
    own = {"token_mask", "is_expert", "is_correct", "loss_weight", "num_hint_tokens"}
    assert renamed | own | {"pixel_values"} <= values.keys()
    assert values["image_anywhere"].item() and not values["video_anywhere"].item()
    back = RolloutBatch.from_trl_dict(values)
    assert back.media_anywhere == [True, False] and back.prompts is batch.prompts and back.others == batch.others
    assert all(getattr(back, name) is one for name in optional if name not in ("prompts", "media_anywhere"))


def test_a_dict_of_an_earlier_version_is_read():
    former = {name: torch.full((1, 1), n) for n, name in enumerate(("chosen", "verdict", "weight", "hint_tokens"))}
    batch = RolloutBatch.from_trl_dict({**batch_of([5], [7]).to_trl_dict(), **former})
    now = (batch.token_mask, batch.is_correct, batch.loss_weight, batch.num_hint_tokens)
    assert [each.item() for each in now] == [0, 1, 2, 3] and former.keys().isdisjoint(batch.to_trl_dict())


def test_what_a_run_does_not_have_is_not_in_the_dict():
    names = {"prompt_ids", "prompt_mask", "completion_ids", "completion_mask", "advantages"}
    assert batch_of([5], [7]).to_trl_dict().keys() == names


def test_masks_leave_out_tools_and_demonstrations():
    batch = batch_of([5], [7, 8], tool_mask=torch.tensor([[1, 0]]), is_expert=torch.tensor([[True]]))
    assert batch.loss_mask.tolist() == [[1, 0]] and batch.sampled_mask.tolist() == [[0, 0]]


def test_batches_are_joined_and_taken_apart():
    """Prompts are padded on the left, everything of completions on the right, each with what means nothing there."""
    first, second = EncodedPrompt([5, 6], "a"), EncodedPrompt([4], "b")
    number = {"num_items_in_batch": torch.tensor(1)}
    one = batch_of([5, 6], [7], tool_mask=torch.tensor([[0]]), prompts=[first], **number)
    two = batch_of([4], [8, 9], tool_mask=torch.tensor([[1, 0]]), prompts=[second], **number)
    whole = RolloutBatch.concat([one, two], pad_token_id=99)
    assert whole.prompt_ids.tolist() == [[5, 6], [99, 4]] and whole.prompt_mask.tolist() == [[1, 1], [0, 1]]
    assert whole.completion_ids.tolist() == [[7, 99], [8, 9]]
    assert whole.completion_mask.tolist() == [[1, 0], [1, 1]] and whole.tool_mask.tolist() == [[0, 1], [1, 0]]
    assert whole.loss_mask.tolist() == [[0, 0], [1, 0]]
    assert whole.prompts == [first, second] and whole.num_items_in_batch == 1
    back = whole.select([1])
    assert back.prompts == [second] and back.completion_ids.tolist() == [[8, 9]] and len(back) == 1
    assert whole.select([]).completion_ids.shape == (0, 2)
