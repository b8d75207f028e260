"""What is said of a flag that `vlm-grpo evaluate`, `preview` and the other commands do not know."""

from __future__ import annotations

import importlib

import pytest

from vlm_grpo.cli.main import MODULES

NEEDED = {
    "evaluate": ["--model_name_or_path=m", "--output_dir=o", "--data_file_paths=a.jsonl"],
    "preview": ["--data_file_paths=a.jsonl"],
    "check": ["--data_file_paths=a.jsonl"],
    "compare": ["one", "other"],
    "index": ["a.jsonl", "--output=o"],
    "quickstart": [],
}


@pytest.mark.parametrize(
    ("command", "given", "said"),
    [
        ("evaluate", "--data.val_files a.parquet", "unknown flag --data.val_files; did you mean --data_file_paths?"),
        ("evaluate", "--task-typ rec", "unknown flag --task_typ; did you mean --task_type"),
        ("evaluate", "--model_nam=m", "unknown flag --model_nam; did you mean --model_name_or_path"),
        ("evaluate", "--train_files a.jsonl", "unknown flag --train_files; RLLaVA's data.train_files is "),
        ("preview", "--counts 3 --imagefolder x", "unknown flag --counts; did you mean --count"),
        ("preview", "--counts 3 --imagefolder x", "unknown flag --imagefolder; did you mean --image_folders"),
        ("check", "stray", "unexpected argument 'stray'"),
        ("check", "--num_generations 8", "unknown flag --num_generations"),
        ("compare", "--all_row", "unknown flag --all_row; did you mean --all_rows?"),
        ("index", "--id_kex=id", "unknown flag --id_kex; did you mean --id_key"),
        ("quickstart", "--trainers grpo", "unknown flag --trainers; did you mean --trainer"),
    ],
)
def test_an_unknown_flag_is_named_with_what_is_meant(
    command: str, given: str, said: str, capsys: pytest.CaptureFixture[str]
):
    main = importlib.import_module(MODULES.get(command, f"vlm_grpo.cli.{command}")).main
    with pytest.raises(SystemExit) as ended:
        main([*NEEDED[command], *given.split()])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
