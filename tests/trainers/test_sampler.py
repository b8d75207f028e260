"""Prompts come in TRL's order, and a run that resumes in a later epoch goes on with that epoch's."""

from __future__ import annotations

from trl.trainer.utils import RepeatSampler

from vlm_grpo.trainers.sampler import EpochSampler

ARGUMENTS = {"data_source": range(7), "mini_repeat_count": 2, "batch_size": 2, "repeat_count": 2, "shuffle": True}


def test_every_epoch_of_a_whole_run_has_trls_order():
    stock, ours = RepeatSampler(**ARGUMENTS, seed=3), EpochSampler(**ARGUMENTS, seed=3)
    epochs = []
    for epoch in range(3):
        ours.set_epoch(epoch)
        epochs.append(list(ours))
        assert epochs[-1] == list(stock)
    assert epochs[0] != epochs[1] != epochs[2]


def test_a_new_sampler_begins_in_the_epoch_that_it_is_told():
    whole, resumed = EpochSampler(**ARGUMENTS, seed=3), EpochSampler(**ARGUMENTS, seed=3)
    for epoch in range(3):
        whole.set_epoch(epoch)
        third = list(whole)
    resumed.set_epoch(2)
    assert list(resumed) == third
    assert list(RepeatSampler(**ARGUMENTS, seed=3)) != third  # stock begins with the first epoch again
