"""Write docs/migration.md from the tables of migration.py: `python docs/gen_migration.py`."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # also runs from a checkout

from vlm_grpo.cli.migration import FLAGS, RLLAVA, VALUES, Change
from vlm_grpo.rewards.user_rewards import SIGNATURES

FLAG = re.compile(r"--\w+(?: '\{.*?\}'| chord| [A-Z]+(?:\.jinja|\.jsonl)?)?|configs/\S+")
PAGE = Path(__file__).with_name("migration.md")
HEAD = """# Migrating from other systems

<!-- Written by `python docs/gen_migration.py`; a test fails when it is out of date. Tests run every line. -->

Counterparts of the files, flags and settings of [RLLaVA](#rllava), [VLM-R1](#vlm-r1),
[the VQA guide](#the-vqa-guide) and [Fleet](#fleet). Entries marked "accepted" are translated, with a log message. All
others raise one error that lists them with their counterparts, before anything is loaded. Flags with the same name in
both systems are omitted.
"""
# Everything but flags: (other system, this package), by system. tests/cli/test_migration_lines.py runs each line.
THINGS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "RLLaVA": (
        ("`config=FILE data.train_files=... actor.model.model_path=...`", "accepted by `vlm-grpo train`"),
        ("nested YAML, `--config FILE`", "accepted: the keys below, and `${oc.env:NAME,default}`"),
        ("`x.json@train`", "accepted: a file has only the split `train`"),
        ("prompt files with `{{ content \\| trim }}`", "accepted: `content` is the question"),
        ("prompt files that begin with `<image>`", "accepted: it stands for all images of the row"),
        ("`compute_score(response, ground_truth)`", "accepted: `ground_truth` is text, here and below"),
        ("`compute_score(reward_input: dict)`", "accepted: `overall` is the reward, the other entries are logged"),
        ("`compute_score(reward_inputs: list)`", "accepted: the same for a list"),
        ("`compute_score(data_source, solution_str, ground_truth, extra_info)` (verl)", "accepted"),
        (
            "`GRPO`, `REINFORCE++`, `DR-GRPO`, `GRPO-PassK`, `GAE`",
            "accepted with any case and punctuation; `GAE` is `ppo`",
        ),
        ("`@register_ppo` on a class", "a function of rewards, or an `Algorithm` ([algorithms.md](algorithms.md))"),
        ("LUFFY with the columns `thinking` and `solution`", "`--expert_key thinking+solution`"),
        ("CHORD with a separate SFT data set", "`--expert_data_file_paths sft.jsonl`, whose rows have questions"),
    ),
    "VLM-R1": (
        ("`--task_type rec --reward_funcs accuracy format`", "accepted: `accuracy` is the IoU (of masks for `seg`)"),
        ("`f(completions, solution, **kwargs)`", "accepted, with `problem`, `solution`, `image_path` and so on"),
        ("`--bf16` without a value", "accepted as true, like every boolean flag"),
        ("`--num_train_epochs` with `--max_steps`", "error: set only one; in VLM-R1 `--max_steps` takes precedence"),
        ("answers `No Defect`", "accepted as an empty list of defects"),
        ("a column `task: clevr_count`", "`--ignore_columns task`"),
        ("absolute image paths", "without `--image_folders`, or with `--allow_outside true`"),
        ("`a.jsonl:b.jsonl`, also with `:` inside a path", "accepted"),
        ("`download_coco_dataset.py --output_dir D`", "`coco_to_polygons.py` with `--split train2017`, then `val2017`"),
        ("`draw_polygons.py FILE --image-root D --output V`", "accepted"),
    ),
    "the VQA guide": (
        ("`--use_huggingface_dataset`", "accepted, also by `check`, `preview` and `evaluate`"),
        ('an answer without quotes, `"answer": 5`', "correct for `accuracy`, wrong for `format`"),
        ("text around the JSON object", "wrong for all rewards: only a code fence around the object is allowed"),
        (
            "batch sizes 4 x 4 with `num_generations` 8",
            "accepted if the product is divisible; otherwise the error suggests values",
        ),
        ("`OpenGVLab/InternVL2-8B`, `THUDM/glm-4v-9b`", "error (remote code); the message names an alternative"),
    ),
    "Fleet": (
        ("`training.py` with the flags below", "add `--trainer rloo --environment pick_image --max_turns 1`"),
        ("`--fixed_correct_index` omitted", "0, as in Fleet; `-1` samples the position in each episode"),
        ('`{"tool_name": "pick_image", "arguments": {"i": 0}}`', "accepted as a tool call"),
    ),
}
REWARDS = """## Rewards

[rewards.md](rewards.md#your-own) describes the supported signatures of reward functions:
"""


def page() -> str:
    """Return the whole page."""
    parts = [HEAD]
    for system, things in THINGS.items():
        title = system[0].upper() + system[1:]
        lines = "\n".join(f"| {old} | {new} |" for old, new in things)
        parts.append(f"## {title}\n\n| {system} | this package |\n|---|---|\n{lines}")
        changes = RLLAVA if system == "RLLaVA" else FLAGS[system]
        dashes = "" if system == "RLLaVA" else "--"
        rows = [_row(f"`{dashes}{name}`", change) for name, change in changes.items()]
        rows += [_value_row(flag, value, new) for (flag, value), (of, new) in VALUES.items() if of == system]
        parts.append(f"| {system} | this package | | note |\n|---|---|---|---|\n" + "\n".join(rows))
    shapes = [f"- `{form.shape}`: {form.source}" for form in SIGNATURES.values()]
    parts.append(REWARDS + "\n" + "\n".join(shapes))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _row(name: str, change: Change) -> str:
    return f"| {name} | {_cell(change.new)} | {'accepted' if change.read else 'error'} | {_cell(change.note)} |"


def _value_row(flag: str, value: str, new: str | None) -> str:
    return f"| `--{flag} {value}` | {f'`--{flag} {new}`' if new else 'nothing'} | accepted |  |"


def _cell(text: str) -> str:
    """Return a text with its flags formatted as code."""
    parts = text.replace("|", "\\|").split("`")
    parts[::2] = [FLAG.sub(r"`\g<0>`", part) for part in parts[::2]]
    return "`".join(parts)


def main() -> int:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
