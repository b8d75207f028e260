from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from vlm_grpo.tiny import QUICKSTART, build_tiny_qwen


def chat(*content: dict) -> list[dict]:
    return [{"role": "user", "content": list(content)}]


def encode(processor: object, messages: list[dict]) -> dict:
    return processor.apply_chat_template(
        [messages], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )


@pytest.mark.parametrize(("size", "smallest", "largest"), [(None, 5e4, 2e5), (QUICKSTART, 8e5, 1.5e6)])
def test_build_tiny_qwen_has_the_promised_size(size: object, smallest: float, largest: float):
    model, _ = build_tiny_qwen(size)
    assert smallest < sum(parameter.numel() for parameter in model.parameters()) < largest


def test_build_tiny_qwen_saves_and_loads_the_same_model(tiny_model: Path):
    model, processor = build_tiny_qwen()
    loaded = AutoModelForImageTextToText.from_pretrained(tiny_model)
    messages = chat(
        {"type": "image", "image": Image.new("RGB", (84, 56), "red")}, {"type": "text", "text": "<think>é?"}
    )
    inputs = encode(processor, messages)
    again = encode(AutoProcessor.from_pretrained(tiny_model), messages)
    assert inputs.keys() == again.keys()
    assert all(torch.equal(inputs[name], again[name]) for name in inputs)
    with torch.no_grad():
        assert torch.equal(model.eval()(**inputs).logits, loaded.eval()(**again).logits)
    assert loaded.generation_config.eos_token_id == processor.tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_chat_template_keeps_images_in_their_place():
    _, processor = build_tiny_qwen()
    image = {"type": "image", "image": Image.new("RGB", (56, 56))}
    messages = [
        {"role": "system", "content": "Be brief."},
        *chat({"type": "text", "text": "first"}, image, {"type": "text", "text": "then"}, image),
    ]
    # 56 x 56 pixels are 4 x 4 patches of 14, merged 2 x 2 into 4 tokens
    shown = "<|vision_start|>" + "<|image_pad|>" * 4 + "<|vision_end|>"
    assert processor.tokenizer.decode(encode(processor, messages)["input_ids"][0]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        f"<|im_start|>user\nfirst{shown}then{shown}<|im_end|>\n<|im_start|>assistant\n"
    )


def test_build_tiny_qwen_takes_text_without_images():
    model, processor = build_tiny_qwen()
    inputs = encode(processor, chat({"type": "text", "text": "hello"}))
    assert "pixel_values" not in inputs
    assert model(**inputs).logits.shape[:2] == inputs["input_ids"].shape


def test_build_tiny_qwen_depends_on_the_seed_alone():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, second, other = (build_tiny_qwen(seed=seed)[0].state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)  # the global state was left alone
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_tokenizer_makes_words_of_the_corpus_and_tags_single_tokens():
    _, processor = build_tiny_qwen(corpus=["I look at the strokes."])
    text = "<think>I look at the strokes.</think><answer>7</answer>"
    ids = processor.tokenizer(text)["input_ids"]
    assert len(ids) == 11  # four tags, five words, a full stop, a digit
    assert processor.tokenizer.decode([*ids, processor.tokenizer.eos_token_id], skip_special_tokens=True) == text


@pytest.mark.parametrize("text", ["ß 漢字 🙂", "  two  spaces\n\n", '{"bbox_2d": [1, 2.5, -3, 4]}'])
def test_tokenizer_spells_any_text(text: str):
    _, processor = build_tiny_qwen(corpus=["a"])
    assert processor.tokenizer.decode(processor.tokenizer(text)["input_ids"]) == text
