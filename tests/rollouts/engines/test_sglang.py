"""The engine against a loopback server that checks requests as SGLang does.

Where the variable SGLANG_PYTHON names an interpreter with sglang, requests pass SGLang's own classes too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import Qwen2Config

from tests.support import fake_sglang
from tests.support.fake_sglang import IMAGE, STOP
from vlm_grpo.records import ImageRef, VideoRef
from vlm_grpo.rollouts.encoder import EncodedPrompt, PromptEncoder
from vlm_grpo.rollouts.engines.sampling import SamplingSettings
from vlm_grpo.rollouts.engines.servers import ServerClient
from vlm_grpo.rollouts.engines.sglang import SGLangEngine
from vlm_grpo.tiny import build_tiny_qwen

VARIABLE = "SGLANG_PYTHON"
needs_sglang = pytest.mark.skipif(VARIABLE not in os.environ, reason=f"{VARIABLE} names no interpreter with sglang")
SETTINGS = SamplingSettings(max_new_tokens=20, stop_token_ids=[STOP], suppressed_token_ids=[IMAGE], top_k=0)


@pytest.fixture(scope="module", params=["fields", pytest.param("classes", marks=[needs_sglang, pytest.mark.slow])])
def client(request: pytest.FixtureRequest) -> Iterator[ServerClient]:
    has_classes = request.param == "classes"
    command = [os.environ[VARIABLE], fake_sglang.__file__, "--classes"] if has_classes else None
    process = subprocess.Popen(command or [sys.executable, fake_sglang.__file__], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port = next(line for line in process.stdout if line.strip().isdigit()).strip()
    yield ServerClient(f"http://127.0.0.1:{port}", seconds=30)
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def encoder() -> PromptEncoder:
    return PromptEncoder(build_tiny_qwen()[1], {})


def engine_of(client: ServerClient, encoder: PromptEncoder, folder: Path, **options: object) -> SGLangEngine:
    arguments = {
        "encoder": encoder,
        "settings": SETTINGS,
        "model": "models/tiny",
        "config": Qwen2Config(num_hidden_layers=1),
        "folder": folder,
        "run_id": folder.name,
        "wait_seconds": 5.0,
        "request_seconds": 30.0,
        "concurrency": 2,
    }
    return SGLangEngine([client.url], **{**arguments, **options})


def update(engine: SGLangEngine, weight: int) -> None:
    engine.update_weights([("weight", torch.tensor(weight))])


def last_request(client: ServerClient) -> dict:
    return [body for path, body in client.get("/fake/requests", key="requests") if path == "/generate"][-1]


def test_completions_have_tokens_and_logprobs(client, encoder, tmp_path):
    engine = engine_of(client, encoder, tmp_path, settings=replace(SETTINGS, regex="a|b"))
    update(engine, 7)
    first, second = EncodedPrompt([1, 10], ""), EncodedPrompt([1, 11], "")
    generation = engine.generate([first, second, first])
    assert generation.ids == [[7, 0, STOP], [7, 0, STOP], [7, 1, STOP]]
    assert generation.logprobs == [[-0.5, -0.25, -0.125]] * 3
    sampling = last_request(client)["sampling_params"]
    assert (sampling["max_new_tokens"], sampling["top_k"], sampling["regex"]) == (20, -1, "a|b")
    assert sampling["logit_bias"] == {str(IMAGE): -100.0} and "ignore_eos" not in sampling


def test_greedy_completions_are_sampled_once(client, encoder, tmp_path):
    engine = engine_of(client, encoder, tmp_path)
    update(engine, 7)
    assert engine.generate([EncodedPrompt([1, 10], "")] * 3, max_new_tokens=4, is_greedy=True).ids == [[7, 0, STOP]] * 3
    sampling = last_request(client)["sampling_params"]
    assert (sampling["n"], sampling["temperature"], sampling["max_new_tokens"]) == (1, 0.0, 4)


def test_a_restarted_server_gets_the_weights_again(client, encoder, tmp_path):
    engine = engine_of(client, encoder, tmp_path)
    for weight in (7, 8):
        update(engine, weight)
        client.post("/fake/restart")
        assert engine.generate([EncodedPrompt([1, 10], "")]).ids == [[weight, 0, STOP]]


def prompt_with_images(*runs: int) -> EncodedPrompt:
    """Return a prompt with an image of each number of tokens."""
    ids = [1]
    for length in runs:
        ids += [3, *[IMAGE] * length, 4]
    return EncodedPrompt(ids, "", refs=[ImageRef(Image.new("RGB", (28 * length, 28))) for length in runs])


def test_images_are_sent_with_one_token_each(client, encoder, tmp_path):
    """The keys of their embeddings are others after each update: SGLang keeps those of the former weights."""
    engine = engine_of(client, encoder, tmp_path, image_settings={"size": {"longest_edge": 9}})
    hashes = []
    for weight in (7, 8):
        update(engine, weight)
        assert engine.generate([prompt_with_images(2, 3)]).ids == [[weight, 0, STOP]]
        body = last_request(client)
        assert body["input_ids"] == [1, 3, IMAGE, 4, 3, IMAGE, 4]
        assert body["mm_processor_kwargs"] == {"size": {"longest_edge": 9}}
        hashes += body["mm_hashes"]
    assert len(set(hashes)) == 4 and all(int(each, 16) for each in hashes)


def test_another_prompt_on_the_server_is_refused(client, encoder, tmp_path):
    engine = engine_of(client, encoder, tmp_path)
    update(engine, 7)
    prompt = replace(prompt_with_images(2), input_ids=[1, 3, IMAGE, IMAGE, IMAGE, 4])
    with pytest.raises(ValueError, match="saw another prompt than the trainer: 5 tokens, expected 6"):
        engine.generate([prompt])


def test_an_image_in_several_runs_is_refused(client, encoder, tmp_path):
    engine = engine_of(client, encoder, tmp_path)
    update(engine, 7)
    prompt = replace(prompt_with_images(4), input_ids=[1, IMAGE, IMAGE, 3, IMAGE, IMAGE])
    with pytest.raises(ValueError, match="1 images in 2 runs"):
        engine.generate([prompt])
    with pytest.raises(ValueError, match="a video"):
        engine.generate([EncodedPrompt([1], "", videos=[VideoRef("a.mp4")])])


def test_a_folder_that_the_server_does_not_see_is_named(client, encoder, tmp_path):
    engine = engine_of(client, encoder, tmp_path, wait_seconds=0.2)
    with pytest.raises(TimeoutError, match=f"has to see the folder {tmp_path}"):
        engine.update_weights([])  # no file at all


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"model": "org/other"}, "serves x/tiny; expected org/other"),
        ({"max_model_length": 1001}, "--context-length is"),
    ],
)
def test_an_unfit_server_is_refused_at_once(client, encoder, tmp_path, options, pattern):
    with pytest.raises(ValueError, match=f"{pattern}(?s:.*)sglang.launch_server"):
        engine_of(client, encoder, tmp_path, **options)


def test_requests_are_checked(client):
    """The loopback server refuses what SGLang does not know."""
    with pytest.raises(ValueError, match="status 422"):
        client.post("/generate", {"input_ids": [1], "sampling_params": {"n": 1}, "max_tokens": 4})
