"""The page of a training: bounded, continued after a resume, and showing what the loss used."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from tests.support.training import image_rows, length_reward, picture, settings, user
from vlm_grpo.envs.browser.chromium import find_chromium
from vlm_grpo.evaluation.report import dashboard, gallery, learning_curves
from vlm_grpo.evaluation.report.dashboard import LiveReport, ReportFolder
from vlm_grpo.evaluation.report.gallery import (
    Gallery,
    encode_image,
    groups_of,
    prompt_text,
    representative_completions,
    truncate_text,
)
from vlm_grpo.evaluation.report.learning_curves import CurvePoint, Curves, merge_points, point_of, restore_curves
from vlm_grpo.rollouts.batch import RolloutBatch
from vlm_grpo.rollouts.logged_rollout import LoggedRollout, SampleLocation, local_rollout, plain_messages
from vlm_grpo.trainers.config import VLMGRPOConfig, VLMRLOOConfig
from vlm_grpo.trainers.grpo import VLMGRPOTrainer
from vlm_grpo.trainers.rloo import VLMRLOOTrainer

CHROMIUM = find_chromium()
BOTH = [(VLMGRPOTrainer, VLMGRPOConfig), (VLMRLOOTrainer, VLMRLOOConfig)]


def data_of(folder: Path) -> dict[str, Any]:
    """What the page of a report holds."""
    page = (folder / "index.html").read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def curve(data: dict[str, Any], name: str) -> list[tuple[int, float]]:
    place = data["columns"].index(name) + 1
    return [(row[0], row[place]) for row in data["points"] if row[place : place + 1] not in ([], [None])]


def size_of(content: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(content)).size


def build(kind: tuple, model: Path, folder: Path, **options: Any) -> Any:
    args = kind[1](**settings(folder, per_device_train_batch_size=8, **options))
    data = {"train_dataset": image_rows(), "eval_dataset": image_rows(2)}
    trainer = kind[0](str(model), [length_reward, long_enough], args, **data)
    trainer.add_callback(LiveReport(trainer))
    return trainer


def long_enough(completions: list, **columns: Any) -> list[float | None]:
    return [None if len(done[0]["content"]) % 2 else 1.0 for done in completions]


def rollout(step: int = 1, count: int = 2, text: str = "<answer>3</answer>", **changes: Any) -> LoggedRollout:
    fields = {
        "step": step,
        "rows": [{"prompt": user("How many?"), "answer": 3}] * count,
        "images": [[picture(0)]] * count,
        "completions": [[{"role": "assistant", "content": text}]] * count,
        "rewards": {"accuracy": [float(n % 2) for n in range(count)], "iou": [math.nan] * count},
        "advantages": [0.5, -0.5] * (count // 2),
        "lengths": [5] * count,
        "is_truncated": [False] * count,
    }
    return LoggedRollout(**{**fields, **changes})


# --- curves


def test_a_log_line_becomes_the_finite_numbers_that_make_curves():
    logs = {"reward": 1, "kl": math.nan, "note": "x", "epoch": 0.5, "eval_runtime": 3.0, "rewards/iou/mean": None}
    assert point_of(7, logs) == CurvePoint(7, 1, {"reward": 1.0})


def test_merged_points_are_means_over_their_lines():
    """Three lines of mean 1 and one of 5 are (3 * 1 + 5) / 4 = 2."""
    one = merge_points(CurvePoint(3, 3, {"reward": 1.0, "kl": 4.0}), CurvePoint(4, 1, {"reward": 5.0}))
    assert one == CurvePoint(4, 4, {"reward": 2.0, "kl": 4.0})


def test_curves_are_thinned_evenly(monkeypatch: pytest.MonkeyPatch):
    """Four points become two of two lines each; a fifth line waits for a sixth."""
    monkeypatch.setattr(learning_curves, "POINTS", 4)
    curves = Curves()
    for step in range(1, 6):
        curves.add(CurvePoint(step, 1, {"reward": float(step)}))
    assert (curves.stride, curves.points) == (2, [CurvePoint(2, 2, {"reward": 1.5}), CurvePoint(4, 2, {"reward": 3.5})])
    assert json.loads(f"{{{curves.encoded()}}}")["points"] == [[2, 1.5], [4, 3.5], [5, 5]]
    curves.add(CurvePoint(6, 1, {"reward": 6.0}))
    assert curves.points[-1] == CurvePoint(6, 2, {"reward": 5.5}) and curves.open is None


def test_a_long_training_has_few_points_and_no_step_is_lost():
    curves = Curves()
    for step in range(1, 20_001):
        curves.add(CurvePoint(step, 1, {"reward": float(step)}))
        if step % 10 == 0:
            curves.add(CurvePoint(step, 1, {"eval_accuracy": 1.0}))
    assert 500 <= len(curves.points) <= 1000 and len(curves.marks) <= learning_curves.MARKS
    points = [*curves.points, *([curves.open] if curves.open else [])]
    assert sum(point.count for point in points) == 20_000 and curves.last_step == 20_000
    assert sum(point.count * point.values["reward"] for point in points) == pytest.approx(20_000 * 20_001 / 2)
    again = restore_curves(curves.stride, list(curves.lines()))
    assert [point.step for point in again.points] == [point.step for point in curves.points]
    assert json.loads(f"{{{again.encoded()}}}") == json.loads(f"{{{curves.encoded()}}}")


def test_a_metric_that_comes_later_gets_a_column_of_its_own():
    curves = Curves()
    curves.add(CurvePoint(1, 1, {"reward": 1.0}))
    curves.add(CurvePoint(2, 1, {"kl": 0.25, "reward": 2.0}))
    found = json.loads(f"{{{curves.encoded()}}}")
    assert (found["columns"], found["points"]) == (["reward", "kl"], [[1, 1], [2, 2, 0.25]])


# --- completions


def test_the_gallery_keeps_the_newest_and_evenly_spread_older_groups():
    shown = Gallery()
    for step in range(1000):
        shown.add({"step": step, "images": []})
    assert [group["number"] for group in shown.newest] == list(range(976, 1000))
    older = [group["number"] for group in shown.sample]
    assert older == list(range(0, 976, shown.stride)) and 12 <= len(older) <= gallery.SAMPLE
    again = gallery.restore_gallery(shown.stride, shown.groups)
    assert again.groups == shown.groups and again.count == 1000
    shown.forget_after(100)
    assert shown.count == older[[n > 100 for n in older].index(True) - 1] + 1


def test_a_group_says_what_the_rollout_was():
    (group,), images = groups_of(rollout(is_truncated=[False, True]), 2, {"accuracy": 2.0, "iou": 1.0})
    assert (group["prompt"], group["truth"], group["of"], group["step"]) == ("How many?", "3", 2, 1)
    wrong, right = group["completions"]
    assert wrong["rewards"] == {"accuracy": 0.0, "iou": None} and (wrong["reward"], right["reward"]) == (0.0, 2.0)
    assert (wrong["advantage"], right["advantage"], right["is_truncated"]) == (0.5, -0.5, True)
    assert list(images) == group["images"] and size_of(*images.values()) == (84, 56)


def test_prompts_leave_out_the_system_and_mark_images():
    blocks = [{"type": "image"}, {"type": "text", "text": "What?"}]
    assert prompt_text([{"role": "system", "content": "Be kind."}, *user(blocks)]) == "[image] What?"
    assert (
        prompt_text([*user("a"), {"role": "assistant", "content": "b"}, *user("c")])
        == "[user] a\n[assistant] b\n[user] c"
    )
    assert prompt_text("plain") == "plain"


def test_a_large_group_shows_best_and_worst():
    completions = [{"reward": None if n == 3 else float(n)} for n in range(16)]
    shown = [entry["reward"] for entry in representative_completions(completions)]
    assert shown == [15.0, 13.0, 11.0, 9.0, 6.0, 4.0, 1.0, None]  # the ranks 0, 15/7, 30/7, ... to whole numbers


def test_long_texts_keep_beginning_and_end():
    assert truncate_text("a" * 90 + "b" * 90, 100) == "a" * 75 + " […80 characters…] " + "b" * 25
    assert truncate_text("x\ud800\x00\u202ey\n\tz", 100) == "x\ufffd\ufffd\ufffdy\n\tz"


def test_images_are_small_even_where_they_do_not_compress():
    content = encode_image(picture(0, 1500, 1000))
    assert len(content) <= gallery.IMAGE_BYTES
    assert size_of(content) == (256, 171)


def test_an_image_that_cannot_be_read_is_left_out():
    (group,), images = groups_of(rollout(images=[["no_such.png", picture(1)]] * 2), 2, {})
    assert (len(images), len(group["images"]), group["more_images"]) == (1, 1, 1)


def test_a_process_finds_its_own_part_of_what_was_gathered():
    """Of two processes with two rows each, in logs that also hold an older rollout; the second row of each is cut."""
    logs = {"completion": list("oldABCD"), "rewards": {"accuracy": [9.0, 1.0, 2.0, 3.0, 4.0]}}
    output = RolloutBatch(
        prompt_ids=torch.ones(2, 1),
        prompt_mask=torch.ones(2, 1),
        completion_ids=torch.tensor([[5, 2, 0], [5, 5, 5]]),
        completion_mask=torch.tensor([[1, 1, 0], [0, 0, 0]]),  # a truncated completion is left out of the loss
        advantages=torch.tensor([0.25, -0.25]),
    )
    found = local_rollout([{}, {}], [[], []], output, logs, [2, 0], SampleLocation(step=8, rank=1, world_size=2))
    assert (found.completions, found.rewards) == (["C", "D"], {"accuracy": [3.0, 4.0]})
    assert (found.lengths, found.is_truncated, found.advantages, found.step) == (
        [2, 3],
        [False, True],
        [0.25, -0.25],
        8,
    )
    assert found.first(1).completions == ["C"] and found.first(1).rewards == {"accuracy": [3.0]}


def test_images_stand_apart_from_the_words_beside_them():
    blocks = [{"type": "text", "text": "Is"}, {"type": "image"}, {"type": "image"}, {"type": "text", "text": " the "}]
    assert prompt_text(user([*blocks, {"type": "image"}, {"type": "text", "text": "red star?"}])) == (
        "Is [image][image] the [image] red star?"
    )
    assert prompt_text(user([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])) == "ab"


def test_the_true_answer_is_text_or_json():
    for answer, shown in (({"box": [1, 2], "é": None}, '{"box": [1, 2], "é": null}'), (True, "true"), ("x", "x")):
        (group,), _ = groups_of(rollout(rows=[{"prompt": "Q", "answer": answer}] * 2), 2, {})
        assert group["truth"] == shown


def test_conversations_become_text():
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "zoom"}]}
    plain = plain_messages([*user([{"type": "image"}, {"type": "text", "text": "a"}]), call])
    assert plain == [*user("[image] a"), {"role": "assistant", "content": '[{"name": "zoom"}]'}]


# --- the folder


def test_a_report_stays_small_and_deletes_what_it_shows_no_more(tmp_path: Path):
    """The worst of texts: every character takes four bytes, every group has new images."""
    folder = ReportFolder(tmp_path)
    folder.restore(0)
    for step in range(1, 41):
        folder.add_logs(step, {f"metric_{number}": step / 7 for number in range(60)})
        images = [[picture(6 * step + 3 * (n // 16) + m, 300, 300) for m in range(3)] for n in range(32)]
        groups, files = groups_of(rollout(step, 32, text="😀" * 9000, images=images), 16, {})
        for group in groups:
            folder.add_group(group, files)
        folder.write_page({"step": step})
    sizes = [path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()]
    assert sum(sizes) < 20_000_000
    shown = {name for group in data_of(tmp_path)["groups"] for name in group["images"]}
    assert {path.name for path in (tmp_path / "images").iterdir()} == shown
    assert len(shown) == 3 * (gallery.NEWEST + len(folder.gallery.sample))
    assert not list(tmp_path.rglob("*.partial"))


def test_a_half_written_state_is_read_up_to_its_end(tmp_path: Path):
    folder = ReportFolder(tmp_path)
    folder.restore(0)
    for step in (1, 2, 3):
        folder.add_logs(step, {"reward": step / 10})
        folder.add_group({"step": step, "images": [], "completions": [], "prompt": "a\u2028b"}, {})
    with folder.state.open("a") as file:
        file.write('{"point": {"step": 4, "cou')
    again = ReportFolder(tmp_path)
    again.restore(2)
    assert [point.step for point in again.curves.points] == [1, 2]
    assert [group["prompt"] for group in again.gallery.groups] == ["a\u2028b"] * 2
    again.add_logs(3, {"reward": 0.9})
    last = ReportFolder(tmp_path)
    last.restore(9)
    assert [point.values["reward"] for point in last.curves.points] == [0.1, 0.2, 0.9]


def test_the_state_is_shortened_as_it_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dashboard, "TAIL_BYTES", 2000)
    monkeypatch.setattr(learning_curves, "POINTS", 10)
    folder = ReportFolder(tmp_path)
    folder.restore(0)
    for step in range(1, 1001):
        folder.add_logs(step, {"reward": 1.0})
        assert folder.state.stat().st_size < 4000
    again = ReportFolder(tmp_path)
    again.restore(1000)
    points = [*again.curves.points, *([again.curves.open] if again.curves.open else [])]
    assert sum(point.count for point in points) == 1000 and again.curves.stride == folder.curves.stride


def test_text_cannot_leave_its_place_in_the_page(tmp_path: Path):
    evil = "</script><script>alert(1)</script><!--data-->"
    folder = ReportFolder(tmp_path)
    folder.restore(0)
    groups, files = groups_of(rollout(text=evil), 2, {})
    folder.add_group(groups[0], files)
    folder.add_logs(1, {evil: 1.0})
    folder.write_page({"title": evil})
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert page.count("<script") == 2 and "alert(1)</script>" not in page
    assert data_of(tmp_path)["groups"][0]["completions"][0]["text"] == evil


def test_the_page_asks_nothing_of_a_network(tmp_path: Path):
    folder = ReportFolder(tmp_path)
    folder.restore(0)
    folder.write_page({})
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(|fetch\(|<link|<script src", page)


# --- trainings


@pytest.mark.parametrize("kind", BOTH, ids=["grpo", "rloo"])
def test_a_training_is_shown_with_the_advantages_that_were_used(kind: tuple, tiny_model: Path, tmp_path: Path):
    trainer = build(kind, tiny_model, tmp_path, max_steps=3)
    used = []
    loss = trainer.compute_loss
    trainer.compute_loss = lambda model, inputs, *rest, **options: (
        used.append(inputs["advantages"].tolist()),
        loss(model, inputs, *rest, **options),
    )[1]
    trainer.train()
    data = data_of(tmp_path / "report")
    history = [entry for entry in trainer.state.log_history if "reward" in entry]
    for name in ("reward", "rewards/length_reward/mean", "completions/mean_length", "entropy", "grad_norm"):
        assert curve(data, name) == [(entry["step"], pytest.approx(entry[name], rel=1e-4)) for entry in history]
    assert [group["step"] for group in data["groups"]] == [1, 1, 2, 2, 3, 3]
    shown = [[c["advantage"] for c in group["completions"]] for group in data["groups"]]
    for step, advantages in enumerate(used):
        both = shown[2 * step] + shown[2 * step + 1]
        assert sorted(both) == pytest.approx(sorted(advantages), abs=1e-4) and any(both)
    last = data["groups"][-1]
    texts = [entry[0]["content"] for entry in list(trainer._logs["completion"])[4:]]
    assert [c["text"] for c in last["completions"]] == [truncate_text(text, 2000) for text in texts]
    assert [c["rewards"]["long_enough"] for c in last["completions"]] == [None if len(t) % 2 else 1.0 for t in texts]
    with Image.open(tmp_path / "report" / "images" / last["images"][0]) as image:
        assert max(image.size) <= 256
    assert data["facts"]["is_over"] and (data["facts"]["step"], data["facts"]["steps"]) == (3, 3)


def test_a_resumed_training_continues_its_page(tiny_model: Path, tmp_path: Path):
    """Three steps, killed; continued from the checkpoint of the second: the third is there once, the new one."""
    options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
    first = build(BOTH[0], tiny_model, tmp_path, **{**options, "max_steps": 3})
    first.train()
    before = data_of(tmp_path / "report")
    again = build(BOTH[0], tiny_model, tmp_path, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    data = data_of(tmp_path / "report")
    assert [step for step, _ in curve(data, "reward")] == [1, 2, 3, 4]
    assert curve(data, "reward")[:2] == curve(before, "reward")[:2]
    assert data["groups"][:4] == before["groups"][:4]
    assert [group["step"] for group in data["groups"]] == [1, 1, 2, 2, 3, 3, 4, 4]
    shutil.rmtree(tmp_path / "report")  # curves come back from the checkpoint, completions do not
    lost = build(BOTH[0], tiny_model, tmp_path, **options)
    lost.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    data = data_of(tmp_path / "report")
    assert [step for step, _ in curve(data, "reward")] == [1, 2, 3, 4]
    assert [group["step"] for group in data["groups"]] == [3, 3, 4, 4]


def test_a_new_start_replaces_the_page(tiny_model: Path, tmp_path: Path):
    build(BOTH[0], tiny_model, tmp_path, max_steps=2).train()
    build(BOTH[0], tiny_model, tmp_path, max_steps=1).train()
    data = data_of(tmp_path / "report")
    assert len(data["points"]) == 1 and len(data["groups"]) == 2


def test_evaluations_are_marks_and_their_completions_are_not_shown(tiny_model: Path, tmp_path: Path):
    """One rollout serves both steps: the second has no completions to show, nor has the evaluation after it."""
    options = {"eval_strategy": "steps", "eval_steps": 2, "num_iterations": 2}
    trainer = build(BOTH[0], tiny_model, tmp_path, **options)
    trainer.train()
    data = data_of(tmp_path / "report")
    assert [group["step"] for group in data["groups"]] == [1, 1]
    logged = next(entry for entry in trainer.state.log_history if "eval_reward" in entry)
    (mark,) = data["marks"]
    assert mark["step"] == 2 and mark["values"]["eval_reward"] == pytest.approx(logged["eval_reward"], rel=1e-4)
    assert "eval_runtime" not in mark["values"]


def test_the_weighted_sum_uses_the_weights(tiny_model: Path, tmp_path: Path):
    build(BOTH[0], tiny_model, tmp_path, max_steps=1, reward_weights=[2.0, 0.5]).train()
    for shown in (c for group in data_of(tmp_path / "report")["groups"] for c in group["completions"]):
        rewards = shown["rewards"]
        assert shown["reward"] == pytest.approx(
            2 * rewards["length_reward"] + 0.5 * (rewards["long_enough"] or 0), abs=1e-3
        )


def test_what_cannot_be_written_is_warned_of_once(tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "report").write_text("a file where the folder should be")
    trainer = build(BOTH[0], tiny_model, tmp_path, max_steps=2)
    trainer.train()
    assert trainer.state.global_step == 2
    assert ["could not be written" in record.message for record in caplog.records].count(True) == 1


def test_only_the_main_process_watches():
    trainer = SimpleNamespace(accelerator=SimpleNamespace(is_main_process=False), args=SimpleNamespace(output_dir="x"))
    report = LiveReport(trainer)
    report.on_train_begin(None, None, None)
    report.on_log(None, None, None, {"reward": 1.0})
    report.on_train_end(None, None, None)
    assert not hasattr(trainer, "watch_rollout") and report.report is None


@pytest.mark.skipif(CHROMIUM is None, reason="no browser")
@pytest.mark.parametrize(
    ("address", "shown"),
    [("", 4), ("#query=purple", 1), ("#reward=accuracy&least=1", 2)],
)
def test_a_browser_draws_and_filters(address: str, shown: int, tmp_path: Path):
    folder = ReportFolder(tmp_path)
    folder.restore(0)
    for step in (1, 2):
        folder.add_logs(step, {"reward": 0.5, "rewards/accuracy/mean": 0.1 * step})
        done = [[{"role": "assistant", "content": "purple" if step == n == 1 else "red"}] for n in range(2)]
        groups, files = groups_of(rollout(step, completions=done), 2, {"accuracy": 1.0})
        folder.add_group(groups[0], files)
    folder.add_logs(2, {"eval_accuracy": 0.5})
    folder.write_page({"title": "digits", "step": 2, "steps": 2, "epoch": 1.0, "written": 0, "seconds_a_step": 1.0})
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/browser", "--dump-dom"]
    page = f"file://{tmp_path}/index.html{address}"
    done = subprocess.run([CHROMIUM, *words, page], capture_output=True, text=True, timeout=60)
    body = done.stdout.split("<body>")[1].split('id="data"')[0]
    assert body.count('class="completion"') == shown
    assert body.count('class="chart"') == 2 and body.count('class="mark"') == 1 and "digits" in body


@pytest.mark.skipif(CHROMIUM is None, reason="no browser")
def test_a_curve_of_zeros_is_a_line_at_zero_and_a_warning_is_shown(tmp_path: Path):
    folder = ReportFolder(tmp_path)
    folder.restore(0)
    for step in (1, 2):
        folder.add_logs(step, {"reward": 0.0, "loss": 0.0, "grad_norm": 0.0})
    facts = {"title": "t", "step": 2, "steps": 2, "epoch": 1.0, "written": 0, "seconds_a_step": 1.0}
    folder.write_page({**facts, "warning": "no signal for 20 steps"})
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/browser", "--dump-dom"]
    page = f"file://{tmp_path}/index.html"
    done = subprocess.run([CHROMIUM, *words, page], capture_output=True, text=True, timeout=60)
    body = done.stdout.split("<body>")[1].split('id="data"')[0]
    assert body.count('class="chart"') == 3 and "NaN" not in body
    lines = re.findall(r'class="curve" d="M[\d.]+ ([\d.]+)L[\d.]+ ([\d.]+)"', body)
    assert lines == [("148.0", "148.0")] * 3, "the bottom of a chart"
    assert '<p id="warning" role="status">no signal for 20 steps</p>' in body
