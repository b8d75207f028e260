"""What sampling needs to know of the version of transformers: nothing else in the package asks for it.

`setup.py` says which versions are allowed; `run_scripts/test_transformers.sh` runs the trainers' tests on another one.
"""

from __future__ import annotations

import inspect

from transformers import GenerationMixin
from transformers.cache_utils import Cache
from transformers.utils import ModelOutput

from vlm_grpo.records import ModelInputs

# What `generate` hands to a decoding method besides inputs of the model's forward.
NOT_FOR_FORWARD = (
    *("synced_gpus", "streamer", "tokenizer", "assistant_model", "assistant_tokenizer"),
    *("use_cache", "past_key_values", "cache"),
)


def cache_argument() -> str:
    """Return the name of the cache in forwards and in their outputs: `cache` since 5.24, `past_key_values` before."""
    known = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    return "cache" if "cache" in known else "past_key_values"


CACHE = cache_argument()


def forward_inputs(prepared: ModelInputs) -> ModelInputs:
    """Return what `generate` prepared for the model's forward, without a cache and without its own options."""
    return {name: value for name, value in prepared.items() if name not in NOT_FOR_FORWARD}


def returned_cache(outputs: ModelOutput) -> Cache:
    """Return the cache that a forward gives back.

    Raises:
        ValueError: it gives none.
    """
    cache = outputs.get(CACHE)
    if not isinstance(cache, Cache):
        raise ValueError(
            f"sampling: the model's forward must return the cache that it was given as {CACHE!r}, got "
            f"{type(cache).__name__}; use --shared_prefix off"
        )
    return cache
