"""Write docs/families.md from the table of model families: `python docs/gen_families.py`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # also runs from a checkout

from vlm_grpo.cli.list import family_cells
from vlm_grpo.families import FAMILIES, Family
from vlm_grpo.unsupported_models import UNSUPPORTED_MODELS

PAGE = Path(__file__).with_name("families.md")
# Tokens of an image of 1600 x 1200 pixels: by default, with --max_image_tokens 1024, and with 256; a text is the
# smallest possible limit. tests/test_image_tokens.py verifies them with the settings of the hub.
EXAMPLES: Mapping[str, tuple[int, int | str, int | str]] = {
    "qwen2_vl": (2451, 972, 234),
    "qwen2_5_vl": (2451, 972, 234),
    "qwen3_vl": (1900, 972, 234),
    "qwen3_vl_moe": (1900, 972, 234),
    "qwen3_5": (1900, 972, 234),
    "qwen3_5_moe": (1900, 972, 234),
    "qwen3_omni_moe_thinker": (1900, 972, 234),
    "internvl": (3328, 256, 256),
    "glm4v": (2451, 972, 234),
    "glm4v_moe": (2451, 972, 234),
    "glm46v": (2451, 972, 234),
    "gemma3": (256, 256, 256),
    "gemma4": (266, 266, 130),
    "mistral3": (2310, 768, 192),
    "smolvlm": (832, 640, 64),
    "idefics3": (2197, 845, 169),
    "llava": (576, 576, "at least 576"),
    "llava_next": (2340, "at least 1176", "at least 1176"),
    "llava_onevision": (7309, "at least 1485", "at least 1485"),
    "lfm2_vl": (1770, 746, 234),
    "paligemma": (256, 256, 256),
    "minicpmv4_6": (630, 630, 203),
    "minicpmv4_7": (630, 630, 203),
    "kimi_k25": (2494, 972, 234),
    "ovis2": (2560, 768, 256),
    "deepseek_vl": (576, 576, "at least 576"),
    "deepseek_vl_hybrid": (576, 576, "at least 576"),
}
HEAD = """# Model families

<!-- Written by `python docs/gen_families.py`; a test fails when it is out of date. -->

A family is identified by `model_type` in a checkpoint's config.json. Other model types use generic defaults, with a
warning where family-specific facts are missing. `vlm-grpo families` prints the first table.

## The table

- **shared prefix**: whether training runs a prompt through the model once for all of its completions, or why not.
  Without it, completions are scored one by one: slower, with the same result.
- **videos**: whether the processor supports videos. The checkpoint's chat template must support them too.
- **tools**: the format of tool calls in the chat template. Without one, tools and calls are described in plain text.
- **boxes**: the coordinate space that the family was trained on: `thousand` is 0 to 1000 and `unit` is 0 to 1 per side,
  `resized` is pixels of the image after the processor resized it. If none is published, boxes are read as pixels of the
  original image, and runs with boxes print a warning. `--answer_space thousand|resized|original|unit` overrides it in
  `train`, `evaluate` and `preview`.

| model type | examples | shared prefix | videos | tools | boxes |
|---|---|---|---|---|---|
"""
SOURCES = """## Sources of the coordinate spaces

| model type | space | source |
|---|---|---|
"""
TOKENS = """## Image tokens

`--max_image_tokens N` limits every image to N tokens in any family. It sets the option that the image processor has:
pixel range, number of tiles or slices, longest edge, list of resolutions or token budget. The setting is verified on
blank images of many shapes before the model is loaded, and saved with the processor, so that a checkpoint is evaluated
with the same image sizes as in training. Families with a fixed number of tokens per image raise an error for a smaller
N. `--max_pixels` is an alternative for processors with a pixel range. A warning is printed if the first rows have an
image of more than 4,096 tokens.

Tokens of an image of 1600 x 1200 pixels with the default settings of the checkpoints:

| model type | default | `--max_image_tokens 1024` | `--max_image_tokens 256` |
|---|---|---|---|
"""
LENGTHS = """## Prompt lengths

`--max_prompt_length` counts the tokens of the processed prompt. Most processors have a formula for the tokens of an
image; it is compared with the actual processor output on the first rows, for each number of images per row. If they
differ (LLaVA-OneVision with two images, Gemma 3 and 4), or there is no formula (SmolVLM, LFM2-VL, MiniCPM-V, Ovis2,
DeepSeek-VL), every row is measured by processing its prompt with blank images of the same sizes.
"""
REFUSED = """## Unsupported models

These raise an error before the model is loaded:

| model type | reason, and what to use instead |
|---|---|
"""
RUN = """## Tests of each family

Every family of the table is tested with a random model of two layers, the family's processor classes and, where TRL
ships it, the original chat template (Qwen2.5-VL, also for Qwen2-VL, Qwen3-VL, Qwen3.5 and 3.6, Gemma 3 and 4, SmolVLM,
Idefics3, LLaVA-NeXT, LFM2.5-VL; the others have a plain template with the family's placeholders):

- two steps of GRPO on rows with zero, one and two images in one batch (PaliGemma: one and two, its processor requires
  one); saving, loading and resuming from the first step are bit-exact, and greedy evaluation runs;
- three steps of RLOO with a LoRA adapter and a KL term, interrupted within a rollout and resumed bit-exactly;
- a step with a frozen vision encoder: its weights stay, the others change;
- a mixed batch against each row alone in the plain processor and model: logits within 1e-5, equal greedy answers;
- prompt lengths against the processor, for zero, one and two images of several sizes;
- limits of image tokens, on image shapes other than those used for verification;
- a correct box in the family's space on an image of 1600 x 1200 pixels: IoU 1.

See `tests/trainers/test_families.py` and `tests/test_image_tokens.py`. No checkpoint of the hub was trained.
"""


def page() -> str:
    """Return the whole page."""
    known = [f"| `{name}` | {family.coordinate_space} | {family.source} |" for name, family in FAMILIES.items()
             if family.coordinate_space]  # fmt: skip
    examples = [f"| `{name}` | {' | '.join(map(str, counts))} |" for name, counts in EXAMPLES.items()]
    refused = [f"| `{name}` | {reason} |" for name, reason in UNSUPPORTED_MODELS.items()]
    parts = [
        HEAD + "\n".join(_row(name, family) for name, family in FAMILIES.items()),
        SOURCES + "\n".join(known),
        TOKENS + "\n".join(examples),
        LENGTHS.strip(),
        REFUSED + "\n".join(refused),
        RUN.strip(),
    ]
    return "\n\n".join(parts) + "\n"


def _row(name: str, family: Family) -> str:
    examples = ", ".join(f"`{one}`" if "/" in one and " " not in one else one for one in family.checkpoints)
    prefix, video, tools, space = family_cells(family)
    return f"| `{name}` | {examples} | {prefix} | {video} | {tools} | {space} |"


def main() -> int:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
