"""Passwords and keys on a command line: used, and written nowhere."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from tests.cli.test_train import flags
from tests.evaluation.server_stub import serving
from vlm_grpo.cli.evaluate import main as evaluate
from vlm_grpo.cli.train import main
from vlm_grpo.rewards import JudgeSettings, judge_client, make_reward
from vlm_grpo.rewards.judge_client import Judge
from vlm_grpo.trainers.config import VLMGRPOConfig, VLMRLOOConfig

USER = "http://me:pa55word@"


def with_user(url: str) -> str:
    return url.replace("http://", USER)


def test_a_dry_run_and_errors_show_no_password(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    common = {"judge_model": "m", "dry_run": "true"}
    with serving(lambda body: "1") as (url, _):
        words = flags(tiny_model, tmp_path, judge_base_url=with_user(url), **common)
        assert main([*words, "--reward_funcs", "judge"]) == 0
    assert main([*words, "--reward_funcs", "judge"]) == 2  # nobody listens any more
    assert main([*words, "--reward_funcs", "judge", "--judge_timeout", "nan", "--loud", with_user(url)]) == 2
    assert main([*words, "--reward_funcs", "judge", "--hub_token=hf_kept_to_oneself"]) == 2
    said = "".join(capsys.readouterr())
    assert "hf_kept" not in said
    assert "judge_base_url: http://[hidden]@127.0.0.1" in said and "cannot be reached" in said
    assert "pa55word" not in said


def test_what_goes_to_trackers_has_no_secret(tmp_path: Path):
    given = {"hub_token": "hf_kept_to_oneself", "judge_base_url": with_user("http://host/v1"), "judge_model": "m"}
    config = VLMGRPOConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, **given)
    for text in (str(config.to_dict()), str(config.to_sanitized_dict()), config.to_json_string()):
        assert "pa55word" not in text and "hf_kept" not in text
    assert config.judge_settings().base_url == given["judge_base_url"]


def test_a_judge_gets_the_password_and_no_log_has_it(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(judge_client, "FIRST_PAUSE", 0.01)
    caplog.set_level(logging.DEBUG)
    for answer in ('{"score": 1}', "no score"):
        with serving(lambda body, answer=answer: answer) as (url, seen):
            settings = JudgeSettings("m", with_user(url), retries=0)
            reward = make_reward("judge", judge=settings)
            reward(["<answer>a b</answer>"], answer=["b a"])
            assert seen[0]["key"].startswith("Basic ")
            assert "pa55word" not in repr(settings) and "pa55word" not in repr(Judge)
    assert "returned no score" in caplog.text and "HTTP Request" in caplog.text
    assert "pa55word" not in caplog.text


def test_an_evaluation_leaves_no_password(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = [*flags(Path("m"), tmp_path)[:4], "--model_name_or_path", "m", "--output_dir", str(tmp_path / "e")]
    with serving(lambda body: "<answer>1</answer>") as (url, _):
        words += ["--backend", "openai", "--base_url", with_user(url), "--retries", "0"]
        assert evaluate(words) == 0
    assert "http://[hidden]@127.0.0.1" in (tmp_path / "e" / "results.json").read_text()
    assert evaluate([*words, "--overwrite"]) == 1
    said = "".join(capsys.readouterr()) + "".join(path.read_text() for path in (tmp_path / "e").glob("*.*"))
    assert "pa55word" not in said


@pytest.mark.parametrize("kind", [VLMGRPOConfig, VLMRLOOConfig])
def test_the_pickle_of_arguments_in_a_checkpoint_holds_no_secret(kind: type, tmp_path: Path):
    """transformers saves `training_args.bin` beside every model that it saves or pushes."""
    options = {"token": "kept_to_oneself", "revision": "main"}
    args = kind(str(tmp_path), use_cpu=True, bf16=False, hub_token="kept_to_oneself", model_init_kwargs=options)
    torch.save(args, tmp_path / "training_args.bin")
    assert b"kept_to_oneself" not in (tmp_path / "training_args.bin").read_bytes()
    again = torch.load(tmp_path / "training_args.bin", weights_only=False)
    assert (again.hub_token, again.model_init_kwargs) == ("[hidden]", {"token": "[hidden]", "revision": "main"})
    assert (again.optim, again.learning_rate, again.beta) == (args.optim, args.learning_rate, args.beta)
    assert args.hub_token == options["token"] == "kept_to_oneself"
