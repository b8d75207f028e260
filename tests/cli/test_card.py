"""The README.md beside a trained model: valid, complete, and its snippet answers about an image."""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image

from tests.cli.test_train import flags
from vlm_grpo.cli.train import main
from vlm_grpo.trainers.model_card import Card, CardFacts

REWARDS = ["--reward_funcs", "accuracy:2", "format"]


@pytest.fixture(scope="module", params=["whole", "adapter"])
def run(request: pytest.FixtureRequest, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run with an evaluation at its end, of a whole model and of an adapter."""
    folder = tmp_path_factory.mktemp(request.param)
    options = {"max_steps": 2, "save_steps": 2, "logging_steps": 1, "task_type": "counting", "beta": 0.1}
    options |= {"val_split_ratio": 0.5, "eval_strategy": "steps", "eval_steps": 2, "per_device_eval_batch_size": 4}
    if request.param == "adapter":
        options |= {"use_peft": True, "lora_target_modules": "all-linear", "lora_r": 4}
    words = flags(tiny_model, folder, **options)
    assert main([*words, *REWARDS]) == 0
    return folder / "out"


def test_the_card_says_what_the_model_is(run: Path):
    text = (run / "README.md").read_text()
    card = ModelCard(text)
    is_adapter = (run / "adapter_config.json").is_file()
    assert card.data.pipeline_tag == "image-text-to-text" and "vlm_grpo" in card.data.tags
    assert card.data.library_name == ("peft" if is_adapter else "transformers")
    assert card.data.base_model is None  # a folder of this machine
    for said in (
        "reinforcement learning with GRPO on the task `counting`, from the folder `tiny_qwen",
        "after all 2 of 2 steps",
        "arXiv:2402.03300",
        "| data | a.jsonl |",
        "| rewards | accuracy (weight 2), format (weight 1) |",
        "| KL coefficient (beta) | 0.1 |",
        "| learning rate | 1e-06, linear |",
        "Greedy answers to 2 held-out rows, with 95 % intervals:",
        "| rewards/accuracy/mean | 0.000 | 0.000 |",
        "  --task_type counting \\\n",
    ):
        assert said in text, said
    assert re.search(r"\| accuracy \| 0\.0% \[0\.0%, \d+\.\d%\] \|", text)
    assert ("| adapter | LORA of rank 4 |" in text) == is_adapter
    assert "None" not in text and "time machine" not in text


def test_a_checkpoint_has_its_own(run: Path):
    text = (run / "checkpoint-2" / "README.md").read_text()
    assert f'path = "{run}/checkpoint-2"' in text and "image-text-to-text" in text
    assert f'path = "{run}"' in (run / "README.md").read_text()


def test_the_snippet_answers_about_an_image(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (80, 60), "red").save("image.png")
    (code,) = re.findall(r"```python\n(.*?)```", (run / "README.md").read_text(), re.DOTALL)
    assert "Write how you count inside <think> </think>" in code  # as the task asks
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), names := {})
    assert names["inputs"]["pixel_values"].numel() and names["output"].shape[1] > names["inputs"]["input_ids"].shape[1]
    assert printed.getvalue()
    assert os.listdir(tmp_path) == ["image.png"]


def test_a_name_on_the_hub_and_odd_characters():
    facts = CardFacts("vqa", ["org/set@train", "a|b.jsonl"], ["--a", "it's"], 'Say "cheese"\n', "Be brief: {}")
    rest = {"settings": {}, "logs": [], "place": (1, 3), "template_options": {"enable_thinking": False}}
    text = Card("runs/x: y", "org/model", "GRPO", "m", {"my|own": 0.5}, facts=facts, **rest).text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["base_model"] == "org/model" and front["datasets"] == ["org/set"]
    assert "my\\|own (weight 0.5)" in text and "not finished: after 1 of 3 steps" in text
    assert "--a 'it'\"'\"'s'" in text and "Nothing was logged" in text
    assert "from a model that was made in Python;" in Card("x", "", "GRPO", "m", {}, **rest).text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    compile(code, "README.md", "exec")
    assert 'question = "Say \\"cheese\\"\\n"' in code and "enable_thinking=False" in code and '"Be brief: {}"' in code
