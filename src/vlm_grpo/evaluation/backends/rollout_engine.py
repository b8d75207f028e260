"""Generate completions of data rows with a rollout engine: vLLM in this process, or servers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, GenerationConfig, PreTrainedModel, ProcessorMixin

from vlm_grpo.evaluation.backends.hf import HFBackend
from vlm_grpo.evaluation.predictions import EpisodeError
from vlm_grpo.evaluation.sampling_params import SamplingParams
from vlm_grpo.model_utils import model_config
from vlm_grpo.records import required
from vlm_grpo.rollouts.encoder import EncodedPrompt
from vlm_grpo.rollouts.engines.engine import RolloutEngine
from vlm_grpo.rollouts.engines.sampling import SamplingSettings
from vlm_grpo.rollouts.engines.table import ENGINES, EngineRun
from vlm_grpo.rollouts.ranks import Ranks


@dataclass
class EngineBackend(HFBackend):
    """Generates completions with a rollout engine; `model` has a configuration, and no weights.

    A sampled completion depends on what else is sampled with it: engines have one random stream.

    Args:
        engine: has the weights of the model.
    """

    engine: RolloutEngine | None = None

    def generate(self, prompts: Sequence[EncodedPrompt], seeds: Sequence[int], max_new_tokens: int) -> list[list[int]]:
        """Return the completion of each prompt: at most `max_new_tokens`, up to and including the stop token.

        Raises:
            EpisodeError: the engine or its servers cannot complete a prompt.
        """
        engine = required(self.engine, "the engine")
        try:
            return engine.generate(prompts, max_new_tokens=max_new_tokens, is_greedy=self.sampling.is_greedy).ids
        except (ValueError, TimeoutError) as error:
            raise EpisodeError(str(error)) from error


def without_weights(name: str) -> PreTrainedModel:
    """Return a model on the meta device: its configuration, and that of its generation.

    Raises:
        ValueError: the folder is an adapter's.
    """
    if (Path(name) / "adapter_config.json").is_file():
        raise ValueError(
            f"{name} is an adapter, which an engine does not load: merge it into its base model "
            "(`merge_and_unload` of peft), or use --backend local"
        )
    config = AutoConfig.from_pretrained(name)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForImageTextToText.from_config(config)
    model.generation_config = GenerationConfig.from_pretrained(name)
    return model


def make_engine(
    backend: HFBackend,
    engine: str,
    *,
    name: str,
    processor: ProcessorMixin,
    dtype: torch.dtype,
    ranks: Ranks,
    folder: Path,
    urls: Sequence[str],
    options: dict[str, object],
) -> RolloutEngine:
    """Return an engine of the table that generates as the backend is told to.

    Args:
        backend: with the model's configuration and the settings of sampling.
        engine: its name in `ENGINES`.
        name: folder or Hub name of the model.
        processor: with the limits on images.
        dtype: of weights and activations.
        ranks: of the evaluation.
        folder: for files of the engine.
        urls: of servers.
        options: further arguments of an engine in this process.
    """
    make = required(ENGINES[engine].make, f"the rollout engine {engine}")
    sampling: SamplingParams = backend.sampling
    return make(
        EngineRun(
            model=backend.model,
            model_name=name,
            processor=processor,
            encoder=backend.encoder(),
            sampling=SamplingSettings(
                backend.max_completion_length,
                sorted(backend.stop_token_ids),
                backend.placeholders,
                temperature=1.0 if sampling.is_greedy else float(sampling.temperature),
                top_p=sampling.top_p,
            ),
            dtype=dtype,
            ranks=ranks,
            folder=folder,
            seed=sampling.seed,
            urls=urls,
            sends_weights=False,
            options=options,
        )
    )


def config_dtype(model: PreTrainedModel, name: str | None) -> torch.dtype:
    """Return the data type of that name; None or "auto" is that of the checkpoint."""
    known = getattr(torch, name) if name not in (None, "auto") else model_config(model).dtype
    return known if isinstance(known, torch.dtype) else torch.float32
