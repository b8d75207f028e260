"""The names that vLLM imports from transformers' Pixtral give what transformers' own Pixtral computes."""

from __future__ import annotations

from importlib.metadata import entry_points

import pytest
import torch
from transformers import PixtralVisionConfig
from transformers.models.pixtral import modeling_pixtral

NAMES = ("PixtralRotaryEmbedding", "position_ids_in_meshgrid")


def test_vllm_finds_it():
    assert "vlm_grpo" in entry_points(group="vllm.general_plugins").names


def test_the_former_names_give_the_positions_of_today(monkeypatch: pytest.MonkeyPatch):
    for name in NAMES:  # of another plugin, and of the tests after this one
        monkeypatch.setitem(vars(modeling_pixtral), name, None)
        monkeypatch.delitem(vars(modeling_pixtral), name)
    (plugin,) = (each for each in entry_points(group="vllm.general_plugins") if each.name == "vlm_grpo")
    plugin.load()()
    config = PixtralVisionConfig(hidden_size=32, num_attention_heads=2, head_dim=16, num_hidden_layers=1)
    patches = [torch.zeros(1, 32, 2, 3), torch.zeros(1, 32, 1, 2)]
    former = vars(modeling_pixtral)
    positions = former[NAMES[1]](patches, max_width=8)
    assert positions.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2], [0, 0], [0, 1]]
    cos, sin = former[NAMES[0]](config, torch.device("cpu"))(torch.zeros(1, 8, 32), positions)
    today = modeling_pixtral.PixtralVisionRotaryEmbedding(config)(torch.zeros(1, 8, 32), positions)
    assert torch.equal(cos, today[0])
    assert torch.equal(sin, today[1])
