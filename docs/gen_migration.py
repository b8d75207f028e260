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
HEAD = """# Coming from another system

<!-- Written by `python docs/gen_migration.py`; a test fails when it is out of date. Tests run every line. -->

Counterparts of the files, flags and settings of [RLLaVA](#rllava), [VLM-R1](#vlm-r1),
[the VQA guide](#the-vqa-guide) and [Fleet](#fleet). "read" is accepted and translated with a log message; the others
raise an error that names the second column, all of a command line at once and before anything is loaded. Flags with the
same name are not listed.
"""
# What is no flag: (there, here), by system. tests/cli/test_migration.py runs each line.
THINGS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "RLLaVA": (
        ("`config=FILE data.train_files=... actor.model.model_path=...`", "read, by `vlm-grpo train`"),
        ("nested YAML, `--config FILE`", "read: the keys below; `${oc.env:NAME,default}` too"),
        ("`x.json@train`", "read: a file has the split `train` and no other"),
        ("prompt files with `{{ content \\| trim }}`", "read: `content` is the question"),
        ("prompt files that begin with `<image>`", "read: it stands for the images of the row, however many"),
        ("`compute_score(response, ground_truth)`", "read: `ground_truth` is text, as for all forms below"),
        ("`compute_score(reward_input: dict)`", "read: `overall` is the reward, the other entries are logged"),
        ("`compute_score(reward_inputs: list)`", "read: the same for a list"),
        ("`compute_score(data_source, solution_str, ground_truth, extra_info)` (verl)", "read"),
        ("`GRPO`, `REINFORCE++`, `DR-GRPO`, `GRPO-PassK`, `GAE`", "read in any case and punctuation; `GAE` is `ppo`"),
        ("`@register_ppo` on a class", "a function of rewards, or an `Algorithm` ([algorithms.md](algorithms.md))"),
        ("LUFFY on the columns `thinking` and `solution`", "`--expert_key thinking+solution`"),
        ("CHORD with an SFT set of its own prompts", "`--expert_data_file_paths sft.jsonl`, rows with questions"),
    ),
    "VLM-R1": (
        ("`--task_type rec --reward_funcs accuracy format`", "read: `accuracy` is the IoU; `seg`: of masks"),
        ("`f(completions, solution, **kwargs)`", "read, with `problem`, `solution`, `image_path` and so on"),
        ("`--bf16` without a value", "read: true, as every flag of two values"),
        ("`--num_train_epochs` beside `--max_steps`", "refused: one of them; there `--max_steps` wins"),
        ("answers `No Defect`", "read: the empty list of defects"),
        ("a column `task: clevr_count`", "`--ignore_columns task`"),
        ("absolute image paths", "without `--image_folders`, or with `--allow_outside true`"),
        ("`a.jsonl:b.jsonl`, also with `:` inside a path", "read"),
        ("`download_coco_dataset.py --output_dir D`", "`coco_to_polygons.py` with `--split train2017`, then `val2017`"),
        ("`draw_polygons.py FILE --image-root D --output V`", "read"),
    ),
    "the VQA guide": (
        ("`--use_huggingface_dataset`", "read, also by `check`, `preview` and `evaluate`"),
        ('an answer without quotes, `"answer": 5`', "right for `accuracy`, wrong for `format`"),
        ("text around the JSON object", "wrong for all rewards: the object must stand alone, or in a code fence"),
        ("batch sizes 4 x 4 with `num_generations` 8", "read where the product fits; else what would fit is named"),
        ("`OpenGVLab/InternVL2-8B`, `THUDM/glm-4v-9b`", "refused: code of their own; the message names one to take"),
    ),
    "Fleet": (
        ("`training.py` with the flags below", "`--trainer rloo --environment pick_image --max_turns 1` besides"),
        ("`--fixed_correct_index` left out", "0, as there; `-1` draws the place anew in each episode"),
        ('`{"tool_name": "pick_image", "arguments": {"i": 0}}`', "read as a call of the tool"),
    ),
}
REWARDS = """## Rewards

The forms of own rewards in full are in [rewards.md](rewards.md#your-own):
"""


def page() -> str:
    """Return the whole page."""
    parts = [HEAD]
    for system, things in THINGS.items():
        title = system[0].upper() + system[1:]
        parts.append(f"## {title}\n\n| there | here |\n|---|---|\n" + "\n".join(f"| {a} | {b} |" for a, b in things))
        changes = RLLAVA if system == "RLLaVA" else FLAGS[system]
        dashes = "" if system == "RLLaVA" else "--"
        rows = [_row(f"`{dashes}{name}`", change) for name, change in changes.items()]
        rows += [_value_row(flag, value, new) for (flag, value), (of, new) in VALUES.items() if of == system]
        parts.append("| there | here | | note |\n|---|---|---|---|\n" + "\n".join(rows))
    shapes = [f"- `{form.shape}`: {form.source}" for form in SIGNATURES.values()]
    parts.append(REWARDS + "\n" + "\n".join(shapes))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _row(name: str, change: Change) -> str:
    return f"| {name} | {_cell(change.new)} | {'read' if change.read else 'refused'} | {_cell(change.note)} |"


def _value_row(flag: str, value: str, new: str | None) -> str:
    return f"| `--{flag} {value}` | {f'`--{flag} {new}`' if new else 'nothing'} | read |  |"


def _cell(text: str) -> str:
    """Return a text with its flags as code, where they are not code already."""
    parts = text.replace("|", "\\|").split("`")
    parts[::2] = [FLAG.sub(r"`\g<0>`", part) for part in parts[::2]]
    return "`".join(parts)


def main() -> int:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
