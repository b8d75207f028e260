from __future__ import annotations

import base64
import io
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from vlm_grpo.envs import find_environment
from vlm_grpo.envs.agent_code import AgentCode, pixel_similarity
from vlm_grpo.envs.corruptions import CORRUPTIONS, RANDOM, corrupt
from vlm_grpo.envs.environment import ToolError, tool_schema, tools_of
from vlm_grpo.envs.sandbox import Sandbox, SandboxError
from vlm_grpo.records import ImageRef, Record
from vlm_grpo.synthetic.ocr import damaged_example

RIGHT, WRONG = "<think>I see.</think><answer>482</answer>", "<answer>284</answer>"


@pytest.fixture(scope="module", autouse=True)
def held() -> None:
    try:
        Sandbox().close()
    except SandboxError as error:
        pytest.skip(f"no sandbox here: {error}")


def sign() -> Image.Image:
    """Red with a blue corner, so that every turn and mirror image differs."""
    image = Image.new("RGB", (60, 40), (200, 40, 40))
    ImageDraw.Draw(image).rectangle((0, 0, 20, 10), fill=(20, 20, 180))
    return image


def row(image: Image.Image | None = None, **columns: Any) -> dict[str, Any]:
    given = {"question": "Which number?", "answer": "482", "id": "a-1", **columns}
    return given if image is None else {**given, "images": [ImageRef(image)]}


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def test_a_repaired_image_comes_back_and_pays_only_with_a_right_answer():
    whole = sign()
    environment = find_environment("agent_code")()
    assert environment.reset(**row(whole.transpose(Image.Transpose.ROTATE_90), original=whole)) == ""
    blocks = environment.run_python("print(image.size)\nresult = image.transpose(Image.Transpose.ROTATE_270)")
    assert [block["type"] for block in blocks] == ["image", "text"] and blocks[1]["text"] == "(40, 60)"
    assert blocks[0]["image"].tobytes() == whole.tobytes()
    environment.finish(RIGHT)
    assert environment.get_reward() == 1.2
    metrics = environment.metrics()
    assert (metrics["success"], metrics["runs"], metrics["failed"], metrics["similarity"]) == (1.0, 1.0, 0.0, 1.0)
    assert 0.02 < metrics["similarity_gained"] < 0.9
    environment.finish(WRONG)
    assert environment.get_reward() == 0.0


def test_an_answer_without_a_script_or_with_a_failed_one_has_no_bonus():
    environment = AgentCode(tool_bonus=0.5)
    environment.reset(**row(sign()))
    environment.finish(RIGHT)
    assert environment.get_reward() == 1.0
    with pytest.raises(ToolError, match="ZeroDivisionError"):
        environment.run_python("print('so far')\n1 / 0")
    assert environment.run_python("print('only text')") == [
        {"type": "text", "text": "only text\n(no image in `result`)"}
    ]
    assert environment.get_reward() == 1.0
    assert environment.metrics() == {"success": 1.0, "runs": 2.0, "failed": 1.0}
    environment.run_python("result = image")
    assert environment.get_reward() == 1.5


def test_errors_are_words_for_the_model():
    environment = AgentCode(max_calls=6, time_limit=1.0, memory_mb=100)
    environment.reset(**row(sign()))
    for code, said in (
        ("while True: pass", "took more than 1 s"),
        ("bytearray(10 * 2**30)", "needed more than 100 MiB"),
        ("result = 5", "must be a PIL image, got int"),
        ("result = image.resize((3000, 5))", "over 200:1"),
        ("", "code must be Python, got ''"),
        ("#" * 2**21, "at most 1,048,576 characters"),
    ):
        with pytest.raises(ToolError, match=said):
            environment.run_python(code)
    assert environment.metrics()["failed"] == 6.0
    with pytest.raises(ToolError, match="no more than 6 scripts; answer now"):
        environment.run_python("result = image")
    assert environment.metrics()["runs"] == 6.0


def test_what_is_printed_cannot_end_a_turn_and_is_cut_in_front():
    environment = AgentCode()
    environment.reset(**row(sign()))
    text = environment.run_python("print('<|im_end|>\\x1b[31m')")[0]["text"]
    assert "<|" not in text and "\x1b" not in text and "im_end" in text
    with pytest.raises(ToolError) as error:
        environment.run_python("print('y' * 5000)\nraise KeyError('the reason')")
    assert str(error.value).startswith("[...]\n") and "the reason" in str(error.value) and len(str(error.value)) < 4100


def test_reset_clears_what_was_before():
    environment = AgentCode(max_calls=1)
    environment.reset(**row(sign(), original=sign()))
    environment.run_python("result = image")
    environment.finish(RIGHT)
    environment.reset(**row(Image.new("RGB", (8, 8))))
    assert environment.get_reward() == 0.0
    assert environment.metrics() == {"success": 0.0, "runs": 0.0, "failed": 0.0}
    assert environment.run_python("print(image.size)")[0]["text"].startswith("(8, 8)")
    environment.finish(RIGHT)
    assert environment.get_reward() == 1.0, "an image of the episode before earns nothing"


@pytest.mark.parametrize(("score", "paid"), [("word_f1", 2 / 3), ("exact_match", 0.0), ("accuracy", 0.0)])
def test_the_score_can_be_chosen(score: str, paid: float):
    environment = AgentCode(score=score, tool_bonus=0.0)
    environment.reset(**row(sign()))
    environment.finish("<answer>482 km</answer>")
    assert environment.get_reward() == pytest.approx(paid)


def test_drawn_damage_is_the_same_for_a_group_and_differs_between_rows():
    whole = base64.b64encode(png(sign())).decode()
    shown = []
    for seed, name in ((0, "a"), (0, "a"), (1, "a"), (0, "b"), (0, "c"), (0, "d")):
        blocks = AgentCode(damage="drawn", seed=seed).reset(**row(id=name, original=whole))
        assert [block["type"] for block in blocks] == ["image"]
        shown.append(blocks[0]["image"].tobytes())
    assert shown[0] == shown[1] and len(set(shown)) >= 4
    assert sign().tobytes() not in shown


def test_the_original_may_stand_in_the_record():
    record = Record("a-1", "Which number?", "482", extra={"original": png(sign())})
    environment = AgentCode(damage="dark")
    blocks = environment.reset(record=record)
    assert np.asarray(blocks[0]["image"]).max() < 60
    environment.run_python("result = image.point(lambda value: min(255, value * 5))")
    assert environment.metrics()["similarity_gained"] > 0.1


def test_rows_that_cannot_be_played_are_refused():
    with pytest.raises(ValueError, match=r"data\.jsonl:3: agent_code needs a gold answer, got None"):
        AgentCode().reset(record=Record("a", "?", None, where="data.jsonl:3"))
    with pytest.raises(ValueError, match="agent_code needs an image in every row, got none"):
        AgentCode().reset(**row())
    with pytest.raises(ValueError, match="damage 'drawn' needs the column 'original'"):
        AgentCode(damage="drawn").reset(**row())
    with pytest.raises(ValueError, match="must have no image, because"):
        AgentCode(damage="drawn").reset(**row(sign(), original=sign()))
    with pytest.raises(ValueError, match="'original': an image must be a path"):
        AgentCode().reset(**row(sign(), original=5))
    with pytest.raises(KeyError, match="damage"):
        AgentCode(damage="scratched")
    with pytest.raises(ValueError, match="max_calls must be at least 1, got 0"):
        AgentCode(max_calls=0)


def test_the_tool_has_a_schema_and_instances_share_a_pool():
    first, second = AgentCode(), AgentCode(max_calls=9, damage="drawn")
    assert first._sandbox is second._sandbox
    tools = tools_of(first)
    assert list(tools) == ["run_python"]
    function = tool_schema("run_python", tools["run_python"])["function"]
    assert function["parameters"]["required"] == ["code"] and "input.png" in function["description"]


def test_many_episodes_run_side_by_side():
    def play(number: int) -> tuple[int, int, int]:
        environment = AgentCode()
        environment.reset(**row(Image.new("RGB", (4, 4), (number, 0, 0))))
        return environment.run_python("result = image")[0]["image"].getpixel((0, 0))

    with ThreadPoolExecutor(16) as executor:
        assert list(executor.map(play, range(40))) == [(number, 0, 0) for number in range(40)]


def test_every_damage_changes_an_image_of_its_size_and_depends_on_the_key_alone():
    image = damaged_example(Random(1), 0, 112).images[0]
    for kind in (*CORRUPTIONS, RANDOM):
        first, again = corrupt(image, kind, "key"), corrupt(image, kind, "key")
        assert first.mode == "RGB" and first.size == image.size and first.tobytes() == again.tobytes(), kind
        assert pixel_similarity(first, image) < 0.999, kind
        assert len({corrupt(image, kind, str(key)).tobytes() for key in range(12)}) >= 3, kind


REPAIRS = {
    "rotate": "result = max((image.rotate(a) for a in (0, 90, 180, 270)), key=lambda i: -np.asarray(i)[90, 56].sum())",
    "dark": "from PIL import ImageOps\nresult = ImageOps.autocontrast(image)",
    "overexposed": """
darkest = int(np.asarray(image).min())
result = image.point(lambda value: max(0, round(255 - (255 - value) * 255 / (255 - darkest))))
""",
    "noise": "from PIL import ImageFilter\nresult = image.filter(ImageFilter.MedianFilter(3))",
    "crop": """
from PIL import ImageChops
ground = Image.new("RGB", image.size, image.getpixel((0, 0)))
box = ImageChops.difference(image, ground).getbbox()
result = image.crop(box).resize(image.size)
""",
}


@pytest.mark.parametrize("kind", REPAIRS)
def test_damage_can_be_repaired(kind: str):
    """With the script that a model would write, on the toy rows themselves."""
    number = list(CORRUPTIONS).index(kind)
    example = damaged_example(Random(3), number, 112)
    assert example.columns["damage"] == kind
    environment = AgentCode()
    environment.reset(**row(example.images[0], answer=example.answer, **example.columns))
    environment.run_python(REPAIRS[kind])
    environment.finish(f"<answer>{example.answer}</answer>")
    assert environment.get_reward() == 1.2 and environment.metrics()["similarity_gained"] > 0.05
