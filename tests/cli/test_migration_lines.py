"""What docs/migration.md says of files, answers and functions of other systems: each line is run here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from docs.gen_migration import THINGS
from tests.data.files import png, turns, write_images, write_jsonl
from tests.data_tools.coco_files import tool
from vlm_grpo.algorithms import canonical_name, find_algorithm
from vlm_grpo.cli.check import main as check
from vlm_grpo.cli.templates import load_prompting
from vlm_grpo.cli.train_args import UsageError, parse
from vlm_grpo.data import DataError, load_dataset
from vlm_grpo.data.demonstrations import sort_expert_files, with_expert_key
from vlm_grpo.envs.pick_image import PickImage
from vlm_grpo.prompts import load_prompt
from vlm_grpo.records import ImageRef, Record
from vlm_grpo.rewards import score
from vlm_grpo.rewards.user_rewards import find_signature
from vlm_grpo.tool_call_formats import parse_tool_calls

QUICK = ["--use_cpu", "--report_to=none", "--model_name_or_path=m"]
SQUARE = {"bbox_2d": [0, 0, 10, 10]}


def run(folder: Path, *words: str) -> Any:
    return parse([*QUICK, f"--output_dir={folder}", *words])


def one_row(folder: Path, **row: Any) -> str:
    return write_jsonl(folder / "a.jsonl", [{"conversations": turns("q", "a"), **row}])


def template(folder: Path, text: str, question: str = "q", images: int = 0) -> list[str]:
    (folder / "t.jinja").write_text(text)
    record = Record(1, question, "a", tuple(ImageRef(f"{n}.png") for n in range(images)))
    return [block.get("text", "image") for block in load_prompt(folder / "t.jinja").render(record)[0]["content"]]


def form_of(signature: str) -> str | None:
    names: dict[str, Any] = {}
    exec(f"def f({signature}): return 0.0", names)
    return find_signature(names["f"])


def answered(answer: str, truth: Any, task: str) -> float | None:
    return score("accuracy", f"<think>x</think><answer>{answer}</answer>", record=Record(1, "q", truth, task=task))


def words_of_a_command(folder: Path) -> None:
    (folder / "c.yaml").write_text("trainer:\n  max_steps: 7\n")
    given = ["data.train_files=x/y@train", "actor.model.model_path=m", f"trainer.outputs_dir={folder}", "--use_cpu"]
    script, training, model = parse([f"config={folder}/c.yaml", *given])
    assert (script.dataset_name, training.max_steps, model.model_name_or_path) == ("x/y@train", 7, "m")


def nested_file(folder: Path) -> None:
    (folder / "c.yaml").write_text("data: {train_files: '${oc.env:NO_SUCH,x/y}'}\nalgorithm: {adv_estimator: GRPO}\n")
    script, training, _ = run(folder, f"--config={folder}/c.yaml")
    assert (script.dataset_name, training.algorithm) == ("x/y", "grpo")


def split_of_a_file(folder: Path) -> None:
    assert len(load_dataset(f"{one_row(folder)}@train")) == 1
    with pytest.raises(DataError, match="a file has no other"):
        load_dataset(f"{folder}/a.jsonl@test")


def trimmed(folder: Path) -> None:
    assert template(folder, "{{ content | trim }} Think.", " q ") == ["q Think."]


def leading_image(folder: Path) -> None:
    assert template(folder, "<image>{{ content }}", "<image><image>q", 2) == ["image", "image", "q"]
    assert template(folder, "<image>{{ content }}", "q", 0) == ["q"]


def no_class(folder: Path) -> None:
    (folder / "mine.py").write_text("class MyAlgo: pass\ndef mine(rewards): return rewards\n")
    with pytest.raises(ValueError, match=r"not a subclass of vlm_grpo\.algorithms\.Algorithm"):
        find_algorithm(f"{folder}/mine.py:MyAlgo")
    assert find_algorithm(f"{folder}/mine.py:mine").advantage_fn is not None


def luffys_columns(folder: Path) -> None:
    rows = load_dataset(one_row(folder, thinking="x", solution="a"))
    assert with_expert_key(rows, "thinking+solution")[0]["expert"] == "<think>x</think>\n<answer>a</answer>"


def chords_set(folder: Path) -> None:
    path = one_row(folder)
    assert sort_expert_files(path).demonstrations == [path]


def accuracy_of_tasks(folder: Path) -> None:
    assert answered(json.dumps(SQUARE), SQUARE, "rec") == 1.0
    assert answered('{"bbox_2d": [0, 0, 10, 5]}', SQUARE, "rec") == 0.5
    record = Record(1, "q", "", task="seg", extra={"mask": {"size": [2, 2], "counts": [0, 4]}})
    shape = {"polygon": [{"bbox_2d": [0, 0, 2, 2], "points": [[-100, -100], [100, -100], [100, 100], [-100, 100]]}]}
    assert score("accuracy", f"<answer>{json.dumps(shape)}</answer>", record=record) == 1.0


def bare_flag(folder: Path) -> None:
    assert run(folder, "--data_file_paths=a.jsonl", "--bf16", "--logging_steps=1")[1].bf16 is True


def steps_and_epochs(folder: Path) -> None:
    with pytest.raises(UsageError, match="--num_train_epochs has no effect with --max_steps; set only one of them"):
        run(folder, "--data_file_paths=a.jsonl", "--num_train_epochs=2", "--max_steps=9")


def foreign_task(folder: Path) -> None:
    path = one_row(folder, task="clevr_count")
    assert load_dataset(path, ignore_columns=["task"])[0]["task"] == "default"
    with pytest.raises(DataError, match="clevr_count"):
        load_dataset(path)


def absolute_paths(folder: Path) -> None:
    (folder / "x.png").write_bytes(png())
    path = one_row(folder, image=f"{folder}/x.png", conversations=turns("<image>q", "a"))
    assert load_dataset(path)[0]["images"][0].source == f"{folder}/x.png"
    assert len(load_dataset(path, image_folders=str(write_images(folder)), allow_outside=True)) == 1
    with pytest.raises(DataError, match="without an image folder, any absolute path; --allow_outside allows others"):
        load_dataset(path, image_folders=str(write_images(folder)))


def colons(folder: Path) -> None:
    (folder / "a:b").mkdir()
    paths = [one_row(folder / "a:b"), write_jsonl(folder / "c.jsonl", [{"conversations": turns("q", "b")}])]
    assert [row["answer"] for row in load_dataset(":".join(paths))] == ["a", "b"]


def two_splits(folder: Path) -> None:
    parsed = tool("coco_to_polygons").parse(["--coco_dir", "c", "--split", "train2017", "--output_dir", "d"])
    assert (
        parsed.split == "train2017" and "val.jsonl for a split that begins with val" in tool("coco_to_polygons").__doc__
    )


def drawing(folder: Path) -> None:
    parsed = tool("draw_polygons").parse(["v.jsonl", "--image-root", "D", "--output", "V"])
    assert (parsed.data_file_paths, parsed.image_folders, str(parsed.output_dir)) == ("v.jsonl", "D", "V")


def hub_flag(folder: Path) -> None:
    path = one_row(folder)
    assert check(["--dataset_name", path, "--use_huggingface_dataset"]) == 0
    assert run(folder, f"--dataset_name={path}", "--use_huggingface_dataset")[0].use_huggingface_dataset


def bare_number(folder: Path) -> None:
    record, said = Record(1, "q", "5", task="vqa"), '{"reasoning_steps": ["a"], "answer": 5}'
    assert (score("accuracy", said, record=record), score("format", said, record=record)) == (1.0, 0.0)


def text_around(folder: Path) -> None:
    record, said = Record(1, "q", "5", task="vqa"), '{"reasoning_steps": ["a"], "answer": "5"}'
    assert [score("accuracy", text, record=record) for text in (f"So: {said}", f"```json\n{said}\n```")] == [0.0, 1.0]


def batch_sizes(folder: Path) -> None:
    given = ["--data_file_paths=a.jsonl", "--per_device_train_batch_size=4"]
    assert run(folder, *given, "--gradient_accumulation_steps=4")[1].generation_batch_size == 16
    with pytest.raises(UsageError, match="nearest valid: --per_device_train_batch_size 8, or --gradient_accumulation"):
        run(folder, *given)


def own_code(folder: Path) -> None:
    for model_type, name in (("internvl_chat", "OpenGVLab/InternVL3_5-4B-HF"), ("chatglm", "zai-org/GLM-4.1V-9B")):
        content = {"model_type": model_type, "auto_map": {"AutoConfig": "own.Config"}}
        (folder / "config.json").write_text(json.dumps(content))
        with pytest.raises(UsageError, match=f"use .*{name}"):
            load_prompting(str(folder), None)


def fleets_command(folder: Path) -> None:
    words = "--data_root ./toy_images --train_steps 200 --per_device_batch_size 4 --num_rollouts 4 --use_lora false"
    given = f"{words} --fixed_correct_index 0 --trainer rloo --environment pick_image --max_turns 1 --model_id x"
    script, training, model = parse([*QUICK[:2], f"--output_dir={folder}", *given.split()])
    assert (training.max_steps, training.num_generations, model.use_peft) == (200, 4, False)
    assert (model.model_name_or_path, script.fixed_correct_index) == ("x", 0)


def fixed_index(folder: Path) -> None:
    for name in ("cat_1", "dog_1", "car_1", "cup_1"):
        (folder / f"{name}.png").write_bytes(png())
    fixed, drawn = PickImage(data_root=str(folder)), PickImage(data_root=str(folder), fixed_correct_index=-1)
    assert {fixed.reset(episode=n) and fixed.correct for n in range(20)} == {0}
    assert {drawn.reset(episode=n) and drawn.correct for n in range(20)} == {0, 1, 2, 3}


def fleets_call(folder: Path) -> None:
    (call,) = parse_tool_calls('<tool_call>{"tool_name": "pick_image", "arguments": {"i": 0}}</tool_call>')
    assert call == ("pick_image", {"index": 0})


def names_of_algorithms(folder: Path) -> None:
    given = ("GRPO", "REINFORCE++", "DR-GRPO", "GRPO-PassK", "GAE")
    assert [*map(canonical_name, given)] == ["grpo", "reinforce_plus_plus", "dr_grpo", "grpo_passk", "ppo"]


def form(name: str, signature: str) -> Callable[[Path], None]:
    def test(folder: Path) -> None:
        assert form_of(signature) == name

    return test


def no_defect(folder: Path) -> None:
    assert answered("[]", "No Defect", "gui") == answered("No Defect", [], "gui") == 1.0


RUN: Mapping[str, Mapping[str, Callable[[Path], None]]] = {
    "RLLaVA": {
        "config=FILE": words_of_a_command,
        "nested YAML": nested_file,
        "x.json@train": split_of_a_file,
        "content \\| trim": trimmed,
        "begin with `<image>`": leading_image,
        "(response, ground_truth)": form("text", "response, ground_truth"),
        "(reward_input: dict)": form("reward_input", "reward_input: dict"),
        "(reward_inputs: list)": form("reward_inputs", "reward_inputs: list"),
        "(data_source, solution_str": form("verl", "data_source, solution_str, ground_truth, extra_info"),
        "`GRPO`": names_of_algorithms,
        "@register_ppo": no_class,
        "LUFFY": luffys_columns,
        "CHORD": chords_set,
    },
    "VLM-R1": {
        "--task_type rec": accuracy_of_tasks,
        "f(completions": form("columns", "completions, solution, **kwargs"),
        "--bf16": bare_flag,
        "--num_train_epochs": steps_and_epochs,
        "No Defect": no_defect,
        "clevr_count": foreign_task,
        "absolute": absolute_paths,
        "a.jsonl:b.jsonl": colons,
        "download_coco_dataset": two_splits,
        "draw_polygons": drawing,
    },
    "the VQA guide": {
        "--use_huggingface_dataset": hub_flag,
        "without quotes": bare_number,
        "text around": text_around,
        "batch sizes": batch_sizes,
        "InternVL2-8B": own_code,
    },
    "Fleet": {"training.py": fleets_command, "--fixed_correct_index": fixed_index, "tool_name": fleets_call},
}
LINES = [(system, line) for system, lines in THINGS.items() for line, _ in lines]


@pytest.mark.parametrize(("system", "line"), LINES, ids=lambda value: value[:40])
def test_a_line_of_the_page(system: str, line: str, tmp_path: Path):
    (checked,) = [function for start, function in RUN[system].items() if start in line]
    checked(tmp_path)


def test_nothing_is_run_that_the_page_does_not_say():
    assert {system: len(lines) for system, lines in THINGS.items()} == {s: len(runs) for s, runs in RUN.items()}


# The arguments of run_grpo_rec.sh, and of the VQA guide's training script, as they are printed there.
REC = """--use_vllm False --output_dir {folder} --resume_from_checkpoint True
--model_name_or_path Qwen/Qwen2.5-VL-3B-Instruct
--data_file_paths a.jsonl:b.jsonl:c.jsonl --image_folders x:y:z --is_reward_customized_from_vlm_module True
--task_type rec --per_device_train_batch_size 8 --gradient_accumulation_steps 2 --gradient_checkpointing true
--logging_steps 1 --num_train_epochs 2 --bf16 --attn_implementation flash_attention_2 --run_name rec --data_seed 42
--save_steps 100 --num_generations 8 --max_completion_length 2048 --reward_funcs accuracy format --beta 0.04
--epsilon_high 0.28 --report_to wandb --dataset-name this_is_not_used"""
VQA = """--model_name_or_path Qwen/Qwen2-VL-7B-Instruct --dataset_name /data/vqa --use_huggingface_dataset
--task_type vqa
--reward_funcs format accuracy reasoning --output_dir {folder} --num_train_epochs 3 --per_device_train_batch_size 2
--gradient_accumulation_steps 8 --learning_rate 1e-5 --bf16 --logging_steps 10 --save_steps 500 --save_total_limit 3
--warmup_steps 100 --max_grad_norm 1.0 --logging_dir {folder}/logs --report_to tensorboard"""
LORA = "--use_peft --lora_r 16 --lora_alpha 32 --lora_dropout 0.05 --target_modules q_proj v_proj k_proj o_proj"


@pytest.mark.parametrize(("command", "task"), [(REC, "rec"), (VQA, "vqa"), (f"{VQA} {LORA}", "vqa")])
def test_a_command_of_their_guides_is_read_as_it_is(
    command: str, task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", "")
    script, training, model = parse([*command.format(folder=tmp_path).split(), "--use_cpu"])
    assert (script.task_type, training.bf16, training.generation_batch_size) == (task, True, 16)
    assert model.lora_target_modules == (["q_proj", "v_proj", "k_proj", "o_proj"] if "lora" in command else None)
