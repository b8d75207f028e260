"""Generation by vLLM servers over HTTP; this process needs no vLLM.

Prompts are continued by the exact tokens of the trainer, with the features that the server makes of their images
(`server_images.py`). Weights go through a folder that both sides see (`weight_files.py`).
"""

from __future__ import annotations

import json
import logging
import re
import shlex
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedConfig

from vlm_grpo.records import JsonObject
from vlm_grpo.rollouts.encoder import EncodedPrompt, PromptEncoder, unique_prompts
from vlm_grpo.rollouts.engines.engine import Generation, NamedTensor
from vlm_grpo.rollouts.engines.sampling import SamplingSettings
from vlm_grpo.rollouts.engines.server_images import ImageRenderer, RenderedImage, image_fields
from vlm_grpo.rollouts.engines.servers import ServerClient, ServerPool, ServerRefusalError, ServerUnavailableError
from vlm_grpo.rollouts.engines.weight_files import FileTransfer, WeightFiles

logger = logging.getLogger(__name__)

LEAST_VERSION, TESTED_VERSIONS = (0, 30), ("0.30",)  # 0.30 is the first whose weights have a version
ENDPOINTS = {  # what a server is asked for, and the setting without which it does not have it
    "/weight_info": "VLLM_SERVER_DEV_MODE=1",
    "/update_weight_version": "VLLM_SERVER_DEV_MODE=1",
    "/collective_rpc": "VLLM_SERVER_DEV_MODE=1",
    "/reset_prefix_cache": "VLLM_SERVER_DEV_MODE=1",
    "/reset_encoder_cache": "VLLM_SERVER_DEV_MODE=1",
    "/server_info": "VLLM_SERVER_DEV_MODE=1",
    "/inference/v1/generate": "--enable-scale-out",
    "/v1/chat/completions/render": "--enable-scale-out",
}
SERVER_INFO_SECONDS = 120.0  # a server looks at its environment when it is first asked
MISSING_LOGPROB = -9999.0
REASONS_TO_END = {"stop", "length"}


@dataclass(frozen=True)
class VLLMServerKind:
    """A vLLM server as a run needs it.

    Attributes:
        model: path, or name on the Hub.
        config: of the model.
        least_length: tokens that prompt and completion may have together, as far as that is known beforehand.
        logprobs_mode: of log-probabilities that are like the trainer's.
        image_settings: what the run has changed at the image processor.
    """

    model: str
    config: PreTrainedConfig
    least_length: int
    logprobs_mode: str
    image_settings: Mapping[str, object] = field(default_factory=dict)

    @property
    def start_command(self) -> str:
        """Return a command line that starts such a server."""
        dtype = str(self.config.dtype or "auto").removeprefix("torch.")
        images = f" --mm-processor-kwargs {shlex.quote(json.dumps(self.image_settings))}" if self.image_settings else ""
        return (
            f"VLLM_SERVER_DEV_MODE=1 vllm serve {shlex.quote(self.model)} --dtype {dtype} --enable-scale-out "
            f"--logprobs-mode {self.logprobs_mode}{images} --max-model-len <at least {self.least_length}>"
        )

    def check(self, client: ServerClient) -> None:
        """Check version, endpoints, log-probabilities and model of a server."""
        self._check_version(client)
        missing = {path: setting for path, setting in ENDPOINTS.items() if not client.has_endpoint(path)}
        if missing:
            settings = " and ".join(dict.fromkeys(missing.values()))
            raise self._error(client, f"it lacks {', '.join(missing)}", f"start it with {settings}")
        info = client.get("/server_info?config_format=json", key="vllm_config", seconds=SERVER_INFO_SECONDS)
        mode = info["model_config"]["logprobs_mode"]
        if mode != self.logprobs_mode:
            expected = f"the settings of sampling want --logprobs-mode {self.logprobs_mode}"
            raise self._error(client, f"--logprobs-mode is {mode}", expected)
        self._check_model(client)
        device = info["device_config"]["device"]
        if device == "cpu" and self.config.get_text_config().tie_word_embeddings:
            why = "vLLM on a CPU does not renew the output layer of a model with tied embeddings"
            raise self._error(client, "it runs on a CPU", f"{why}; use a GPU or a model without them")

    def _check_version(self, client: ServerClient) -> None:
        try:
            version = str(client.get("/version", key="version"))
        except ServerRefusalError as error:
            raise self._error(client, f"/version: {error!s:.200}", "is this the URL of a vLLM server?") from error
        numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
        if numbers < LEAST_VERSION:
            least = ".".join(map(str, LEAST_VERSION))
            raise self._error(client, f"it is vLLM {version}", f"expected {least} or newer")
        if not version.startswith(TESTED_VERSIONS):
            logger.warning("%s is vLLM %s; tested are %s", client.name, version, ", ".join(TESTED_VERSIONS))

    def _check_model(self, client: ServerClient) -> None:
        models = client.get("/v1/models", key="data")
        names = {str(model[key]) for model in models for key in ("id", "root") if model.get(key)}
        if not {self.model, Path(self.model).name} & {*names, *(Path(name).name for name in names)}:
            raise self._error(client, f"it serves {', '.join(sorted(names))}", f"expected {self.model}")
        longest = min(model["max_model_len"] for model in models)
        if longest < self.least_length:
            expected = f"prompt and completion may have {self.least_length} tokens or more"
            raise self._error(client, f"--max-model-len is {longest}", expected)

    def _error(self, client: ServerClient, finding: str, advice: str) -> ValueError:
        return ValueError(f"server {client.name}: {finding}; {advice}. Start it like this: {self.start_command}")

    def session(self, client: ServerClient) -> str:
        """Return the version of the server's weights, which a restart forgets."""
        return str(client.get("/weight_info", key="weight_version"))

    def load(self, client: ServerClient, folder: Path, session: str) -> None:
        """Load weights, and forget the prefixes and image embeddings that were computed with the former ones."""
        client.post("/update_weight_version", {"new_version": f"incomplete-{session}"})
        try:
            client.post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
        except ServerUnavailableError as error:
            raise ServerUnavailableError(f"{error} (the server has to see the folder {folder})") from error
        if not client.post("/reset_prefix_cache", key="success"):
            raise ServerUnavailableError(f"{client.name} cannot forget prefixes: requests are under way")
        client.post("/reset_encoder_cache")
        client.post("/update_weight_version", {"new_version": session})


class TokenRequest(NamedTuple):
    """Completions of one prompt that are asked for together."""

    prompt: EncodedPrompt
    body: JsonObject


class TokenAnswer(NamedTuple):
    """Tokens of completions, and their log-probabilities."""

    ids: list[list[int]]
    logprobs: list[list[float | None]]


class VLLMServerEngine:
    """Completes prompts with vLLM servers, whose weights are a copy of the policy's.

    Every process of a run has one, and sends its own requests to all servers.

    Args:
        urls: of the servers.
        encoder: encoded the prompts.
        settings: of sampling.
        model: path, or name on the Hub, of what the servers were started with.
        config: of the model.
        folder: for weights; every process and server sees it, and nothing else is in it.
        run_id: the same in every process of the run, and different in every run.
        is_main: whether this process writes the weights.
        wait_for_everyone: returns when all processes have called it.
        max_model_length: tokens of prompt and completion; None if it is not known beforehand.
        image_settings: of the image processor, where the run's differ from the model's (`changed_image_settings`).
        wait_seconds: that a server may be away before the run stops.
        request_seconds: that a request may take; a server that takes longer hangs.
        concurrency: requests of this process to one server at a time.
        api_key: of the servers, if they want one.

    Raises:
        ValueError: a server has not the version, flags or model that the run needs.
        TimeoutError: a server is not there within `wait_seconds`.
    """

    needs_whole_groups = False
    has_own_weights = True

    def __init__(
        self,
        urls: Sequence[str],
        *,
        encoder: PromptEncoder,
        settings: SamplingSettings,
        model: str,
        config: PreTrainedConfig,
        folder: str | Path,
        run_id: str,
        is_main: bool = True,
        wait_for_everyone: Callable[[], object] = lambda: None,
        max_model_length: int | None = None,
        image_settings: Mapping[str, object] | None = None,
        wait_seconds: float = 600.0,
        request_seconds: float = 600.0,
        concurrency: int = 64,
        api_key: str | None = None,
    ) -> None:
        length = max_model_length or settings.max_new_tokens + 1
        kind = VLLMServerKind(model, config, length, settings.logprobs_mode, image_settings or {})
        clients = [ServerClient(url, seconds=request_seconds, api_key=api_key) for url in urls]
        self.kind, self.settings = kind, settings
        self.pool = ServerPool(clients, kind, wait_seconds=wait_seconds, concurrency=concurrency)
        files = WeightFiles(folder, config)
        self.transfer = FileTransfer(
            self.pool, files, run_id=run_id, is_main=is_main, wait_for_everyone=wait_for_everyone
        )
        self.image_token_id = image_token_id(encoder)
        self.images = ImageRenderer(self.pool.map, self.image_token_id, kind.image_settings)
        self.pool.check()

    def generate(
        self, prompts: Sequence[EncodedPrompt], *, max_new_tokens: int | None = None, is_greedy: bool = False
    ) -> Generation:
        """Return one completion of each prompt; those of the same prompt are asked for together.

        Raises:
            ValueError: a prompt has a video, or images that the server expands otherwise; a server refuses a request.
            TimeoutError: no server is there within the limit.
        """
        unique = unique_prompts(prompts)
        rows: dict[int, list[int]] = {id(prompt): [] for prompt in unique}
        for row, prompt in enumerate(prompts):
            rows[id(prompt)].append(row)
        images = self._render(unique)
        requests = []
        for prompt in unique:
            n = 1 if is_greedy else len(rows[id(prompt)])  # greedy completions are all alike, and vLLM wants one
            sampling = self._sampling(n, max_new_tokens, is_greedy=is_greedy)
            fields = image_fields(prompt, images[id(prompt)], self.image_token_id)
            requests.append(TokenRequest(prompt, {**fields, "sampling_params": sampling}))
        answers = self.pool.map(self._complete, requests)
        ids: list[list[int]] = [[] for _ in prompts]
        logprobs: list[list[float | None]] = [[] for _ in prompts]
        for prompt, answer in zip(unique, answers, strict=True):
            for number, row in enumerate(rows[id(prompt)]):
                choice = number % len(answer.ids)
                ids[row], logprobs[row] = list(answer.ids[choice]), list(answer.logprobs[choice])
        return Generation(ids, logprobs)

    def _render(self, prompts: Sequence[EncodedPrompt]) -> dict[int, list[RenderedImage]]:
        for prompt in prompts:
            if prompt.videos:
                where = prompt.videos[0].where or "a prompt"
                raise ValueError(
                    f"{where}: a video, which vLLM's server does not see as the trainer does (vLLM issues 46817 and "
                    "46988 are of Qwen's videos); use --rollout_engine transformers"
                )
        images = self.images.render(prompts)
        return {id(prompt): each for prompt, each in zip(prompts, images, strict=True)}

    def _sampling(self, n: int, max_new_tokens: int | None, *, is_greedy: bool) -> JsonObject:
        sampling: dict[str, Any] = self.settings.for_vllm(n, max_new_tokens, is_greedy=is_greedy)
        if self.settings.regex is not None:
            sampling["structured_outputs"] = {"regex": self.settings.regex}
        # The stop tokens are the run's alone: the model's own ones are among them, or were left out on purpose.
        return {"ignore_eos": True, "detokenize": False, **sampling}

    def _complete(self, client: ServerClient, request: TokenRequest) -> TokenAnswer:
        """Return the completions that a server sends for a prompt."""
        answer = client.post("/inference/v1/generate", {"request_id": uuid.uuid4().hex, **request.body})
        expected = request.body["sampling_params"]["n"]
        choices = sorted(answer.get("choices", ()), key=lambda choice: choice["index"])
        reasons = {choice["finish_reason"] for choice in choices}
        if len(choices) != expected or not reasons <= REASONS_TO_END or not all(each["token_ids"] for each in choices):
            raise ServerUnavailableError(
                f"{client.name} sent {len(choices)} completions, expected {expected}; they ended with {reasons}"
            )
        ids, seen = request.prompt.input_ids, answer.get("prompt_token_ids") or []
        if "content_parts" in request.body and seen != ids:
            raise ValueError(
                f"{client.name} expands the images of a prompt to {len(seen)} tokens in all, expected the {len(ids)} "
                f"of the trainer. Start it like this: {self.kind.start_command}"
            )
        for choice in choices:
            self._check_length(client, request, choice)
        return TokenAnswer([choice["token_ids"] for choice in choices], [_logprobs(choice) for choice in choices])

    def _check_length(self, client: ServerClient, request: TokenRequest, choice: JsonObject) -> None:
        """Check that a completion was not cut by --max-model-len, which vLLM does without a word."""
        length, most = len(choice["token_ids"]), request.body["sampling_params"]["max_tokens"]
        if choice["finish_reason"] == "length" and length < most:
            raise ValueError(
                f"{client.name} ended a completion after {length} of {most} tokens, since its prompt has "
                f"{len(request.prompt.input_ids)}: --max-model-len is too small. Start it like this: "
                f"{self.kind.start_command}"
            )

    def update_weights(self, weights: Iterable[NamedTensor]) -> None:
        """Let the servers take over the weights, and forget what was computed with the former ones.

        Raises:
            TimeoutError: no server could load them within the limit.
        """
        self.transfer.update(weights)

    def close(self) -> None:
        """Forget the images' features; servers and weights stay as they are."""
        self.images.clear()


def image_token_id(encoder: PromptEncoder) -> int:
    """Return the token that stands for one embedding of an image; -1 without images, which is no token."""
    token = getattr(encoder.base_processor, "image_token_id", None)
    if token is None and (name := getattr(encoder.base_processor, "image_token", None)) is not None:
        token = encoder.tokenizer.convert_tokens_to_ids(name)
    return token if isinstance(token, int) else -1


def _logprobs(choice: JsonObject) -> list[float | None]:
    values = [token["logprob"] for token in choice["logprobs"]["content"]]
    return [None if value <= MISSING_LOGPROB else value for value in values]
