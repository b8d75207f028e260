from __future__ import annotations

from pathlib import Path

import pytest

from docs.gen_rewards import EXAMPLES, PAGE, main, page, value_of
from vlm_grpo.rewards import REWARDS

REWRITE = "rewrite docs/rewards.md: python docs/gen_rewards.py"


def test_the_page_is_what_the_rewards_say():
    assert PAGE.read_text(encoding="utf-8") == page(), REWRITE


def test_every_reward_has_an_example_that_it_scores():
    assert set(EXAMPLES) == set(REWARDS)
    assert all(isinstance(value_of(name), float) for name in EXAMPLES)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("iou", 0.8),  # 40 x 32 of 40 x 40
        ("iou^2", 0.64),
        ("detection", 0.4),  # 0.8 of two
        ("ovd", (0.8 + 0.99 - 0.04) / 4),
        ("od_ap50", 1 / 3),  # one of two true labels and an invented one
        ("od_ap", 0.7 / 3),  # IoU 0.8 passes .50 to .80
        ("mask_iou", 0.5),
        ("causal", 0.6 + 0.4 * 2 / 3),
        ("judge", 0.0),
    ],
)
def test_values_of_the_examples_by_hand(name: str, expected: float):
    assert value_of(name) == pytest.approx(expected)


def test_main_writes_a_whole_file(tmp_path: Path):
    assert main([str(tmp_path / "page.md")]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["page.md"]
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == page()
