"""Every flag of this package does what it says: each test fails when its flag is ignored. No training is run."""

from __future__ import annotations

import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, IterableDataset
from peft import LoraConfig

from tests.data.files import png, turns, write_images, write_jsonl
from tests.rewards.server import JudgeServer, Reply
from vlm_grpo.cli.args import ScriptArguments
from vlm_grpo.cli.train import build_trainer, check_rewards, check_row_flags, load_data, run
from vlm_grpo.cli.train_args import UsageError, parse
from vlm_grpo.data import DataError
from vlm_grpo.families import FAMILIES
from vlm_grpo.model_utils import freeze_parts, parameter_table, part_of
from vlm_grpo.rewards import judge_client, reasoning
from vlm_grpo.trainers.config import VisionFields, VLMGRPOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer
from vlm_grpo.trainers.rloo import VLMRLOOTrainer

QUICK = [
    "--use_cpu",
    "true",
    "--bf16",
    "false",
    "--report_to",
    "none",
    "--per_device_train_batch_size",
    "4",
    "--num_generations",
    "4",
]
TESTED = {
    *(
        "trainer",
        "algorithm",  # this and the next: test_algorithm_flags.py
        "algorithm_options",
        "data_file_paths",
        "image_folders",
        "reward_method",
        "dataset_name",
        "use_huggingface_dataset",
    ),
    "streaming",
    *("expert_data_file_paths", "expert_key"),  # tests/data/test_demonstrations.py
    *("mixture", "task_type", "reward_funcs", "format_prompt", "prompt_key", "answer_key", "image_key", "video_key"),
    "allow_outside",
    "ignore_columns",
    "allow_private_urls",  # tests/test_web.py
    *("val_split_ratio", "val_before_train", "val_freq", "dry_run"),  # dry_run: test_train.py
    "chat_template_path",  # test_templates.py
    "live_report",  # test_live_report.py
    *("max_pixels", "min_pixels", "max_prompt_length", "freeze_vision_modules", "max_image_tokens", "answer_space"),
    *("freeze_projector", "freeze_language_model", "shared_prefix", "max_tokens_per_forward"),
    *("reasoning_encoder", "reasoning_device", "reasoning_threshold"),
    *("kl_reward_coef", "kl_estimator", "kl_target"),  # tests/trainers/test_kl_reward.py
    *("value_learning_rate", "value_warmup_steps"),  # tests/trainers/test_critic.py
    *("environment", "environment_options", "data_root", "candidates_per_episode", "fixed_correct_index"),
    "reward_time_limit",  # tests/cli/test_hanging.py
    *("max_turns", "tool_time_limit", "tool_format"),  # this and the line above: test_environment_flags.py
    # tests/trainers/test_rollout_flags.py, tests/vllm/
    *("rollout_engine", "rollout_url", "rollout_options", "rollout_transfer", "rollout_folder", "rollout_wait"),
    *("judge_model", "judge_base_url", "judge_api_key_variable", "judge_timeout", "judge_retries", "judge_concurrency"),
}


def test_no_flag_is_without_a_test():
    assert {field.name for kind in (ScriptArguments, VisionFields) for field in fields(kind)} == TESTED


@pytest.fixture
def jsonl(tmp_path: Path) -> list[str]:
    """Flags of a jsonl file with four rows."""
    rows = [{"image": f"{n % 3}.png", "conversations": turns("<image>q", str(n))} for n in range(4)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    return ["--data_file_paths", path, "--image_folders", str(write_images(tmp_path))]


def rows(tmp_path: Path, *words: str) -> Any:
    """The training rows of a command line."""
    return load_data(*parse([*words, *QUICK, "--model_name_or_path", "m", "--output_dir", str(tmp_path)])[:2])[0]


def trainer(model: Path, tmp_path: Path, *words: str) -> Any:
    """The trainer that a command line makes."""
    given = ["--model_name_or_path", str(model), "--output_dir", str(tmp_path / "out")]
    script, training, model_config = parse([*words, *QUICK, *given])
    return build_trainer(script, training, model_config, *load_data(script, training))


def test_files_folders_and_methods_pair_up(tmp_path: Path):
    sources = []
    for number, name in enumerate("ab"):
        (tmp_path / name).mkdir()
        write_images(tmp_path / name)
        row = {"image": f"{number}.png", "conversations": turns("<image>q", name)}
        sources.append(write_jsonl(tmp_path / f"{name}.jsonl", [row]))
    folders = f"{tmp_path}/a/images:{tmp_path}/b/images"
    flags = ["--data_file_paths", ":".join(sources), "--image_folders", folders, "--reward_method", "exact:text"]
    read = rows(tmp_path, *flags)
    assert [row["images"][0].source for row in read] == [f"{tmp_path}/a/images/0.png", f"{tmp_path}/b/images/1.png"]
    assert [row["record"].method for row in read] == ["exact", "text"]


def test_mixture_takes_shares_of_the_files_by_the_seed(tmp_path: Path):
    def row(name: str, number: int) -> dict:
        return {"id": f"{name}{number}", "conversations": turns("q", "a")}

    sources = [
        write_jsonl(tmp_path / f"{n}.jsonl", [row(n, k) for k in range(size)]) for n, size in (("a", 6), ("b", 30))
    ]
    flags = ["--data_file_paths", ":".join(sources), "--mixture", "2:1"]
    ids = [[row["id"] for row in rows(tmp_path, *flags, "--seed", seed)] for seed in ("1", "1", "2")]
    assert [sum(name.startswith(letter) for name in ids[0]) for letter in "ab"] == [6, 3]
    assert ids[0] == ids[1] != ids[2]
    with pytest.raises(UsageError, match=r"--mixture.*1 for 2 data files"):
        rows(tmp_path, *flags[:2], "--mixture", "1")


def test_streaming_reads_rows_as_they_are_reached(jsonl: list[str], tmp_path: Path):
    with Path(jsonl[1]).open("a") as file:
        file.write("{\n")  # line 5
    with pytest.raises(UsageError, match=r"a\.jsonl:5"):
        rows(tmp_path, *jsonl)
    stream = rows(tmp_path, *jsonl, "--streaming", "true", "--max_steps", "3")
    assert type(stream) is IterableDataset and next(iter(stream))["id"] == 0
    with pytest.raises(DataError, match=r"a\.jsonl:5"):
        list(stream)
    with pytest.raises(UsageError, match="no such file"):
        rows(tmp_path, "--data_file_paths", "none.jsonl", "--streaming", "true", "--max_steps", "3")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--streaming needs --max_steps"),
        (["--max_steps", "3", "--val_split_ratio", "0.5"], "--val_split_ratio cannot split a stream"),
        (["--max_steps", "3", "--mixture", "1"], "--mixture needs the number of rows of each file"),
        (["--max_steps", "3", "--dataloader_num_workers", "2"], "--dataloader_num_workers has no effect with --stream"),
    ],
)
def test_streaming_refuses_what_needs_a_length(words: list[str], said: str, jsonl: list[str], tmp_path: Path):
    with pytest.raises(UsageError, match=said):
        rows(tmp_path, *jsonl, "--streaming", "true", *words)


def test_dry_run_shows_two_rows_of_a_stream(jsonl: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    flags = ["--streaming", "true", "--max_steps", "3", "--model_name_or_path", "m", "--output_dir", str(tmp_path)]
    run([*jsonl, *QUICK, *flags, "--dry_run", "true"])
    out = capsys.readouterr().out
    assert [line[-8:] for line in out.splitlines() if line.startswith("--- prompt")] == ["jsonl:1)", "jsonl:2)"]
    assert "rows: streamed" in out


@pytest.mark.parametrize("extra", [[], ["--use_huggingface_dataset", "true"]])
def test_dataset_name_and_keys(tmp_path: Path, extra: list[str]):
    data = {"ask": ["q0", "q1"], "gold": ["7", "8"], "pic": [{"bytes": png(), "path": None}] * 2}
    Dataset.from_dict(data).to_parquet(tmp_path / "data.parquet")
    keys = ["--prompt_key", "ask", "--answer_key", "gold", "--image_key", "pic"]
    read = rows(tmp_path, "--dataset_name", str(tmp_path / "data.parquet"), *keys, *extra)
    assert [row["answer"] for row in read] == ["7", "8"]
    assert read[1]["record"].question.endswith("q1") and read[1]["images"][0].source == png()
    assert not rows(tmp_path, "--dataset_name", str(tmp_path / "data.parquet"), *keys[:4])[0]["images"]
    for number in (0, 2):
        with pytest.raises(UsageError, match="missing or null"):
            rows(tmp_path, "--dataset_name", str(tmp_path / "data.parquet"), *keys[:number], *keys[number + 2 :])


def test_use_huggingface_dataset_alone_is_refused(jsonl: list[str], tmp_path: Path):
    with pytest.raises(UsageError, match="--use_huggingface_dataset needs --dataset_name"):
        rows(tmp_path, *jsonl, "--use_huggingface_dataset", "true")


def test_image_folders_serve_a_dataset_too(tmp_path: Path):
    Dataset.from_dict({"problem": ["q"], "answer": ["a"], "image": ["2.png"]}).to_parquet(tmp_path / "d.parquet")
    folder = str(write_images(tmp_path))
    read = rows(tmp_path, "--dataset_name", str(tmp_path / "d.parquet"), "--image_folders", folder)
    assert read[0]["images"][0].source == f"{folder}/2.png"


def test_ignored_columns_are_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """VLM-R1's data say `task: clevr_count`, which is none of this package's."""
    path = write_jsonl(tmp_path / "a.jsonl", [{"task": "clevr_count", "scene": 1, "conversations": turns("q", "a")}])
    with pytest.raises(UsageError, match="clevr_count"):
        rows(tmp_path, "--data_file_paths", path)
    (row,) = rows(tmp_path, "--data_file_paths", path, "--ignore_columns", "task", "scene")
    assert row["task"] == "default" and "scene" not in row and not caplog.text
    assert rows(tmp_path, "--data_file_paths", path, "--ignore_columns", "task")[0]["scene"] == 1
    rows(tmp_path, "--data_file_paths", path, "--ignore_columns", "task", "scen")
    assert "--ignore_columns: 'scen': expected a column of the data" in caplog.text


def test_a_file_has_one_split_and_paths_may_hold_colons(tmp_path: Path):
    (tmp_path / "a:b").mkdir()
    pictures = write_images(tmp_path / "a:b")
    one = write_jsonl(tmp_path / "a:b" / "x.jsonl", [{"image": "0.png", "conversations": turns("<image>q", "a")}])
    two = write_jsonl(tmp_path / "y.jsonl", [{"image": "1.png", "conversations": turns("<image>q", "a")}])
    read = rows(tmp_path, "--data_file_paths", f"{one}:{two}", "--image_folders", f"{pictures}:{pictures}")
    assert [Path(row["images"][0].source).name for row in read] == ["0.png", "1.png"]
    for flag in ("--data_file_paths", "--dataset_name"):
        assert len(rows(tmp_path, flag, f"{two}@train", "--image_folders", str(pictures))) == 1
        with pytest.raises(UsageError, match=r"'test'.*no split, or train: a file has no other"):
            rows(tmp_path, flag, f"{two}@test", "--image_folders", str(pictures))


def test_allow_outside(tmp_path: Path):
    (tmp_path / "x.png").write_bytes(png())
    path = write_jsonl(tmp_path / "a.jsonl", [{"image": "../x.png", "conversations": turns("<image>q", "a")}])
    flags = ["--data_file_paths", path, "--image_folders", str(write_images(tmp_path))]
    with pytest.raises(UsageError, match="a path inside"):
        rows(tmp_path, *flags)
    assert len(rows(tmp_path, *flags, "--allow_outside", "true")) == 1


def test_task_type_and_format_prompt_make_the_prompt(jsonl: list[str], tmp_path: Path):
    def text(*words: str) -> str:
        blocks = rows(tmp_path, *jsonl, *words)[0]["prompt"][-1]["content"]
        return "".join(block.get("text", "") for block in blocks)

    (tmp_path / "own.jinja").write_text("Say it loudly: {{ question }}")
    assert "reasoning_steps" in text("--task_type", "vqa") and "reasoning_steps" not in text()
    assert text("--format_prompt", str(tmp_path / "own.jinja")).startswith("Say it loudly")


def test_trainer_rewards_and_weights(jsonl: list[str], tiny_model: Path, tmp_path: Path):
    made = trainer(tiny_model, tmp_path, *jsonl, "--trainer", "rloo", "--reward_funcs", "accuracy:2", "format")
    assert type(made) is VLMRLOOTrainer
    assert (made.reward_func_names, made.reward_weights.tolist()) == (["accuracy", "format"], [2.0, 1.0])
    boxes = write_jsonl(tmp_path / "boxes.jsonl", [{"problem": "Where?", "answer": [1, 2, 5, 6]}] * 4)
    made = trainer(tiny_model, tmp_path, "--data_file_paths", boxes, "--task_type", "rec")
    assert type(made) is VLMGRPOTrainer and made.reward_func_names == ["iou", "format"]


def test_validation_flags(jsonl: list[str], tiny_model: Path, tmp_path: Path):
    flags = ["--val_split_ratio", "0.25", "--val_before_train", "true", "--val_freq", "0.5"]
    made = trainer(tiny_model, tmp_path, *jsonl, *flags)
    (callback,) = [c for c in made.callback_handler.callbacks if type(c).__name__ == "GreedyEvaluation"]
    assert (len(made.train_dataset), len(callback.held_out)) == (3, 1)
    assert (callback.val_before_train, callback.val_freq) == (True, 0.5)
    assert made.evaluate_greedily == callback.run


def test_sharing_prompts(jsonl: list[str], tiny_model: Path, tmp_path: Path):
    made = trainer(tiny_model, tmp_path, *jsonl)
    assert made.shared_prefix.is_on and made.logprobs.budget is None
    made = trainer(tiny_model, tmp_path, *jsonl, "--max_tokens_per_forward", "99")
    assert made.logprobs.budget == 99
    assert not trainer(tiny_model, tmp_path, *jsonl, "--shared_prefix", "off").shared_prefix.is_on


def test_pixel_limits_and_freezing(jsonl: list[str], tiny_model: Path, tmp_path: Path):
    made = trainer(tiny_model, tmp_path, *jsonl, "--min_pixels", "1568", "--max_pixels", "3136")
    size = made.processing_class.image_processor.size
    assert (size["shortest_edge"], size["longest_edge"]) == (1568, 3136)
    assert all(parameter.requires_grad for parameter in made.model.parameters())
    made = trainer(tiny_model, tmp_path, *jsonl, "--freeze_vision_modules", "true")
    frozen = {name.split(".")[1] for name, parameter in made.model.named_parameters() if not parameter.requires_grad}
    assert frozen == {"visual"}


def test_limit_of_image_tokens(jsonl: list[str], tiny_model: Path, tmp_path: Path):
    made = trainer(tiny_model, tmp_path, *jsonl, "--max_image_tokens", "9")
    assert made.processing_class.image_processor.size["longest_edge"] == 9 * 28 * 28


@pytest.mark.parametrize(("flags", "space"), [([], "resized"), (["--answer_space", "unit"], "unit")])
def test_answer_space_reaches_the_rewards(
    flags: list[str], space: str, jsonl: list[str], tiny_model: Path, tmp_path: Path
):
    seen = tmp_path / "seen.txt"
    (tmp_path / "mine.py").write_text(
        "def mine(completions, answer_space, **columns):\n"
        f"    open({str(seen)!r}, 'a').write(' '.join(answer_space) + ' ')\n"
        "    return [float(n) for n in range(len(completions))]\n"
    )
    words = ["--reward_funcs", f"{tmp_path / 'mine.py'}:mine", "--max_completion_length", "2", "--max_steps", "1"]
    trainer(tiny_model, tmp_path, *jsonl, *words, *flags).train()
    assert set(seen.read_text().split()) == {space}


@pytest.mark.parametrize(
    ("flag", "part"), [("freeze_projector", "projector"), ("freeze_language_model", "language model")]
)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_freezing_parts(flag: str, part: str, lora: bool, jsonl: list[str], tiny_model: Path, tmp_path: Path):
    """Also under an adapter on the tower, where the language model's base is frozen anyway."""
    words = (
        ["--use_peft", "true", "--lora_target_modules", r".*\.qkv", "--lora_modules_to_save", "merger"] if lora else []
    )
    plain = trained_parts(trainer(tiny_model, tmp_path, *jsonl, *words).model)
    frozen = trained_parts(trainer(tiny_model, tmp_path, *jsonl, *words, f"--{flag}", "true").model)
    assert plain - frozen == {part} & plain
    assert part in plain or lora


def trained_parts(model: Any) -> set[str]:
    facts = FAMILIES["qwen2_5_vl"]
    return {part_of(name, facts) for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_an_adapter_goes_to_the_language_model_unless_asked(jsonl: list[str], tiny_model: Path, tmp_path: Path):
    made = trainer(tiny_model, tmp_path, *jsonl, "--use_peft", "true")
    assert trained_parts(made.model) == {"language model"}
    layers = {name.split(".")[-4] for name, _ in made.model.named_parameters() if "lora_A" in name}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    asked = trainer(tiny_model, tmp_path, *jsonl, "--use_peft", "true", "--lora_target_modules", r".*\.qkv")
    assert trained_parts(asked.model) == {"vision tower"}
    args = VLMGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, per_device_train_batch_size=8)
    library = VLMGRPOTrainer(
        str(tiny_model), ["format"], args, train_dataset=made.train_dataset, peft_config=LoraConfig()
    )
    assert trained_parts(library.model) == {"language model"}


def test_the_table_of_parameters_counts_each_part(jsonl: list[str], tiny_model: Path, tmp_path: Path):
    made = trainer(tiny_model, tmp_path, *jsonl, "--freeze_vision_modules", "true")
    lines = {line[:16].strip(): line[16:].split() for line in parameter_table(made.model).splitlines()}
    assert lines["vision tower"][0] == "0" and lines["language model"][0] == lines["language model"][1]
    whole = sum(parameter.numel() for parameter in made.model.parameters())
    assert lines["total"][1] == f"{whole:,}"
    with pytest.raises(ValueError, match="nothing is left to train"):
        freeze_parts(made.model, ["projector", "language model", "head"])


def test_reasoning_flags(jsonl: list[str], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []
    monkeypatch.setattr(reasoning, "load_embedder", lambda *names: asked.append(names))
    flags = ["--reasoning_encoder", "mine", "--reasoning_device", "cuda", "--reasoning_threshold", "0.5"]
    trainer(tiny_model, tmp_path, *jsonl, "--task_type", "vqa", *flags)
    assert asked == [("mine", "cuda")]
    with pytest.raises(ValueError, match="unknown encoder 'mine'"):
        trainer(tiny_model, tmp_path, *jsonl, "--task_type", "vqa", *flags[:4])


def test_judge_flags_reach_the_server(jsonl: list[str], tiny_model: Path, tmp_path: Path, monkeypatch, caplog):
    """Every answer is judged through the flags' server: its model, key, time limit, retries and concurrency."""
    monkeypatch.setattr(judge_client, "FIRST_PAUSE", 0.01)
    monkeypatch.setenv("MY_KEY", "secret")
    with JudgeServer(lambda case: Reply("0.5", seconds=9.0 * (case["answer_to_grade"] == "slow"))) as server:
        flags = ["--judge_model", "mine", "--judge_base_url", server.url, "--judge_api_key_variable", "MY_KEY"]
        flags += ["--judge_timeout", "0.4", "--judge_retries", "1", "--judge_concurrency", "2"]
        words = [*jsonl, "--reward_funcs", "judge", *flags, *QUICK, "--model_name_or_path", "m", "--output_dir", "o"]
        check_rewards(*parse(words)[:2])
        (reward,) = trainer(tiny_model, tmp_path, *jsonl, "--reward_funcs", "judge", *flags).reward_funcs
        texts = [f"<answer>{text}</answer>" for text in ("a", "b", "c", "d", "slow")]
        started = time.monotonic()
        assert reward(texts, answer=["x"] * 5) == [0.5] * 4 + [0.0]
        assert 0.8 <= time.monotonic() - started < 4.0  # two tries of 0.4 s, not the server's 9
    assert len(server.requests) == 6 and server.most == 2
    assert {request["model"] for request in server.requests} == {"mine"}
    assert {headers["authorization"] for headers in server.headers} == {"Bearer secret"}


def test_judge_flags_without_effect_are_refused(jsonl: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("JUDGE_MODEL", raising=False)

    def check(*words: str) -> None:
        script, training, _ = parse([*words, *QUICK, "--model_name_or_path", "m", "--output_dir", str(tmp_path)])
        check_rewards(script, training)
        check_row_flags(script, training, load_data(script, training)[0])

    flags = ["--judge_model", "m", "--judge_base_url", "http://127.0.0.1:9/v1"]
    with pytest.raises(UsageError, match=r"--judge_model, --judge_base_url would have no effect: .* accuracy, .*judge"):
        check(*jsonl, *flags, "--reward_funcs", "format")
    with pytest.raises(UsageError, match="--judge_model, --judge_base_url would have no effect without the reward"):
        check(*jsonl, *flags)
    judged = {"conversations": turns("q", "a"), "accu_reward_method": "judge"}
    check("--data_file_paths", write_jsonl(tmp_path / "j.jsonl", [judged]), *flags)
    for words in (["--reward_funcs", "judge"], ["--reward_method", "llm"]):
        with pytest.raises(UsageError, match=r"the judge's server http://127\.0\.0\.1:9/v1 cannot be reached"):
            check(*jsonl, *flags, *words)
        with pytest.raises(UsageError, match="a judge needs the name of a model: --judge_model"):
            check(*jsonl, *words)
        with pytest.raises(UsageError, match="--judge_api_key_variable NONE: no such variable is set"):
            check(*jsonl, *flags, *words, "--judge_api_key_variable", "NONE")


def test_rewards_are_checked_before_data_and_model(jsonl: list[str], tmp_path: Path, monkeypatch):
    def check(*words: str) -> None:
        check_rewards(*parse([*jsonl, *words, *QUICK, "--model_name_or_path", "m", "--output_dir", str(tmp_path)])[:2])

    check()
    with pytest.raises(UsageError, match="unknown reward 'acuracy'; did you mean 'accuracy'"):
        check("--reward_funcs", "acuracy")
    with pytest.raises(UsageError, match=r"no such file 'mine\.py'"):
        check("--reward_funcs", "mine.py:f")
    with pytest.raises(UsageError, match="unknown task 'rek'; did you mean 'rec'"):
        check("--task_type", "rek")
    with pytest.raises(UsageError, match="--reasoning_device without a reward such as 'reasoning'"):
        check("--reasoning_device", "cuda")
    monkeypatch.setenv("DEBUG_MODE", "true")
    with pytest.raises(UsageError, match="DEBUG_MODE=true needs LOG_PATH"):
        check()
    monkeypatch.delenv("DEBUG_MODE")
    with pytest.raises(UsageError, match="unknown encoder 'mine'"):
        check("--task_type", "vqa", "--reasoning_encoder", "mine")


def test_video_key_names_the_column(tmp_path: Path):
    (tmp_path / "a.mp4").write_bytes(b"x")
    path = write_jsonl(tmp_path / "a.jsonl", [{"clip": "a.mp4", "problem": "q", "answer": "a"}])
    flags = ["--data_file_paths", path, "--image_folders", str(tmp_path)]
    assert not rows(tmp_path, *flags)[0]["videos"]  # an extra column like any other
    assert rows(tmp_path, *flags, "--video_key", "clip")[0]["videos"][0].source == str(tmp_path / "a.mp4")
    (tmp_path / "a.mp4").unlink()
    with pytest.raises(UsageError, match=r"a\.jsonl:1 .*a\.mp4: no such file"):
        rows(tmp_path, *flags, "--video_key", "clip")


def test_max_prompt_length_drops_long_rows_and_counts_image_tokens(tiny_model: Path, tmp_path: Path, caplog):
    images = write_images(tmp_path)
    (images / "large.png").write_bytes(png(size=(224, 224)))  # 8 x 8 tokens; the others have 3 x 2
    names = ["0.png", "large.png", None]
    data = [{"conversations": turns("q", "a"), **({"image": name} if name else {})} for name in names]
    flags = ["--data_file_paths", write_jsonl(tmp_path / "a.jsonl", data), "--image_folders", str(images)]
    made = trainer(tiny_model, tmp_path, *flags)
    lengths = [len(made.encoder.encode([row])[0].input_ids) for row in made.train_dataset]
    assert lengths[1] - lengths[0] == 64 - 6
    made = trainer(tiny_model, tmp_path, *flags, "--max_prompt_length", str(lengths[0]))
    assert [row["id"] for row in made.train_dataset] == [0, 2]
    assert f"--max_prompt_length {lengths[0]} drops 1 of 3 rows" in caplog.text
    with pytest.raises(ValueError, match=f"every prompt is longer, the longest has {lengths[1]} tokens"):
        trainer(tiny_model, tmp_path, *flags, "--max_prompt_length", "5")


def test_records_that_ask_for_a_judge_need_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("JUDGE_MODEL", raising=False)
    data = [{"conversations": turns("q", "a")}, {"conversations": turns("q", "b"), "accu_reward_method": "llm"}]
    flags = ["--data_file_paths", write_jsonl(tmp_path / "a.jsonl", data), *QUICK, "--model_name_or_path", "m"]
    flags += ["--output_dir", str(tmp_path)]
    with pytest.raises(UsageError, match=r"a\.jsonl:2: the record uses a judge, but none is configured: set --judge_m"):
        check_rewards(*parse(flags)[:2])
    check_rewards(*parse([*flags, "--reward_funcs", "format"])[:2])  # nothing is judged
    monkeypatch.setenv("JUDGE_MODEL", "gemma")
    check_rewards(*parse(flags)[:2])
