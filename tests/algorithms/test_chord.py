"""CHORD against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from vlm_grpo.algorithms.chord import CHORDOptions, chord_mix, chord_phi, shard_rows


def test_mu_rises_and_falls():
    options = CHORDOptions()
    found = [options.mu(step) for step in (0, 100, 200, 300, 400, 600, 9999)]
    assert found == pytest.approx([0, 0.25, 0.5, 0.4297, 0.26, 0.02, 0.02], abs=1e-4)
    assert CHORDOptions(mu_warmup=0, mu_decay=0, mu_peak=0.1, mu_valley=0.1).mu(0) == 0.1


def test_chord_mixes_and_weighs():
    assert chord_mix(torch.tensor(0.4), torch.tensor(2.0), 0.1).item() == pytest.approx(0.56)
    assert chord_phi(torch.tensor([0.9, 0.5, 0.1]).log()).tolist() == pytest.approx([0.09, 0.25, 0.09])


def test_parts_of_a_batch_are_equally_large_and_hold_every_row_once():
    parts = [shard_rows(5, slot, 3) for slot in range(3)]
    assert parts == [[(0, 1.0), (3, 1.0)], [(1, 1.0), (4, 1.0)], [(2, 1.0), (0, 0.0)]]
    assert shard_rows(1, 1, 2) == [(0, 0.0)]
