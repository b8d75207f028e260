from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.agents import Say, Speaker
from tests.support.environments import Gallery, call
from vlm_grpo.cli.compare import main
from vlm_grpo.data import load_dataset
from vlm_grpo.evaluation import Evaluation, predict_with, summary
from vlm_grpo.evaluation.backends.agent import AgentBackend, environment_episodes
from vlm_grpo.evaluation.backends.hf import HFBackend
from vlm_grpo.evaluation.comparison import compare_runs, read_run
from vlm_grpo.evaluation.predictions import EpisodeError, Scoring
from vlm_grpo.evaluation.results import write_results
from vlm_grpo.evaluation.sampling_params import SamplingParams
from vlm_grpo.rollouts.env_pool import EnvPool

ANSWER = "<think>a</think><answer>red square</answer>"


class Solved(Gallery):
    """Says whether anything was shown."""

    def metrics(self) -> dict[str, float]:
        """Solved as soon as a picture was shown."""
        return {"success": float(self.shown > 0), **super().metrics()}


@pytest.fixture
def rows(tmp_path: Path) -> Any:
    """Questions A to D with an image each; the true answer is "red square"."""
    lines = []
    for number, letter in enumerate("ABCD"):
        Image.new("RGB", (56 + 28 * number, 56), "gray").save(tmp_path / f"{letter}.png")
        turns = [{"from": "human", "value": f"<image>Question {letter}"}, {"from": "gpt", "value": "red square"}]
        lines.append(json.dumps({"id": letter, "image": f"{letter}.png", "conversations": turns}))
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return load_dataset(str(tmp_path / "rows.jsonl"), image_folders=str(tmp_path))


def letter_of(prompt: str) -> str:
    return prompt.split("Question ")[1][0]


def scripts(prompt: str, turn: int) -> str:
    """A looks twice and is right, B calls in vain, C answers at once, half right, D looks on and on."""
    script = {
        "A": [call("look", color="red", side=84), call("look", color="blue"), ANSWER],
        "B": [call("look", color="pink") + call("crash"), call("nothing"), "<answer>blue</answer>"],
        "C": ["<answer>red circle</answer>"],
        "D": [call("look", color="red", side=200)],
    }[letter_of(prompt)]
    return script[min(turn, len(script) - 1)]


def played(
    tiny: tuple, rows: Any, folder: Path, say: Say = scripts, *, factory: Any = Solved, numbers: Any = None,
    pass_k: Any = (), sampling: SamplingParams | None = None, **options: Any,
) -> tuple[list[dict], Speaker, Evaluation]:  # fmt: skip
    """Predictions of the rows, as they come back from JSON, the model, and the evaluation."""
    processor = tiny[1]
    local = {"batch_size": 3, "max_completion_length": 2000, **options}
    own = {name: local.pop(name) for name in ("max_turns", "tool_format", "tool_time_limit") if name in local}
    model = Speaker(processor.tokenizer, say)
    backend = AgentBackend(
        HFBackend(model, processor, sampling=sampling or SamplingParams(), **local), EnvPool([], factory), folder, **own
    )
    scoring = Scoring("default", pass_k=pass_k, of_episodes=True, has_answers=bool(rows[0]["prompt"]))
    found = predict_with(backend, rows, range(len(rows)) if numbers is None else numbers, scoring)
    found = json.loads(json.dumps(found))
    return found, model, summary("default", found, pass_k=pass_k)


def test_episodes_are_scored_and_counted(tiny: tuple, rows: Any, tmp_path: Path):
    found, _, evaluation = played(tiny, rows, tmp_path, max_turns=4)
    numbers = [entry["episode"] for entry in found]
    assert [(n["turns"], n["calls"], n["failed_calls"], n["shown"]) for n in numbers] == [
        (3, 2, 0, 2), (3, 3, 3, 0), (1, 0, 0, 0), (4, 4, 0, 4),
    ]  # fmt: skip
    last = [len(ANSWER), len("<answer>blue</answer>"), len("<answer>red circle</answer>")]
    assert [n["reward"] for n in numbers[:3]] == pytest.approx([2 + last[0] / 1000, last[1] / 1000, last[2] / 1000])
    assert [entry["scores"]["word_f1"] for entry in found] == [1.0, 0.0, 0.5, 0.0]  # "red circle" has one of two words
    assert [entry["scores"]["exact_match"] for entry in found] == [1.0, 0.0, 0.0, 0.0]
    assert [entry["scores"]["format"] for entry in found] == [1.0, 0.0, 0.0, 0.0]
    assert [entry["predicted"] for entry in found] == ["red square", "blue", "red circle", None]
    assert list(evaluation.metrics)[:4] == ["success", "reward", "word_f1", "exact_match"]
    assert (evaluation.main.value, evaluation.metrics["turns"].value) == (0.5, (3 + 3 + 1 + 4) / 4)
    assert evaluation.metrics["failed_calls"].count == 4
    assert str(evaluation.metrics["turns"]).startswith("2.75 [") and str(evaluation.main).startswith("50.0% [")


def test_a_trajectory_holds_every_turn_call_result_and_image(tiny: tuple, rows: Any, tmp_path: Path):
    found, _, _ = played(tiny, rows, tmp_path, max_turns=2)
    system, user, first, red, second, blue = found[0]["trajectory"]
    assert system["role"] == "system" and '"look"' in system["content"]
    assert user["content"][0] == {"type": "image", "image": str(tmp_path / "A.png")}  # the data's own file
    assert user["content"][-1]["text"] == "Look, then answer."
    assert first == {"role": "assistant", "turn": 1, "content": call("look", color="red", side=84)}
    file = red["content"][1].pop("file")
    assert red == {
        "role": "tool", "name": "look", "arguments": {"color": "red", "side": 84},
        "content": [{"type": "text", "text": "red: "}, {"type": "image"}], "is_failure": False, "is_shown": True,
    }  # fmt: skip
    picture = Image.open(tmp_path / file)
    assert picture.size == (84, 84) and picture.getpixel((40, 40)) == (255, 0, 0)
    assert (second["turn"], blue["is_shown"]) == (2, False)  # the turns were spent: nobody saw it
    assert Image.open(tmp_path / blue["content"][1]["file"]).getpixel((20, 20)) == (0, 0, 255)
    failed = [turn for turn in found[1]["trajectory"] if turn["role"] == "tool"]
    assert [(turn["name"], turn["arguments"], turn["is_failure"]) for turn in failed] == [
        ("look", {"color": "pink"}, True), ("crash", {}, True), ("nothing", {}, True),
    ]  # fmt: skip
    assert failed[0]["content"][0]["text"] == "Error: no color 'pink'" and "broken" in failed[1]["content"][0]["text"]


def test_the_model_sees_what_tools_showed(tiny: tuple, rows: Any, tmp_path: Path):
    _, model, _ = played(tiny, rows, tmp_path, numbers=[0])
    grids = [given["image_grid_thw"][:, 1:].prod(1).tolist() for given in model.given]  # patches of 14 pixels
    assert grids == [[16], [16, 36], [16, 36, 16]]  # 56 x 56; 84 x 84; 56 x 56
    assert model.given[1]["prompts"][0].startswith(model.given[0]["prompts"][0])


def test_an_episode_that_runs_out_of_tokens_is_cut_off(tiny: tuple, rows: Any, tmp_path: Path):
    (short,), _, _ = played(tiny, rows, tmp_path, numbers=[0], max_completion_length=5)
    assert (short["num_tokens"], short["is_truncated"], short["episode"]["calls"]) == (5, True, 0)
    whole, model, _ = played(tiny, rows, tmp_path, numbers=[0])
    assert {given["width"] + given["most"] for given in model.given} == {model.given[0]["width"] + 2000}
    tokenizer = tiny[1].tokenizer
    said = [turn["content"] for turn in whole[0]["trajectory"] if "turn" in turn]
    assert whole[0]["num_tokens"] == sum(len(tokenizer(text)["input_ids"]) + 1 for text in said)  # its own alone
    assert not whole[0]["is_truncated"]


def test_drawn_turns_have_seeds_of_their_own_whatever_the_batch(tiny: tuple, rows: Any, tmp_path: Path):
    def seeds(batch_size: int) -> dict[tuple[str, int], list[int]]:
        sampling = SamplingParams(temperature=1.0, num_samples=2)
        _, model, _ = played(tiny, rows, tmp_path, sampling=sampling, batch_size=batch_size, max_turns=4)
        kept: dict[tuple[str, int], list[int]] = {}
        for given in model.given:
            streams = given["logits_processor"][-1].streams
            for prompt, stream in zip(given["prompts"], streams, strict=True):
                turn = prompt.count("<|im_start|>assistant")
                kept.setdefault((letter_of(prompt), turn), []).append(stream.initial_seed())
        return {key: sorted(value) for key, value in kept.items()}

    found = seeds(1)
    assert len(found) == 3 + 3 + 1 + 4 and all(len(value) == 2 for value in found.values())
    assert len({seed for value in found.values() for seed in value}) == 22
    assert seeds(5) == found
    first = SamplingParams(temperature=1.0)
    assert found["A", 1] == sorted([first.seed_of(0, 0), first.seed_of(0, 1)])  # as without tools


def test_several_samples_have_an_episode_each_and_pass_at_k_counts_the_solved(tiny: tuple, rows: Any, tmp_path: Path):
    calls = iter([ANSWER, call("look", color="red"), ANSWER])
    found, _, evaluation = played(
        tiny, rows, tmp_path, lambda *_: next(calls), numbers=[0], pass_k=(1, 2),
        sampling=SamplingParams(temperature=1.0, num_samples=2),
    )  # fmt: skip
    samples = found[0]["samples"]
    assert [sample["episode"]["success"] for sample in samples] == [0.0, 1.0]
    assert [sum("turn" in turn for turn in sample["trajectory"]) for sample in samples] == [1, 2]
    assert samples[1]["trajectory"][3]["content"][1]["file"] == "images/0-1-0.png"
    assert found[0]["scores"]["turns"] == 1.5
    assert [evaluation.metrics[name].value for name in ("success", "pass@1", "pass@2")] == [0.5, 0.5, 1.0]


def test_environments_that_make_episodes_need_no_data(tiny: tuple, tmp_path: Path):
    from vlm_grpo.envs.pick_image import PickImage

    for name in ("red", "green", "blue"):
        Image.new("RGB", (56, 56), name).save(tmp_path / f"{name}_1.png")

    def factory() -> PickImage:
        return PickImage(data_root=str(tmp_path), candidates_per_episode=3, fixed_correct_index=1)

    rows = environment_episodes(seed=5, count=3)
    assert [(row["episode"], row["seed"]) for row in rows] == [(0, 5), (1, 5), (2, 5)]
    right = lambda *_: call("pick_image", index=1)  # noqa: E731
    found, _, evaluation = played(tiny, rows, tmp_path, right, factory=factory)
    assert [entry["scores"]["success"] for entry in found] == [1.0, 1.0, 1.0]
    assert list(evaluation.metrics)[:2] == ["success", "reward"] and "word_f1" not in evaluation.metrics
    assert "accuracy" not in found[0]["scores"] and found[0]["answer"] is None
    assert "Which image shows:" in found[0]["question"] and len(found[0]["images"]) == 3
    assert len({entry["data"] for entry in found}) == 3
    assert found[0]["trajectory"][-1]["content"] == [{"type": "text", "text": "right"}]
    assert not (tmp_path / "images").exists()  # all images are files of the data


def test_what_cannot_be_played_is_said(tiny: tuple, rows: Any, tmp_path: Path):
    with pytest.raises(EpisodeError, match="--tool_format native: this model's chat template does not support tools"):
        played(tiny, rows, tmp_path, tool_format="native")
    with pytest.raises(EpisodeError, match=r"rows.jsonl.*'environment' must be one of a, b, got None"):
        played(tiny, rows, tmp_path, factory={"a": Gallery, "b": Solved})


def test_rows_choose_their_environment(tiny: tuple, rows: Any, tmp_path: Path):
    named = [{**rows[number], "environment": "ab"[number % 2]} for number in range(4)]
    found, _, evaluation = played(tiny, named, tmp_path, factory={"a": Gallery, "b": Solved})
    assert ["success" in entry["scores"] for entry in found] == [False, True, False, True]
    assert (next(iter(evaluation.metrics)), evaluation.main.count) == ("success", 2)


def test_a_call_without_end_ends_its_episode_alone(tiny: tuple, rows: Any, tmp_path: Path):
    say = lambda prompt, turn: call("wait", seconds=2) if "Question A" in prompt else ANSWER  # noqa: E731
    found, _, _ = played(tiny, rows, tmp_path, say, tool_time_limit=0.2)
    assert [entry["episode"]["failed_calls"] for entry in found] == [1, 0, 0, 0]
    late = found[0]["trajectory"][-1]
    assert late["is_failure"] and "did not end within 0.2 s" in late["content"][0]["text"]


def written(tiny: tuple, rows: Any, folder: Path, say: Say = scripts) -> Path:
    """A finished evaluation of the rows in a folder."""
    _, _, evaluation = played(tiny, rows, folder, say, max_turns=4)
    write_results(folder, "Agents", evaluation, rows, {})
    return folder


def test_copies_of_an_earlier_evaluation_are_removed(tiny: tuple, rows: Any, tmp_path: Path):
    (tmp_path / "out" / "images").mkdir(parents=True)
    for name in ("0-0-0.png", "7-0-0.png", "mine.png"):
        (tmp_path / "out" / "images" / name).write_bytes(b"old")
    folder = written(tiny, rows, tmp_path / "out")
    names = {path.name for path in (folder / "images").iterdir()}
    assert names == {"mine.png", "0-0-0.png", "0-0-1.png", *(f"3-0-{place}.jpg" for place in range(4))}
    assert Image.open(folder / "images" / "0-0-0.png").size == (84, 84)


def test_two_evaluations_of_agents_are_compared(tiny: tuple, rows: Any, tmp_path: Path):
    first = written(tiny, rows, tmp_path / "a")
    look = call("look", color="green")
    second = written(tiny, rows, tmp_path / "b", lambda prompt, turn: ANSWER if turn else look)
    assert main([str(first), str(second), "--all_rows"]) == 0
    runs = read_run(first), read_run(second)
    by_name = {item.name: item for item in compare_runs(*runs)}
    assert (by_name["turns"].first, by_name["turns"].second, by_name["turns"].text(2.75)) == (2.75, 2.0, "2.75")
    assert by_name["success"].interval.startswith("+50.0% [")
    text = (second / "compare.html").read_text(encoding="utf-8")
    assert "<td>2.75</td>" in text
    (entry,) = [entry for entry in json.loads(text.split('id="data">')[1].split("</script>")[0]) if entry["n"] == 0]
    assert len(entry["j"]) == 3  # A showed two, B one
    shown = [block for answer in entry["a"] for step in answer["p"] if step["r"] == "tool" for block in step["b"]]
    assert shown == ["red: ", [1, 0], "blue: ", [1, 1], "green: ", [1, 2]]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_a_trajectory_opens_in_a_browser(tiny: tuple, rows: Any, tmp_path: Path):
    text = (written(tiny, rows, tmp_path / "out") / "report.html").read_text(encoding="utf-8")
    script = """<script>
      set = (id, value) => { by(id).value = value; by(id).dispatchEvent(new Event("input")); };
      const result = { summaries: [...document.querySelectorAll("summary")].map((node) => node.textContent) };
      set("text", "crash"); result.found = by("count").textContent;
      set("text", ""); set("order", "row");
      const first = document.querySelector(".card"), narrow = first.offsetWidth;
      first.querySelector("details").open = true;
      setTimeout(() => {
        const steps = [...first.querySelectorAll(".step")];
        result.who = steps.map((node) => node.querySelector(".who").textContent);
        result.calls = steps.map((node) => (node.querySelector(".call") || {}).textContent).filter(Boolean);
        result.images = steps.map((node) => [...node.querySelectorAll("img")].map((image) => image.naturalWidth));
        result.isWider = first.offsetWidth > 1.5 * narrow;
        result.overflow = document.documentElement.scrollWidth - innerWidth;
        document.body.textContent = "RESULT" + JSON.stringify(result) + "END";
      }, 500);
    </script></body>"""
    (tmp_path / "driven.html").write_text(text.replace("</body>", script), encoding="utf-8")
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom", "--window-size=1280,900"]
    done = subprocess.run(
        [*command, "--virtual-time-budget=3000", f"--user-data-dir={tmp_path / 'profile'}",
         f"file://{tmp_path / 'driven.html'}"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    result = json.loads(re.search("RESULT(.*)END", done.stdout)[1])
    assert sorted(result["summaries"]) == [
        "trajectory: 1 turn, 0 calls", "trajectory: 3 turns, 2 calls", "trajectory: 3 turns, 3 calls, 3 failed",
        "trajectory: 4 turns, 4 calls",
    ]  # fmt: skip
    assert result["found"] == "1 of 4 examples"
    assert result["who"] == [
        "system", "user", "model, turn 1", "result", "model, turn 2", "result", "model, turn 3",
    ]  # fmt: skip
    assert result["calls"] == ['look(color="red", side=84)', 'look(color="blue")']
    assert result["images"] == [[], [56], [], [84], [], [56], []]
    assert result["isWider"] and result["overflow"] <= 0
