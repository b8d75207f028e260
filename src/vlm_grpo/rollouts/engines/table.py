"""The rollout engines by name, and what a run hands to the one that it makes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import nn
from torch.distributed import ProcessGroup, new_subgroups_by_enumeration
from transformers import ProcessorMixin

from vlm_grpo.import_utils import is_file_spec, load_from_file
from vlm_grpo.model_utils import model_config
from vlm_grpo.registry import Registry
from vlm_grpo.rollouts.encoder import PromptEncoder
from vlm_grpo.rollouts.engines.engine import RolloutEngine
from vlm_grpo.rollouts.engines.sampling import SamplingSettings
from vlm_grpo.rollouts.engines.summaries import DEFAULT, SUMMARIES
from vlm_grpo.rollouts.ranks import Ranks


@dataclass(frozen=True)
class EngineRun:
    """What an engine is made from.

    Attributes:
        model: the policy, without its wrapper; read for its kind alone, not for its weights.
        model_name: folder or Hub name that it was loaded from.
        processor: with the pixel limits of the run.
        encoder: encodes the prompts.
        sampling: how tokens are chosen.
        dtype: in which the policy computes.
        ranks: collectives of the run.
        folder: for files of the engine.
        seed: of the run.
        sends_weights: whether the engine will be given weights; otherwise it keeps those of the model's files.
        max_model_length: tokens of prompt and completion; None is what the model takes.
        max_sequences: completions that are sampled at a time.
        urls: of servers; none for an engine in this process.
        wait: seconds that a server which does not answer is waited for.
        transfer: how servers get weights, "folder", "adapter" or "nccl".
        nccl_port: first port of the transfer by NCCL.
        tensor_parallel_size: processes, each with a GPU, that share an engine in their processes.
        memory_fraction: of the GPU's memory, for an engine in this process.
        sleeps: whether an engine in this process frees its memory while the policy is trained.
        implementation: of the model, as vLLM's `model_impl`.
        trusts_remote_code: whether code in the model's folder may run.
        options: further arguments of the engine.
    """

    model: nn.Module
    model_name: str
    processor: ProcessorMixin
    encoder: PromptEncoder
    sampling: SamplingSettings
    dtype: torch.dtype
    ranks: Ranks
    folder: Path
    seed: int = 0
    sends_weights: bool = True
    max_model_length: int | None = None
    max_sequences: int | None = None
    urls: Sequence[str] = ()
    wait: float = 600.0
    transfer: str = "folder"
    nccl_port: int = 51216
    tensor_parallel_size: int = 1
    memory_fraction: float = 0.9
    sleeps: bool = False
    implementation: str = "auto"
    trusts_remote_code: bool = False
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class EngineEntry:
    """An engine in the table: one line about it, and how it is made; None is the policy itself."""

    summary: str
    make: Callable[[EngineRun], RolloutEngine] | None


def make_vllm(run: EngineRun) -> RolloutEngine:
    """Return vLLM in this process, or over HTTP where there are URLs.

    Raises:
        ImportError: vLLM is not installed, which only an engine in this process needs.
        ValueError: the model, or the number of processes, is not for it.
    """
    check_weights(run)
    if run.urls:
        from vlm_grpo.rollouts.engines.vllm_server import VLLMServerEngine

        return VLLMServerEngine.from_run(run)
    from vlm_grpo.rollouts.engines.model_folder import link_model
    from vlm_grpo.rollouts.engines.vllm import VLLMEngine

    folder = run.folder / f"model_{run.ranks.index}"
    return VLLMEngine(
        str(link_model(run.model_name, run.processor, folder)),
        run.sampling,
        dtype=str(run.dtype).removeprefix("torch."),
        sleeps=run.sleeps,
        group=tensor_parallel_group(run.ranks, run.tensor_parallel_size),
        options={
            "seed": run.seed + run.ranks.index // run.tensor_parallel_size,  # the processes of an engine sample alike
            "tensor_parallel_size": run.tensor_parallel_size,
            "gpu_memory_utilization": run.memory_fraction,
            "max_model_len": run.max_model_length,
            "max_num_seqs": run.max_sequences,
            "model_impl": run.implementation,
            "trust_remote_code": run.trusts_remote_code,
            **({"distributed_executor_backend": "external_launcher"} if run.ranks.count > 1 else {}),
            **run.options,
        },
    )


def make_sglang(run: EngineRun) -> RolloutEngine:
    """Return SGLang over HTTP.

    Raises:
        ValueError: there is no URL, or the model is not for it.
    """
    from vlm_grpo.rollouts.engines.sglang import SGLangEngine

    check_weights(run)
    return SGLangEngine.from_run(run)


def check_weights(run: EngineRun) -> None:
    """Check that an engine can be given the weights of the policy.

    Raises:
        ValueError: they are quantized, or the engine would keep a copy of tied embeddings.
    """
    if getattr(run.model, "is_quantized", False) or getattr(model_config(run.model), "quantization_config", None):
        raise ValueError(
            "a rollout engine takes the weights of the policy as they are, and these are quantized: leave out "
            "--load_in_4bit and --load_in_8bit, or --rollout_engine"
        )
    is_tied = bool(getattr(model_config(run.model).get_text_config(), "tie_word_embeddings", False))
    if is_tied and run.sends_weights and not run.urls and run.ranks.device.type == "cpu":
        raise ValueError(
            "vLLM on a CPU has a head of its own where a model ties it to the embeddings, and would sample with the "
            "first one for ever: use a model with tie_word_embeddings false, a GPU, or --rollout_engine transformers"
        )


def tensor_parallel_group(ranks: Ranks, size: int) -> ProcessGroup | None:
    """Return the processes that share an engine with this one; None where each has one of its own.

    Raises:
        ValueError: the processes cannot be divided into groups of this size.
    """
    if ranks.count % size:
        raise ValueError(f"--vllm_tensor_parallel_size {size} must divide the number of processes, {ranks.count}")
    if size == 1:
        return None
    groups = [list(range(start, start + size)) for start in range(0, ranks.count, size)]
    group = new_subgroups_by_enumeration(groups)[0]
    assert isinstance(group, ProcessGroup)  # every process is in one
    return group


ENGINES: Registry[EngineEntry] = Registry(
    "rollout engine",
    {
        DEFAULT: EngineEntry(SUMMARIES[DEFAULT], None),
        "vllm": EngineEntry(SUMMARIES["vllm"], make_vllm),
        "sglang": EngineEntry(SUMMARIES["sglang"], make_sglang),
    },
)


def engine_entry(name: str) -> EngineEntry:
    """Return the engine of that name, or the class in `file.py:Class`, which is called with the `EngineRun`.

    Raises:
        KeyError: there is no such engine.
        ValueError: the file or the class is missing, or lacks a method of `RolloutEngine`.
    """
    if not is_file_spec(name):
        return ENGINES[name]
    kind = load_from_file("rollout engine", name)
    missing = [method for method in ("generate", "update_weights", "close") if not hasattr(kind, method)]
    if not inspect.isclass(kind) or missing:
        raise ValueError(f"--rollout_engine {name}: must be a class with generate, update_weights and close")
    return EngineEntry(inspect.getdoc(kind) or "", cast("Callable[[EngineRun], RolloutEngine]", kind))


def register_engine(name: str, make: Callable[[EngineRun], RolloutEngine], summary: str = "") -> None:
    """Add a rollout engine to the table.

    Raises:
        ValueError: the name is taken.
    """
    ENGINES.register(name, EngineEntry(summary, make))
