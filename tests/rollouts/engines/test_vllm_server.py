"""The engine against loopback servers that speak as vLLM does; test_vllm_server_real.py has a real one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from transformers import Qwen2Config

from tests.support.fake_vllm import BASE_WEIGHT, GENERATE, RENDER, STOP, ClosedError, FakeVLLM, wait_until
from vlm_grpo.records import ImageRef, VideoRef
from vlm_grpo.rollouts.encoder import EncodedPrompt, PromptEncoder
from vlm_grpo.rollouts.engines.sampling import SamplingSettings
from vlm_grpo.rollouts.engines.server_images import changed_image_settings
from vlm_grpo.rollouts.engines.table import EngineRun
from vlm_grpo.rollouts.engines.vllm_server import VLLMServerEngine
from vlm_grpo.rollouts.ranks import Ranks
from vlm_grpo.rollouts.segment import CompletionSegment, as_next_prompt
from vlm_grpo.tiny import build_tiny_qwen

IMAGE = 6  # image_pad of the tiny tokenizer
CONFIG = Qwen2Config(num_hidden_layers=1, tie_word_embeddings=False)
SETTINGS = SamplingSettings(max_new_tokens=20, stop_token_ids=[STOP], suppressed_token_ids=[IMAGE])


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    return PromptEncoder(build_tiny_qwen()[1], {})


@pytest.fixture
def fakes() -> Iterator[list[FakeVLLM]]:
    """Two servers that expand an image to one token for each 28 x 28 pixels."""
    fakes = [FakeVLLM(expand=lambda size: [IMAGE] * (size[0] * size[1] // 784)).start() for _ in range(2)]
    yield fakes
    for fake in fakes:
        fake.stop()


def engine_of(fakes: list[FakeVLLM], encoder: PromptEncoder, folder: Path, **options: object) -> VLLMServerEngine:
    arguments = {
        "encoder": encoder,
        "settings": SETTINGS,
        "model": "models/tiny",
        "config": CONFIG,
        "folder": folder,
        "run_id": "run",
        "wait_seconds": 5.0,
        "request_seconds": 5.0,
        "concurrency": 2,
    }
    return VLLMServerEngine([fake.url for fake in fakes], **{**arguments, **options})


def update(engine: VLLMServerEngine, weight: int) -> None:
    engine.update_weights([("weight", torch.tensor(weight))])


def texts(count: int) -> list[EncodedPrompt]:
    return [EncodedPrompt([1, 10 + number, 5], "") for number in range(count)]


def image(width: int, height: int, color: str = "red") -> ImageRef:
    return ImageRef(Image.new("RGB", (width, height), color), "data.jsonl:7")


def sampled(fakes: list[FakeVLLM]) -> list[dict]:
    return [body for fake in fakes for body in fake.bodies(GENERATE) if body is not None]


def rendered(fakes: list[FakeVLLM]) -> list[dict]:
    return [body for fake in fakes for body in fake.bodies(RENDER) if body is not None]


def test_rows_of_a_prompt_are_asked_for_together(fakes, encoder, tmp_path):
    """The server sends the choices in any order: weight, number of the choice, stop token."""
    engine = engine_of(fakes, encoder, tmp_path)
    update(engine, 7)
    first, second = texts(2)
    generation = engine.generate([first, second, first, first])
    assert generation.ids == [[7, 0, STOP], [7, 0, STOP], [7, 1, STOP], [7, 2, STOP]]
    assert generation.logprobs == [[-0.5, -0.5, None]] * 4
    requests = {body["token_ids"][1]: body["sampling_params"] for body in sampled(fakes)}
    assert {token: sampling["n"] for token, sampling in requests.items()} == {10: 3, 11: 1}
    assert requests[10]["max_tokens"] == 20
    assert requests[10]["stop_token_ids"] == [STOP] and requests[10]["ignore_eos"]
    assert requests[10]["logit_bias"] == {str(IMAGE): -100.0}


def test_greedy_completions_are_sampled_once(fakes, encoder, tmp_path):
    """vLLM refuses several greedy completions of a prompt: they are all alike."""
    engine = engine_of(fakes, encoder, tmp_path)
    update(engine, 7)
    generation = engine.generate(texts(1) * 3, max_new_tokens=4, is_greedy=True)
    assert generation.ids == [[7, 0, STOP]] * 3
    assert generation.ids[0] is not generation.ids[1]
    (body,) = sampled(fakes)
    assert (body["sampling_params"]["n"], body["sampling_params"]["temperature"]) == (1, 0.0)
    assert body["sampling_params"]["max_tokens"] == 4


def test_a_regex_is_passed_on(fakes, encoder, tmp_path):
    engine = engine_of(fakes, encoder, tmp_path, settings=replace(SETTINGS, regex="a|b"))
    update(engine, 7)
    engine.generate(texts(1))
    assert sampled(fakes)[0]["sampling_params"]["structured_outputs"] == {"regex": "a|b"}


def test_each_update_is_in_every_server(fakes, encoder, tmp_path):
    engine = engine_of(fakes, encoder, tmp_path)
    for weight in (7, 8):
        update(engine, weight)
        assert [fake.weight for fake in fakes] == [weight] * 2
        assert {ids[0] for ids in engine.generate(texts(8)).ids} == {weight}
    for fake in fakes:
        assert fake.loads == ["run-000001", "run-000002"]
        for path in ("/reset_prefix_cache", "/reset_encoder_cache"):
            assert len([body for body in fake.bodies(path) if body is not None]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["run-000002"]


def test_nothing_is_generated_before_the_first_update(fakes, encoder, tmp_path):
    with pytest.raises(ValueError, match="update_weights comes before generate"):
        engine_of(fakes, encoder, tmp_path).generate(texts(1))


def test_a_completion_that_the_server_cuts_is_refused(fakes, encoder, tmp_path):
    """vLLM ends it at --max-model-len; the trainer would take it for one of the full length."""
    engine = engine_of(fakes, encoder, tmp_path)
    update(engine, 7)
    for fake in fakes:
        fake.finish_reason = "length"
    with pytest.raises(ValueError, match="after 3 of 20 tokens, since its prompt has 3: its limit"):
        engine.generate(texts(1))
    assert engine.generate(texts(1), max_new_tokens=3).ids == [[7, 0, STOP]]


def test_the_engine_of_a_run_knows_its_limits(fakes, tiny_model, tmp_path):
    """The servers' processor has those of the model's files; each run has a name of its own."""
    model, processor = build_tiny_qwen(max_pixels=784 * 4)
    for fake in fakes:
        fake.model = tiny_model.name
    run = EngineRun(
        model=model,
        model_name=str(tiny_model),
        processor=processor,
        encoder=PromptEncoder(processor, {}),
        sampling=replace(SETTINGS, temperature=0.7),
        dtype=torch.bfloat16,
        ranks=Ranks(Accelerator(cpu=True)),
        folder=tmp_path,
        max_model_length=1000,
        urls=[fake.url for fake in fakes],
        wait=5.0,
    )
    with pytest.raises(ValueError, match="want --logprobs-mode processed_logprobs"):
        VLLMServerEngine.from_run(run)
    for fake in fakes:
        fake.logprobs_mode = "processed_logprobs"
    engines = [VLLMServerEngine.from_run(run) for _ in range(2)]
    update(engines[0], 7)
    assert fakes[0].loads == [path.name for path in (tmp_path / "weights").iterdir()]
    assert "--dtype bfloat16" in engines[0].kind.start_command
    assert engines[0].kind.image_settings == {"size": {"shortest_edge": 56 * 56, "longest_edge": 784 * 4}}
    update(engines[1], 8)
    assert len(set(fakes[0].loads)) == 2


# Images


def test_features_lie_at_the_trainers_tokens(fakes, encoder, tmp_path):
    """Images of 2 and 6 tokens, one beside the other, in the trainer's own prompt."""
    engine = engine_of(fakes, encoder, tmp_path)
    update(engine, 7)
    ids = [1, 5, IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, 4]
    engine.generate([EncodedPrompt(ids, "", refs=[image(56, 28), image(84, 56)])])
    (body,) = sampled(fakes)
    assert body["token_ids"] == ids
    expected = [{"offset": 2, "length": 2}, {"offset": 4, "length": 6}]
    assert body["features"]["mm_placeholders"] == {"image": expected}
    assert body["features"]["kwargs_data"] == {"image": ["tensors"] * 2}
    assert len(set(body["features"]["mm_hashes"]["image"])) == 2


def test_tokens_around_an_image_get_no_features(fakes, encoder, tmp_path):
    """InternVL and others expand an image to a start, its tokens and an end."""
    for fake in fakes:
        fake.expand = lambda size: [3, IMAGE, IMAGE, 4]
    engine = engine_of(fakes, encoder, tmp_path)
    update(engine, 7)
    engine.generate([EncodedPrompt([1, 3, IMAGE, IMAGE, 4, 9], "", refs=[image(56, 28)])])
    assert sampled(fakes)[0]["features"]["mm_placeholders"] == {"image": [{"offset": 2, "length": 2}]}


@pytest.mark.parametrize("run", [[IMAGE] * 3, [IMAGE], [9]], ids=["more", "fewer", "none"])
def test_another_expansion_is_refused(fakes, encoder, tmp_path, run):
    engine = engine_of(fakes, encoder, tmp_path)
    update(engine, 7)
    with pytest.raises(ValueError, match=r"data.jsonl:7: the engine expands image 1 to 2 tokens"):
        engine.generate([EncodedPrompt([1, *run, 4], "", refs=[image(56, 28)])])
    assert sampled(fakes) == []


def test_image_tokens_without_an_image_are_refused(fakes, encoder, tmp_path):
    engine = engine_of(fakes, encoder, tmp_path)
    update(engine, 7)
    with pytest.raises(ValueError, match="1 tokens of images, and no image"):
        engine.generate([EncodedPrompt([1, IMAGE, 4], "")])


def test_images_with_separators_are_expanded_by_the_server(fakes, encoder, tmp_path):
    """SmolVLM's rows of tiles: features have one place alone, so the server expands the images itself."""
    for fake in fakes:
        fake.expand = lambda size: [3, IMAGE, IMAGE, 3, IMAGE, IMAGE, 4]
    engine = engine_of(fakes, encoder, tmp_path)
    update(engine, 7)
    tiles = [3, IMAGE, IMAGE, 3, IMAGE, IMAGE, 4]
    prompt = EncodedPrompt([1, *tiles, 9, *tiles, 8], "", refs=[image(56, 28), image(28, 28)])
    assert engine.generate([prompt]).ids == [[7, 0, STOP]]
    (body,) = sampled(fakes)
    assert body["token_ids"] == [1, IMAGE, 9, IMAGE, 8]
    assert [part["type"] for part in body["content_parts"]] == ["image_url"] * 2
    assert body["return_token_ids"] and "features" not in body


def test_a_server_that_expands_otherwise_in_the_end_is_refused(fakes, encoder, tmp_path):
    """The pixel limits of a request reach the rendering alone."""
    tiles = [3, IMAGE, 3, IMAGE, 4]
    engine = engine_of(fakes, encoder, tmp_path)
    update(engine, 7)
    for fake in fakes:
        fake.expand = lambda size: tiles

        def expand_more(path: str, fake: FakeVLLM = fake) -> None:
            if path == GENERATE:
                fake.expand = lambda size: [*tiles, 4]

        fake.before = expand_more
    with pytest.raises(ValueError, match="expands the images of a prompt to 8 tokens in all, expected the 7"):
        engine.generate([EncodedPrompt([1, *tiles, 9], "", refs=[image(56, 28)])])


def test_an_image_is_rendered_once_in_an_episode(fakes, encoder, tmp_path):
    """Two rows with the same image, and the next turn of one of them, in which a tool shows another."""
    engine = engine_of(fakes, encoder, tmp_path, image_settings={"size": {"longest_edge": 9}})
    update(engine, 7)
    source = Image.new("RGB", (56, 28), "red")
    prompts = [EncodedPrompt([1, IMAGE, IMAGE, token], "", refs=[ImageRef(source)]) for token in (8, 9)]
    engine.generate(prompts)
    turn = CompletionSegment([7, STOP, IMAGE, 4], {}, {}, [image(28, 28, "blue")])
    engine.generate([as_next_prompt(prompts[0], turn)])
    bodies = rendered(fakes)
    assert len(bodies) == 2
    assert bodies[0]["mm_processor_kwargs"] == {"size": {"longest_edge": 9}}


def test_a_drawing_is_a_new_image_and_the_former_stays(fakes, encoder, tmp_path):
    """A tool draws on its picture and shows it again; the first turn's tensors are of the picture before."""
    engine = engine_of(fakes, encoder, tmp_path)
    update(engine, 7)
    picture = Image.new("RGB", (56, 28), "red")
    prompt = EncodedPrompt([1, IMAGE, IMAGE], "", refs=[ImageRef(picture)])
    engine.generate([prompt])
    picture.paste("blue", (0, 0, 10, 10))
    turn = CompletionSegment([7, STOP, IMAGE, IMAGE], {}, {}, [ImageRef(picture)])
    engine.generate([as_next_prompt(prompt, turn)])
    before, after = (body["features"]["mm_hashes"]["image"] for body in sampled(fakes))
    assert before[0] == after[0] != after[1]


def test_a_video_is_refused(fakes, encoder, tmp_path):
    engine = engine_of(fakes, encoder, tmp_path)
    update(engine, 7)
    with pytest.raises(ValueError, match=r"clip.jsonl:1: a video"):
        engine.generate([EncodedPrompt([1, 2], "", videos=[VideoRef("a.mp4", "clip.jsonl:1")])])


def test_changed_settings_of_images_are_found():
    original = build_tiny_qwen()[1].image_processor
    changed = build_tiny_qwen(max_pixels=784)[1].image_processor
    assert changed_image_settings(original, original) == {}
    size = {"shortest_edge": 56 * 56, "longest_edge": 784}
    assert changed_image_settings(changed, original) == {"size": size}


# First contact


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"version": "0.22.1"}, "vLLM 0.22.1; expected 0.30 or newer"),
        ({"missing": ("/collective_rpc", "/reset_encoder_cache")}, "start it with VLLM_SERVER_DEV_MODE=1"),
        ({"missing": (GENERATE, RENDER)}, f"lacks {GENERATE}, {RENDER}; start it with --enable-scale-out"),
        ({"missing": ("/version",)}, "is this the URL of a vLLM server"),
        ({"logprobs_mode": "processed_logprobs"}, "is processed_logprobs; .* want --logprobs-mode raw_logprobs"),
        ({"model": "org/other"}, "it serves org/other; expected models/tiny"),
        ({"max_model_len": 49}, "--max-model-len is 49; prompt and completion may have 50"),
    ],
)
def test_an_unfit_server_is_refused_at_once(encoder, tmp_path, options, pattern):
    fake = FakeVLLM(**options).start()
    with pytest.raises(ValueError, match=f"{pattern}(?s:.*)vllm serve models/tiny"):
        engine_of([fake], encoder, tmp_path, max_model_length=50)
    fake.stop()


def test_tied_embeddings_are_refused_on_a_cpu(encoder, tmp_path):
    tied = Qwen2Config(num_hidden_layers=1, tie_word_embeddings=True)
    fake = FakeVLLM(device="cpu").start()
    with pytest.raises(ValueError, match="tied embeddings"):
        engine_of([fake], encoder, tmp_path, config=tied)
    engine_of([fake], encoder, tmp_path)
    fake.stop()


# Failures


def test_a_restart_between_rollouts_is_noticed(fakes, encoder, tmp_path):
    engine = engine_of(fakes, encoder, tmp_path)
    update(engine, 7)
    fakes[0].restart()
    assert fakes[0].weight == BASE_WEIGHT
    assert {ids[0] for ids in engine.generate(texts(8)).ids} == {7}
    assert [len(fake.loads) for fake in fakes] == [2, 1]


def test_a_restart_under_a_request_is_noticed(fakes, encoder, tmp_path):
    """The request reaches the server after its restart: it answers with its first weights, which nobody wants."""
    engine = engine_of(fakes[:1], encoder, tmp_path)
    update(engine, 7)
    times: list[float] = []

    def restart_once(path: str) -> None:
        if path == GENERATE and not times:
            times.append(time.monotonic())
            fakes[0].restart()

    fakes[0].before = restart_once
    assert [ids[0] for ids in engine.generate(texts(6)).ids] == [7] * 6


def test_a_restart_and_loading_by_another_process_is_noticed(fakes, encoder, tmp_path):
    """The server has the same weights again when it is asked, but it had not when it answered."""
    engine = engine_of(fakes[:1], encoder, tmp_path)
    update(engine, 7)
    fake, sessions = fakes[0], []

    def restart_once(path: str) -> None:
        if path == GENERATE and not sessions:
            sessions.append(fake.weight_version)
            fake.weight = BASE_WEIGHT
        elif path == "/weight_info" and sessions and fake.weight == BASE_WEIGHT:
            fake.weight, fake.weight_version = 7, "run-000001/another"

    fake.before = restart_once
    assert [ids[0] for ids in engine.generate(texts(1)).ids] == [7]


@pytest.mark.parametrize("failure", ["500", "closed", "truncated", "empty"])
def test_failures_are_repeated(fakes, encoder, tmp_path, failure):
    """Every third request fails; each prompt is completed once in the end."""
    engine = engine_of(fakes, encoder, tmp_path)
    update(engine, 7)
    counts = [0]

    def fail(path: str) -> int | None:
        counts[0] += path == GENERATE
        if path != GENERATE or counts[0] % 3:
            return None
        if failure == "500":
            return 500
        text = {"closed": "", "truncated": 'HTTP/1.1 200 OK\r\n\r\n{"choices": [', "empty": "HTTP/1.1 200 OK\r\n\r\n"}
        raise ClosedError(text[failure])

    for fake in fakes:
        fake.before = fail
    prompts = texts(8)
    assert engine.generate(prompts).ids == [[7, 0, STOP]] * 8
    assert counts[0] >= 11


def test_an_aborted_completion_is_repeated(fakes, encoder, tmp_path):
    """A server that is paused ends what is under way, with the tokens so far."""
    engine = engine_of(fakes[:1], encoder, tmp_path)
    update(engine, 7)
    fake, complete = fakes[0], fakes[0]._generate
    aborted: list[object] = []

    def abort_once(body: dict) -> dict:
        answer = complete(body)
        if not aborted:
            aborted.append(body)
            answer["choices"][0] |= {"finish_reason": "abort", "token_ids": [7]}
        return answer

    fake._generate = abort_once
    assert engine.generate(texts(1)).ids == [[7, 0, STOP]]


def test_another_server_takes_over(fakes, encoder, tmp_path):
    """One hangs: what it was asked for is asked of the other."""
    engine = engine_of(fakes, encoder, tmp_path, request_seconds=0.4)
    update(engine, 7)
    is_over = threading.Event()
    fakes[0].before = lambda path: is_over.wait(20) and None if path == GENERATE else None
    started = time.monotonic()
    assert [ids[0] for ids in engine.generate(texts(8)).ids] == [7] * 8
    is_over.set()
    assert time.monotonic() - started < 4
    assert len(fakes[1].bodies(GENERATE)) >= 8


def test_a_server_that_was_away_gets_the_weights_of_today(fakes, encoder, tmp_path):
    """It is away during an update, which the other has; it comes back in the next rollout."""
    engine = engine_of(fakes, encoder, tmp_path)
    update(engine, 7)
    fakes[0].stop()
    update(engine, 8)
    assert [fake.weight for fake in fakes] == [7, 8]
    fakes[0].start()
    time.sleep(0.5)  # it was tried, and waits for the next try
    assert {ids[0] for ids in engine.generate(texts(20)).ids} == {8}
    assert fakes[0].weight == 8 and fakes[0].loads[-1] == "run-000002"


def test_a_rollout_outlives_all_servers(fakes, encoder, tmp_path):
    """All are killed in the middle, and started again."""
    engine = engine_of(fakes[:1], encoder, tmp_path)
    update(engine, 7)
    fake = fakes[0]
    fake.before = lambda path: time.sleep(0.02) if path == GENERATE else None
    results: list[list[list[int]]] = []
    thread = threading.Thread(target=lambda: results.append(engine.generate(texts(40)).ids))
    thread.start()
    wait_until(lambda: len(fake.bodies(GENERATE)) > 10)
    fake.stop()
    time.sleep(0.3)
    assert thread.is_alive()
    fake.start()
    thread.join(5)
    assert results == [[[7, 0, STOP]] * 40]


def test_processes_of_a_run_share_the_servers(fakes, encoder, tmp_path):
    """Two processes as threads: one writes, both generate, and a server loads once for both, also after a restart."""
    barrier = threading.Barrier(2)
    results: list[tuple[int, int]] = []

    def process(number: int) -> None:
        engine = engine_of(fakes, encoder, tmp_path, is_main=number == 0, wait_for_everyone=barrier.wait)
        for weight in (7, 8):
            update(engine, weight)
            results.extend((weight, ids[0]) for ids in engine.generate(texts(6)).ids)
            barrier.wait()
            if number == 0:
                fakes[0].restart()
            barrier.wait()
            results.extend((weight, ids[0]) for ids in engine.generate(texts(6)).ids)

    threads = [threading.Thread(target=process, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(results) == 48 and all(expected == actual for expected, actual in results)
    assert [len(fake.loads) for fake in fakes] == [4, 2]


def test_a_folder_that_the_server_does_not_see_is_named(fakes, encoder, tmp_path):
    engine = engine_of(fakes[:1], encoder, tmp_path / "weights", wait_seconds=0.3)
    fakes[0].sees_folders = False
    with pytest.raises(TimeoutError, match=f"has to see the folder {tmp_path}/weights/run-000001"):
        update(engine, 7)
