"""Generation by vLLM servers over HTTP; this process needs no vLLM.

Prompts are continued by the exact tokens of the trainer, with the features that the server makes of their images
(`server_images.py`). Weights go through a folder that both sides see (`weight_files.py`).
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import shlex
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import AutoProcessor, PreTrainedConfig

from vlm_grpo.model_utils import model_config
from vlm_grpo.records import JsonObject, required
from vlm_grpo.rollouts.encoder import EncodedPrompt, PromptEncoder
from vlm_grpo.rollouts.engines.adapter_files import ADAPTER_PREFIX, AdapterFiles, check_adapter
from vlm_grpo.rollouts.engines.engine import Generation, NamedTensor
from vlm_grpo.rollouts.engines.nccl_transfer import FIRST_PORT, NCCLTransfer, check_nccl
from vlm_grpo.rollouts.engines.sampling import SamplingSettings
from vlm_grpo.rollouts.engines.server_groups import (
    PromptGroup,
    SampledTokens,
    check_length,
    fault_of,
    group_rows,
    in_row_order,
)
from vlm_grpo.rollouts.engines.server_images import ImageRenderer, changed_image_settings, image_fields, image_token_id
from vlm_grpo.rollouts.engines.servers import ServerClient, ServerPool, ServerRefusalError, ServerUnavailableError
from vlm_grpo.rollouts.engines.weight_files import Everyone, FileTransfer, WeightFiles

if TYPE_CHECKING:
    from vlm_grpo.rollouts.engines.table import EngineRun

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
LOAD_ADAPTER = "/v1/load_lora_adapter"
FIRST_VERSION = "default"  # of the weights of a server that was started just now
TRANSFERS = ("folder", "adapter", "nccl")
ADAPTER = "policy"  # the name under which a server has it
ADAPTER_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM has room for
SERVER_INFO_SECONDS = 120.0  # a server looks at its environment when it is first asked
MISSING_LOGPROB = -9999.0


@dataclass(frozen=True)
class VLLMServerKind:
    """A vLLM server as a run needs it.

    Attributes:
        model: path, or name on the Hub.
        config: of the model.
        least_length: tokens that prompt and completion may have together, as far as that is known beforehand.
        logprobs_mode: of log-probabilities that are like the trainer's.
        dtype: in which the policy computes.
        transfer: how servers get weights, "folder", "adapter" or "nccl".
        adapter_rank: of the adapter, where it is sent alone.
        image_settings: what the run has changed at the image processor.
    """

    model: str
    config: PreTrainedConfig
    least_length: int
    logprobs_mode: str
    dtype: str = "auto"
    image_settings: Mapping[str, object] = field(default_factory=dict)
    transfer: str = "folder"
    adapter_rank: int = 0

    @property
    def start_command(self) -> str:
        """Return a command line that starts such a server."""
        images = f" --mm-processor-kwargs {shlex.quote(json.dumps(self.image_settings))}" if self.image_settings else ""
        nccl = """ --weight-transfer-config '{"backend": "nccl"}'""" if self.transfer == "nccl" else ""
        is_adapter = self.transfer == "adapter"
        rank = next((each for each in ADAPTER_RANKS if each >= self.adapter_rank), self.adapter_rank)
        adapter = f" --enable-lora --max-lora-rank {rank}" if is_adapter else ""
        variables = "VLLM_SERVER_DEV_MODE=1" + (" VLLM_ALLOW_RUNTIME_LORA_UPDATING=1" if is_adapter else "")
        model = f"{shlex.quote(self.model)} --dtype {self.dtype} --max-model-len <at least {self.least_length}>"
        flags = f"--enable-scale-out --logprobs-mode {self.logprobs_mode}{images}{nccl}{adapter}"
        return f"{variables} vllm serve {model} {flags}"

    def check(self, client: ServerClient) -> None:
        """Check version, endpoints, log-probabilities and model of a server."""
        self._check_version(client)
        further = {LOAD_ADAPTER: "VLLM_ALLOW_RUNTIME_LORA_UPDATING=1"} if self.transfer == "adapter" else {}
        endpoints = {**ENDPOINTS, **further}
        missing = {path: setting for path, setting in endpoints.items() if not client.has_endpoint(path)}
        if missing:
            settings = " and ".join(dict.fromkeys(missing.values()))
            raise self._error(client, f"it lacks {', '.join(missing)}", f"start it with {settings}")
        info = client.get("/server_info?config_format=json", key="vllm_config", seconds=SERVER_INFO_SECONDS)
        mode = info["model_config"]["logprobs_mode"]
        if mode != self.logprobs_mode:
            expected = f"the settings of sampling want --logprobs-mode {self.logprobs_mode}"
            raise self._error(client, f"--logprobs-mode is {mode}", expected)
        lora = info.get("lora_config") or {"max_lora_rank": 0}
        if self.transfer == "adapter" and lora["max_lora_rank"] < self.adapter_rank:
            finding = f"it takes adapters up to rank {lora['max_lora_rank']}"
            raise self._error(client, finding, f"expected {self.adapter_rank} or more")
        self._check_model(client)
        dtype = str(info["model_config"]["dtype"]).removeprefix("torch.")
        if self.dtype not in ("auto", dtype):
            logger.warning(
                "%s computes in %s, the policy in %s: --dtype %s", client.name, dtype, self.dtype, self.dtype
            )
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
        longest = min(model["max_model_len"] for model in models if model["max_model_len"] is not None)  # no adapters
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
        if self.transfer == "adapter":
            self._check_base(client)
        client.post("/update_weight_version", {"new_version": f"incomplete-{session}"})
        try:
            if self.transfer == "adapter":
                adapter = {"lora_name": ADAPTER, "lora_path": str(folder), "load_inplace": True}
                client.post_for_text(LOAD_ADAPTER, adapter)
            else:
                client.post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}})
        except ServerUnavailableError as error:
            raise ServerUnavailableError(f"{error} (the server has to see the folder {folder})") from error
        self.finish(client, session)

    def _check_base(self, client: ServerClient) -> None:
        """Check that a server has the weights of its model still, to which an adapter is added."""
        version = self.session(client)
        if version != FIRST_VERSION and not version.removeprefix("incomplete-").startswith(ADAPTER_PREFIX):
            finding = f"its weights are {version!r}, expected those of the model"
            raise self._error(client, finding, "another run has loaded its own; start it again")

    def finish(self, client: ServerClient, session: str) -> None:
        """Let a server forget what it has computed with former weights, and set its session."""
        if not client.post("/reset_prefix_cache", key="success"):
            raise ServerUnavailableError(f"{client.name} cannot forget prefixes: requests are under way")
        client.post("/reset_encoder_cache")
        client.post("/update_weight_version", {"new_version": session})


class TokenRequest(NamedTuple):
    """Completions of a prompt that are asked for together, and what the server is sent."""

    group: PromptGroup
    body: JsonObject


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
        dtype: in which the policy computes, such as bfloat16.
        max_model_length: tokens of prompt and completion; None if it is not known beforehand.
        image_settings: of the image processor, where the run's differ from the model's (`changed_image_settings`).
        wait_seconds: that a server may be away before the run stops.
        keeps_weights: whether the servers' own weights are meant, and none are sent.
        request_seconds: that a request may take; a server that takes longer hangs.
        concurrency: requests of this process to one server at a time.
        api_key: of the servers, if they want one.
        transfer: how servers get weights: "folder"; "adapter", which is alone in the folder; "nccl".
        adapter_rank: of the adapter, where it is sent alone.
        nccl_device: the GPU from which weights are sent over NCCL.
        nccl_port: of this machine, for the first server's group; each further one takes the next.

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
        dtype: str = "auto",
        max_model_length: int | None = None,
        image_settings: Mapping[str, object] | None = None,
        wait_seconds: float = 600.0,
        keeps_weights: bool = False,
        request_seconds: float = 600.0,
        concurrency: int = 64,
        api_key: str | None = None,
        transfer: str = "folder",
        adapter_rank: int = 0,
        nccl_device: torch.device | None = None,
        nccl_port: int = FIRST_PORT,
    ) -> None:
        if transfer not in TRANSFERS:
            raise ValueError(f"--rollout_transfer must be one of {', '.join(TRANSFERS)}, got {transfer!r}")
        length = max_model_length or settings.max_new_tokens + 1
        images = image_settings or {}
        kind = VLLMServerKind(model, config, length, settings.logprobs_mode, dtype, images, transfer, adapter_rank)
        clients = [ServerClient(url, seconds=request_seconds, api_key=api_key) for url in urls]
        self.kind, self.settings = kind, settings
        self.pool = ServerPool(
            clients, kind, wait_seconds=wait_seconds, concurrency=concurrency, keeps_weights=keeps_weights
        )
        everyone = Everyone(run_id, is_main, wait_for_everyone)
        self.transfer = self._open_transfer(WeightFiles(folder, config), everyone, nccl_device, nccl_port)
        self.image_token_id = image_token_id(encoder)
        self.images = ImageRenderer(self.pool.map, self.image_token_id, kind.image_settings)
        self.pool.check()

    def _open_transfer(
        self, files: WeightFiles, everyone: Everyone, nccl_device: torch.device | None, port: int
    ) -> FileTransfer | NCCLTransfer:
        if self.kind.transfer == "nccl":
            device = required(nccl_device, "the GPU from which weights are sent over NCCL")
            check_nccl(device)
            return NCCLTransfer(self.pool, everyone, finish=self.kind.finish, device=device, first_port=port)
        is_adapter = self.kind.transfer == "adapter"
        return FileTransfer(self.pool, AdapterFiles(files.folder) if is_adapter else files, everyone)

    @classmethod
    def from_run(cls, run: EngineRun) -> VLLMServerEngine:
        """Return the engine of a run; every process takes part."""
        rank = check_adapter(run.model).r if run.transfer == "adapter" else 0
        arguments = server_arguments(run)
        arguments |= {"nccl_device": run.ranks.device, "nccl_port": run.nccl_port}
        return cls(run.urls, transfer=run.transfer, adapter_rank=rank, **arguments)

    def generate(
        self, prompts: Sequence[EncodedPrompt], *, max_new_tokens: int | None = None, is_greedy: bool = False
    ) -> Generation:
        """Return one completion of each prompt; those of the same prompt are asked for together.

        Raises:
            ValueError: a prompt has a video, or images that the server expands otherwise; a server refuses a request.
            TimeoutError: no server is there within the limit.
        """
        groups = group_rows(prompts, is_greedy=is_greedy)
        images = self.images.render([group.prompt for group in groups])
        requests = []
        for group, each in zip(groups, images, strict=True):
            sampling = self._sampling(group.n, max_new_tokens, is_greedy=is_greedy)
            fields = image_fields(group.prompt, each, self.image_token_id)
            requests.append(TokenRequest(group, {**fields, "sampling_params": sampling}))
        return in_row_order(groups, self.pool.map(self._complete, requests))

    def _sampling(self, n: int, max_new_tokens: int | None, *, is_greedy: bool) -> JsonObject:
        sampling: dict[str, Any] = self.settings.for_vllm(n, max_new_tokens, is_greedy=is_greedy)
        if self.settings.regex is not None:
            sampling["structured_outputs"] = {"regex": self.settings.regex}
        return {"detokenize": False, **sampling}

    def _complete(self, client: ServerClient, request: TokenRequest) -> list[SampledTokens]:
        """Return the completions that a server sends for a prompt."""
        group, sampling = request.group, request.body["sampling_params"]
        model = {"model": ADAPTER} if self.kind.transfer == "adapter" else {}
        answer = client.post("/inference/v1/generate", {"request_id": uuid.uuid4().hex, **model, **request.body})
        choices = sorted(answer.get("choices", ()), key=lambda choice: choice["index"])
        completions = [SampledTokens(each["token_ids"], _logprobs(each), each["finish_reason"]) for each in choices]
        fault = fault_of(completions, sampling["n"])
        if fault is not None:
            raise ServerUnavailableError(f"{client.name}: {fault}")
        ids, seen = group.prompt.input_ids, answer.get("prompt_token_ids") or []
        advice = f"Start it like this: {self.kind.start_command}"
        if "content_parts" in request.body and seen != ids:
            raise ValueError(
                f"{client.name} expands the images of a prompt to {len(seen)} tokens in all, expected the {len(ids)} "
                f"of the trainer. {advice}"
            )
        check_length(completions, sampling["max_tokens"], len(ids), advice)
        return completions

    def update_weights(self, weights: Iterable[NamedTensor]) -> None:
        """Let the servers take over the weights, and forget what was computed with the former ones.

        Raises:
            TimeoutError: no server could load them within the limit.
        """
        self.transfer.update(weights)

    def close(self) -> None:
        """Forget the images' features; servers and weights stay as they are."""
        self.images.clear()


def server_arguments(run: EngineRun) -> dict[str, Any]:
    """Return the arguments of an engine on servers that say how a run is; every process takes part."""
    config, image_processor = model_config(run.model), getattr(run.processor, "image_processor", None)
    image_settings: dict[str, object] = {}
    if image_processor is not None:
        options = {"trust_remote_code": run.trusts_remote_code}
        original: Any = AutoProcessor.from_pretrained(run.model_name, **options)
        image_settings = changed_image_settings(image_processor, original.image_processor)
    numbers = run.ranks.gather(torch.tensor([secrets.randbits(62)], device=run.ranks.device))
    return {
        "encoder": run.encoder,
        "settings": run.sampling,
        "model": run.model_name,
        "config": config,
        "folder": run.folder / "weights",
        "run_id": f"{int(numbers[0]):x}",  # the main process's
        "is_main": run.ranks.index == 0,
        "wait_for_everyone": run.ranks.accelerator.wait_for_everyone,
        "dtype": str(run.dtype).removeprefix("torch."),
        "max_model_length": run.max_model_length,
        "image_settings": image_settings,
        "wait_seconds": run.wait,
        "keeps_weights": not run.sends_weights,
    }


def _logprobs(choice: JsonObject) -> list[float | None]:
    values = [token["logprob"] for token in choice["logprobs"]["content"]]
    return [None if value <= MISSING_LOGPROB else value for value in values]
