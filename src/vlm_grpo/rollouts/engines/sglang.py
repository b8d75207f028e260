"""Generation by SGLang servers over HTTP. It was tested against SGLang's own request classes, not a real server.

SGLang on a CPU needs a build of its kernels that no registry has, so no server was at hand. Weights go through a folder
that both sides see (`weight_files.py`), as for vLLM. Two things are different:

- Images are sent with each request. SGLang expands them itself, in tokens that some of its processors decode to text
  and tokenise again; so it is asked for the prompt that it saw, and one that differs from the trainer's is an error.
- Loading weights leaves its cache of image embeddings as it is. Their keys are given here, and name the weights.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from transformers import PreTrainedConfig

from vlm_grpo.data.images import open_image
from vlm_grpo.records import JsonObject
from vlm_grpo.rollouts.encoder import EncodedPrompt, PromptEncoder
from vlm_grpo.rollouts.engines.engine import Generation, NamedTensor
from vlm_grpo.rollouts.engines.sampling import SamplingSettings
from vlm_grpo.rollouts.engines.server_groups import (
    PromptGroup,
    SampledTokens,
    check_length,
    fault_of,
    group_rows,
    in_row_order,
)
from vlm_grpo.rollouts.engines.server_images import image_token_id, image_url
from vlm_grpo.rollouts.engines.servers import ServerClient, ServerPool, ServerRefusalError, ServerUnavailableError
from vlm_grpo.rollouts.engines.vllm_server import server_arguments
from vlm_grpo.rollouts.engines.weight_files import Everyone, FileTransfer, WeightFiles

if TYPE_CHECKING:
    from vlm_grpo.rollouts.engines.table import EngineRun

LEAST_VERSION = (0, 5, 23)  # whose request classes the tests know
SERVER_INFO_SECONDS = 60.0
SERVER_NAMES = {"max_tokens": "max_new_tokens", "structured_outputs": "json_schema"}
NO_CACHE = "SGLANG_VLM_CACHE_SIZE_MB=0"  # of image embeddings, should SGLang not take the keys that it is given


@dataclass(frozen=True)
class SGLangServerKind:
    """An SGLang server as a run needs it.

    Attributes:
        model: path, or name on the Hub.
        config: of the model.
        least_length: tokens that prompt and completion may have together, as far as that is known beforehand.
        dtype: in which the policy computes.
    """

    model: str
    config: PreTrainedConfig
    least_length: int
    dtype: str = "auto"

    @property
    def start_command(self) -> str:
        """Return a command line that starts such a server."""
        return (
            f"{NO_CACHE} python -m sglang.launch_server --model-path {shlex.quote(self.model)} --dtype {self.dtype} "
            f"--context-length <at least {self.least_length}>"
        )

    def check(self, client: ServerClient) -> None:
        """Check version and model of a server."""
        try:
            version = str(client.get("/server_info", key="version", seconds=SERVER_INFO_SECONDS))
        except ServerRefusalError as error:
            raise self._error(
                client, f"/server_info: {error!s:.200}", "is this the URL of an SGLang server?"
            ) from error
        if tuple(int(number) for number in re.findall(r"\d+", version)[:3]) < LEAST_VERSION:
            least = ".".join(map(str, LEAST_VERSION))
            raise self._error(client, f"it is SGLang {version}", f"expected {least} or newer")
        name = str(client.get("/model_info", key="tokenizer_path"))  # its model_path changes with the weights
        if Path(name).name != Path(self.model).name:
            raise self._error(client, f"it serves {name}", f"expected {self.model}")
        longest = client.get("/v1/models", key="data")[0]["max_model_len"]
        if longest < self.least_length:
            expected = f"prompt and completion may have {self.least_length} tokens or more"
            raise self._error(client, f"--context-length is {longest}", expected)

    def _error(self, client: ServerClient, finding: str, advice: str) -> ValueError:
        return ValueError(f"server {client.name}: {finding}; {advice}. Start it like this: {self.start_command}")

    def session(self, client: ServerClient) -> str:
        """Return the version of the server's weights, which a restart forgets."""
        return str(client.get("/model_info", key="weight_version"))

    def load(self, client: ServerClient, folder: Path, session: str) -> None:
        """Load weights; SGLang forgets the prefixes that were computed with the former ones."""
        client.post("/update_weight_version", {"new_version": f"incomplete-{session}"})
        body = {"model_path": str(folder), "weight_version": session, "flush_cache": True}
        try:
            is_done = client.post("/update_weights_from_disk", body, key="success")
        except ServerRefusalError as error:  # also where it does not see the folder yet
            raise ServerUnavailableError(f"{error} (the server has to see the folder {folder})") from error
        if not is_done:
            raise ServerUnavailableError(f"{client.name} has not loaded {folder}")


class SGLangRequest(NamedTuple):
    """Completions of a prompt that are asked for together, and what the server is sent."""

    group: PromptGroup
    body: JsonObject


class SGLangEngine:
    """Completes prompts with SGLang servers, whose weights are a copy of the policy's.

    It has not met a real server; see the module. Every process of a run has one.

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
        dtype: in which the policy computes, such as bfloat16.
        max_model_length: tokens of prompt and completion; None if it is not known beforehand.
        image_settings: of the image processor, where the run's differ from the model's.
        wait_seconds: that a server may be away before the run stops.
        keeps_weights: whether the servers' own weights are meant, and none are sent.
        request_seconds: that a request may take; a server that takes longer hangs.
        concurrency: requests of this process to one server at a time.
        api_key: of the servers, if they want one.

    Raises:
        ValueError: a server has not the version or model that the run needs.
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
        dtype: str = "auto",
        max_model_length: int | None = None,
        image_settings: Mapping[str, object] | None = None,
        wait_seconds: float = 600.0,
        keeps_weights: bool = False,
        request_seconds: float = 600.0,
        concurrency: int = 64,
        api_key: str | None = None,
    ) -> None:
        self.kind = SGLangServerKind(model, config, max_model_length or settings.max_new_tokens + 1, dtype)
        self.settings, self.image_settings = settings, dict(image_settings or {})
        clients = [ServerClient(url, seconds=request_seconds, api_key=api_key) for url in urls]
        self.pool = ServerPool(
            clients, self.kind, wait_seconds=wait_seconds, concurrency=concurrency, keeps_weights=keeps_weights
        )
        everyone = Everyone(run_id, is_main, wait_for_everyone)
        self.transfer = FileTransfer(self.pool, WeightFiles(folder, config), everyone)
        self.image_token_id = image_token_id(encoder)
        self.pool.check()

    @classmethod
    def from_run(cls, run: EngineRun) -> SGLangEngine:
        """Return the engine of a run; every process takes part."""
        return cls(run.urls, **server_arguments(run))

    def generate(
        self, prompts: Sequence[EncodedPrompt], *, max_new_tokens: int | None = None, is_greedy: bool = False
    ) -> Generation:
        """Return one completion of each prompt; those of the same prompt are asked for together.

        Raises:
            ValueError: a prompt has a video, or SGLang saw other tokens than the trainer's; it refuses a request.
            TimeoutError: no server is there within the limit.
        """
        groups = group_rows(prompts, is_greedy=is_greedy)
        requests = []
        for group in groups:
            fields = {"sampling_params": self._sampling(group.n, max_new_tokens, is_greedy=is_greedy)}
            requests.append(SGLangRequest(group, {**self._prompt_fields(group.prompt), **fields}))
        return in_row_order(groups, self.pool.map(self._complete, requests))

    def _sampling(self, n: int, max_new_tokens: int | None, *, is_greedy: bool) -> JsonObject:
        settings = self.settings
        fields = settings.for_vllm(n, max_new_tokens, is_greedy=is_greedy)
        del fields["logprobs"], fields["ignore_eos"]  # which turns SGLang's stop tokens off as well
        renamed = {SERVER_NAMES.get(name, name): value for name, value in fields.items()}
        top_k = settings.top_k if settings.top_k > 0 else -1
        return {**renamed, "top_k": top_k, "regex": settings.regex, "no_stop_trim": True, "skip_special_tokens": False}

    def _prompt_fields(self, prompt: EncodedPrompt) -> JsonObject:
        common: JsonObject = {"return_logprob": True, "return_prompt_token_ids": True, "stream": False}
        if not prompt.refs:
            return {"input_ids": prompt.input_ids, **common}
        urls = [image_url(open_image(ref)) for ref in prompt.refs]
        name = "" if self.pool.weights is None else self.pool.weights.name
        hashes = [blake2b(f"{name} {url}".encode(), digest_size=8).hexdigest() for url in urls]
        images: JsonObject = {"image_data": urls, "mm_hashes": hashes}
        if self.image_settings:
            images["mm_processor_kwargs"] = self.image_settings
        return {"input_ids": self._one_token_for_each(prompt), **images, **common}

    def _one_token_for_each(self, prompt: EncodedPrompt) -> list[int]:
        """Return a prompt's tokens with one image token for each image, which SGLang expands.

        Raises:
            ValueError: other tokens stand within an image's, or images without anything between them.
        """
        ids: list[int] = []
        for token, run in groupby(prompt.input_ids):
            ids += [token] if token == self.image_token_id else list(run)
        count = ids.count(self.image_token_id)
        if count != len(prompt.refs):
            where = next((ref.where for ref in prompt.refs if ref.where), "a prompt")
            raise ValueError(
                f"{where}: {len(prompt.refs)} images in {count} runs of image tokens; SGLang can be given one unbroken "
                "run for each image alone. Use --rollout_engine vllm or transformers for this model"
            )
        return ids

    def _complete(self, client: ServerClient, request: SGLangRequest) -> list[SampledTokens]:
        """Return the completions that a server sends for a prompt."""
        group, sampling = request.group, request.body["sampling_params"]
        answer = client.post("/generate", request.body)
        choices = answer if isinstance(answer, list) else [answer]  # one, or several
        if not all("meta_info" in choice for choice in choices):
            raise ServerUnavailableError(f"{client.name} sent no completions: {answer!s:.200}")
        completions = [_sampled_tokens(choice["meta_info"]) for choice in choices]
        fault = fault_of(completions, sampling["n"])
        if fault is not None:
            raise ServerUnavailableError(f"{client.name}: {fault}")
        ids, seen = group.prompt.input_ids, choices[0].get("prompt_token_ids") or []
        advice = f"Start it like this: {self.kind.start_command}"
        if seen != ids:
            raise ValueError(
                f"{client.name} saw another prompt than the trainer: {len(seen)} tokens, expected {len(ids)}. It "
                "tokenises prompts with images again, or expands images otherwise; use --rollout_engine vllm or "
                f"transformers. {advice}"
            )
        check_length(completions, sampling["max_new_tokens"], len(ids), advice)
        return completions

    def update_weights(self, weights: Iterable[NamedTensor]) -> None:
        """Let the servers take over the weights, and forget what was computed with the former ones.

        Raises:
            TimeoutError: no server could load them within the limit.
        """
        self.transfer.update(weights)

    def close(self) -> None:
        """Do nothing: servers and weights stay as they are."""


def _sampled_tokens(info: JsonObject) -> SampledTokens:
    tokens = info["output_token_logprobs"]  # (log-probability, token, text)
    reason = (info["finish_reason"] or {}).get("type", "none")
    return SampledTokens([token for _, token, _ in tokens], [logprob for logprob, _, _ in tokens], reason)
