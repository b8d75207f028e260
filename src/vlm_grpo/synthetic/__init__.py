"""Small data sets for every task, generated from real or rendered images without a download. Imports no torch.

`write_toy` writes one of TOYS; `write_digits` writes the handwritten digits of the quickstart.
"""

from __future__ import annotations

from pathlib import Path

from vlm_grpo.registry import Registry
from vlm_grpo.synthetic.charts import vqa_example
from vlm_grpo.synthetic.counting import counting_example
from vlm_grpo.synthetic.digits import DigitFiles, digit_example, write_digits
from vlm_grpo.synthetic.example import Example, ExampleFactory
from vlm_grpo.synthetic.gui import gui_example
from vlm_grpo.synthetic.math import math_example
from vlm_grpo.synthetic.ocr import damaged_example
from vlm_grpo.synthetic.ovd import ovd_example
from vlm_grpo.synthetic.referring import grounding_example, rec_example
from vlm_grpo.synthetic.retrieval_qa import search_example
from vlm_grpo.synthetic.segmentation import seg_example
from vlm_grpo.synthetic.video_clips import video_example
from vlm_grpo.synthetic.web_pages import page_example
from vlm_grpo.synthetic.writer import ToyFiles, write_examples

__all__ = ["TOYS", "DigitFiles", "Example", "ToyFiles", "write_digits", "write_toy"]

TOYS: Registry[ExampleFactory] = Registry(
    "toy data set",
    {
        "default": digit_example,
        "rec": rec_example,
        "grounding": grounding_example,
        "seg": seg_example,
        "ovd": ovd_example,
        "counting": counting_example,
        "math": math_example,
        "vqa": vqa_example,
        "gui": gui_example,
        "video": video_example,
        "damaged": damaged_example,
        "search": search_example,
        "visual_code": page_example,
    },
)


def write_toy(name: str, folder: str | Path, *, rows: int = 100, seed: int = 0, side: int = 336) -> ToyFiles:
    """Write train.jsonl, held_out.jsonl (a fifth of the rows, at least one) and images/; deterministic.

    Args:
        name: one of TOYS; "default" is handwritten digits, "video" moving shapes.
        folder: must not exist, be empty, or contain the result of the same arguments.
        rows: total number of examples, at least 2.
        seed: random seed.
        side: width and height of the images in pixels, at least 112.

    Raises:
        KeyError: the name is unknown.
        ValueError: there are too few rows or pixels, or the folder has other content.
        ImportError: a package that the data set needs is missing.
    """
    return write_examples(name, TOYS[name], folder, rows=rows, seed=seed, side=side)
