"""Tokens a second of decoding alone: one prompt with an image, many completions, each way to compute a step.

python benchmarks/decoding.py --large --output benchmarks/decoding_gpu.json   the 3B's shape in bfloat16, on a GPU
python benchmarks/decoding.py --large --ways compiled --output ...            one more way into the same file
python benchmarks/decoding.py --rehearse                                      tiny, on a CPU

Ways: `dynamic` launches every kernel over a growing cache, `static` over a cache of fixed size, `captured` replays that
step as a CUDA graph, `compiled` lets torch compile it. Prefill, recording and compiling are not counted: the seconds
are those of TOKENS steps after the first ones, from the difference of a long and a short generation. The bound is what
memory bandwidth allows: every step reads the language model's weights and the cache once. Bandwidth is measured in the
same run, by copying. The output file is written after every measurement.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from computer import describe
from PIL import Image
from step import SCALES, Scale
from tables import BATCHES, FEW, WAYS, decoding_table

from vlm_grpo.io import write_whole
from vlm_grpo.rollouts.encoder import PromptEncoder
from vlm_grpo.rollouts.engines.shared_prefill import Decoding, SharedPrefillGenerate, prompt_batch
from vlm_grpo.tiny import build_tiny_qwen

ON_CPU = ("dynamic", "static")  # the others need a GPU
TOKENS = 32  # how many more steps the long generation takes than the short one
SIDE = {"large": 896, "rehearse": 112}  # pixels of the square image
NEEDS_A_GPU = "needs a GPU"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    size = parser.add_mutually_exclusive_group(required=True)
    size.add_argument("--large", action="store_true", help="the 3B's shape, on a GPU")
    size.add_argument("--rehearse", action="store_true", help="tiny, on a CPU")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="default: all")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--output", type=Path, help="JSON file for step_report.py; written after each measurement")
    options = parser.parse_args()
    if options.large and not torch.cuda.is_available():
        parser.error("--large needs a GPU")
    name = "large" if options.large else "rehearse"
    result: dict[str, Any] = {"seconds": {}}
    if options.output and options.output.exists():
        result = json.loads(options.output.read_text(encoding="utf-8"))
    result |= {"computer": describe(), "tokens": TOKENS}
    for entry in measure(SCALES[name], SIDE[name], options.ways, options.repeats, result):
        print(entry, flush=True)
        if options.output:
            write_whole(options.output, json.dumps(result) + "\n")
    print(decoding_table(result))


def measure(scale: Scale, side: int, ways: Sequence[Decoding], repeats: int, result: dict[str, Any]) -> Iterator[str]:
    """Fill the result and yield a line after every measurement."""
    torch.manual_seed(0)
    with torch.device(scale.device):
        model, processor = build_tiny_qwen(scale.size, max_pixels=16384 * 28 * 28)
    model = (model.bfloat16() if scale.is_on_gpu else model).eval()
    picture = Image.effect_noise((side, side), 64).convert("RGB")
    row = {"prompt": [{"role": "user", "content": "What color is the shape? " * 10}], "images": [picture]}
    sample = PromptEncoder(processor, {}).encode([row])[0]
    inputs = {k: v.to(scale.device) for k, v in prompt_batch([sample], processor.tokenizer.pad_token_id).items()}
    result["bytes"] = {"weights": decoder_bytes(model), "token": cache_bytes_of_token(model)}
    result["prompt"] = inputs["input_ids"].size(1)
    result["bandwidth"] = bandwidth(scale.device)
    yield f"bandwidth {result['bandwidth'] / 1e9:.0f} GB/s"
    if not scale.is_on_gpu:
        left_out = [way for way in WAYS if way not in ON_CPU]
        result["seconds"] |= {f"{way} {batch}": NEEDS_A_GPU for way in left_out for batch in BATCHES}
        ways = [way for way in ways if way in ON_CPU]
    for way in ways:
        for batch in BATCHES:
            key = f"{way} {batch}"
            result["seconds"][key] = seconds(model, inputs, batch, way, repeats)
            yield f"{key}: {batch * TOKENS / statistics.median(result['seconds'][key]):.0f} tokens/s"


def seconds(model: Any, inputs: dict[str, torch.Tensor], batch: int, way: Decoding, repeats: int) -> list[float]:
    """Return the seconds of TOKENS steps, of each repeat; the first generation warms up and is not counted."""

    def generate(tokens: int) -> float:
        method = SharedPrefillGenerate([0] * batch, way)
        options = {"do_sample": False, "max_new_tokens": tokens, "min_new_tokens": tokens, "custom_generate": method}
        wait()
        began = time.perf_counter()
        with torch.no_grad():
            model.generate(**inputs, **options)
        wait()
        return time.perf_counter() - began

    generate(FEW + TOKENS)
    return [max(generate(FEW + TOKENS) - generate(FEW), 1e-9) for _ in range(repeats)]


def wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def decoder_bytes(model: Any) -> int:
    """Return the bytes of all weights that a step reads: language model and head, without the embedding's table."""
    parts = [parameter for name, parameter in model.named_parameters() if "visual" not in name]
    table = model.get_input_embeddings().weight
    is_tied = table is model.get_output_embeddings().weight
    return sum(p.numel() * p.element_size() for p in parts if is_tied or p is not table)


def cache_bytes_of_token(model: Any) -> int:
    """Return the bytes that the cache holds for one token of one row."""
    text = model.config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * text.num_key_value_heads * width * model.dtype.itemsize


def bandwidth(device: str) -> float:
    """Return the bytes a second, read and written, of the best of ten copies of a large tensor."""
    source = torch.zeros(2**30 if device == "cuda" else 2**28, dtype=torch.uint8, device=device)
    target, best = torch.empty_like(source), float("inf")
    for _ in range(10):
        wait()
        began = time.perf_counter()
        target.copy_(source)
        wait()
        best = min(best, time.perf_counter() - began)
    return 2 * source.numel() / best


if __name__ == "__main__":
    main()
