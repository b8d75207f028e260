"""Write docs/families.md from the table of model families: `python docs/gen_families.py`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # also runs from a checkout

from vlm_grpo.cli.list import family_cells
from vlm_grpo.families import FAMILIES, Family
from vlm_grpo.refusals import REFUSALS

PAGE = Path(__file__).with_name("families.md")
# Tokens of a picture of 1600 x 1200 pixels: by default, with --max_image_tokens 1024, and with 256. Text is the least
# that the limit can be. tests/test_image_tokens.py counts them again with the settings of the hub.
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

A family is named by `model_type` in a checkpoint's config.json. What is not listed here is tried in a generic way, with
a warning where facts would have decided. `vlm-grpo families` prints the first table.

## The table

- **shared prefix**: whether a prompt goes through the model once for all of its completions in training, or why not.
  Where it does not, completions are scored one by one: slower, and the same result.
- **videos**: whether the processor reads them. A checkpoint whose chat template has no place for a video refuses them.
- **tools**: the form in which the chat template writes calls of tools. Without one, the instruction and the calls are
  put into plain text.
- **boxes**: the coordinate space that the family was trained on: `thousand` is 0 to 1000 and `unit` 0 to 1 of each
  side, `resized` are pixels of the image as the processor resized it. Where nothing is published, boxes are read as
  pixels of the original image, and a run with boxes says so.
  `--answer_space thousand|resized|original|unit` chooses another in `train`, `evaluate` and `preview`.

| model type | examples | shared prefix | videos | tools | boxes |
|---|---|---|---|---|---|
"""
SOURCES = """## Where the spaces of boxes are published

| model type | space | source |
|---|---|---|
"""
TOKENS = """## Image tokens

`--max_image_tokens N`: no image becomes more tokens than N, in any family. It sets what the image processor has: the
range of pixels, the number of tiles or slices, the longest edge, the list of resolutions or a budget of tokens. The
setting is tried on blank images of many shapes before the model is loaded, and it is saved with the processor, so that
a checkpoint is evaluated with the images that it was trained on. A family whose images always have the same number of
tokens refuses a smaller N. `--max_pixels` does the same where the processor knows a range of pixels. A run whose first
rows have an image of more than 4,096 tokens says so.

A picture of 1600 x 1200 pixels, with the settings that checkpoints come with:

| model type | default | `--max_image_tokens 1024` | `--max_image_tokens 256` |
|---|---|---|---|
"""
LENGTHS = """## Prompt lengths

`--max_prompt_length` counts a prompt as the processor makes it. Most processors have a rule for the tokens of an image
of some size; on the first rows it is compared with what the processor does, for each number of images in a row. Where
they differ (LLaVA-OneVision with two images, Gemma 3 and 4), or there is no rule (SmolVLM, LFM2-VL, MiniCPM-V, Ovis2,
DeepSeek-VL), every row is measured: the processor makes the prompt with blank images of the same sizes.
"""
REFUSED = """## What is refused

Before the model is loaded, in a line that says what to use:

| model type | why, and what to use instead |
|---|---|
"""
RUN = """## What was run

For every family of the table a random model with two layers, the family's own processor classes and,
where TRL carries it, the maker's chat template (Qwen2.5-VL, also for Qwen2-VL, Qwen3-VL, Qwen3.5 and 3.6, Gemma 3
and 4, SmolVLM, Idefics3, LLaVA-NeXT, LFM2.5-VL; the others have a plain one of our own with the maker's placeholders):

- two steps of GRPO on rows with one, two and no images in one batch (PaliGemma: one and two, its processor needs one);
  saved, loaded again (bit for bit), evaluated
  greedily, and resumed from the first step's checkpoint with the same weights at the end (bit for bit);
- three steps of RLOO with a LoRA adapter and a KL term, stopped in the middle of a rollout and resumed, bit for bit;
- a step with a frozen vision tower: it stays, the rest moves;
- a mixed batch against each row alone through the plain processor and model: logits within 1e-5, equal greedy answers;
- prompt lengths against the processor, for no, one and two images of several sizes;
- limits of image tokens, on images of other shapes than those that the setting is tried on;
- a right box in the family's space on an image of 1600 x 1200 pixels: IoU 1.

`tests/trainers/test_families.py` and `tests/test_image_tokens.py`. No checkpoint of the hub was trained.
"""


def page() -> str:
    """Return the whole page."""
    known = [f"| `{name}` | {family.coordinate_space} | {family.source} |" for name, family in FAMILIES.items()
             if family.coordinate_space]  # fmt: skip
    examples = [f"| `{name}` | {' | '.join(map(str, counts))} |" for name, counts in EXAMPLES.items()]
    refused = [f"| `{name}` | {reason} |" for name, reason in REFUSALS.items()]
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
