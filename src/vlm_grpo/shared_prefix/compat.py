"""Which models can share a prompt, in sampling and in scoring, and the check of the fast path against the plain one."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from vlm_grpo.model_utils import model_config
from vlm_grpo.rollouts.engines.kv_cache import unrepeatable_layers
from vlm_grpo.shared_prefix import attention
from vlm_grpo.shared_prefix.packed_logprobs import backbone, keep_scored_only
from vlm_grpo.shared_prefix.vision_cache import run_tower_once

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


logger = logging.getLogger(__name__)

MARK = "takes_shared_prompts"  # attribute of a backbone whose hooks are there
MODES = ("auto", "on", "off")
# Largest mean difference of log-probabilities between the two paths. Rounding alone gives 1e-6 and a few hundredths.
IN_FULL_PRECISION, IN_HALF_PRECISION = 1e-4, 0.1

# Settings of language models that look at images in every forward, beside their cache.
CROSS_ATTENTION = ("cross_attention_layers", "cross_layer_interval")


def validate_generation(model: nn.Module) -> str | None:
    """Return why a prompt's cache cannot be repeated for its completions; None where it can."""
    config = model_config(model)
    if config.is_encoder_decoder:
        return "an encoder with a cache of its own"
    if any(hasattr(config.get_text_config(), name) for name in CROSS_ATTENTION):
        return "cross-attention to images"
    layers = unrepeatable_layers(model)
    return f"cache layers of class {', '.join(layers)}" if layers else None


def validate_scoring(model: nn.Module) -> str | None:
    """Return why completions of this model cannot share their prompt when they are scored; None where they can."""
    text = model_config(model).get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ()) - {"full_attention"}
    checks = [
        (not attention.is_supported(text._attn_implementation), "attention other than sdpa or flash attention"),
        (bool(kinds), f"layers of {', '.join(sorted(kinds))}"),
        (_slides(text), "a sliding window"),
        (bool(getattr(text, "attention_dropout", 0)), "attention dropout"),
        (getattr(text, "attn_logit_softcapping", None) is not None, "soft-capping of attention"),
        (bool(getattr(text, "use_bidirectional_attention", False)), "bidirectional attention"),
        (not _uses_interface(model), "attention outside of transformers' interface"),
    ]
    return next((reason for is_so, reason in checks if is_so), None)


def _slides(text: PreTrainedConfig) -> bool:
    """A window that no list of layers says more about."""
    window = getattr(text, "sliding_window", None)
    return not getattr(text, "layer_types", None) and bool(window) and getattr(text, "use_sliding_window", True)


def _uses_interface(model: nn.Module) -> bool:
    text = getattr(backbone(model), "language_model", None) or getattr(backbone(model), "text_model", None)
    return text is not None and bool(getattr(type(text), "_supports_attention_backend", False))


class SharedPrefixState:
    """Whether a trainer's models share prefixes: asked for, possible, and checked on the first group.

    Args:
        mode: `auto` falls back to the plain path with a warning, `on` raises instead, `off` never shares.
        models: the policy, and the reference model if there is one.

    Raises:
        ValueError: `on`, and a model cannot.
    """

    def __init__(self, mode: str, models: Sequence[nn.Module]) -> None:
        if mode not in MODES:
            raise ValueError(f"--shared_prefix must be one of {', '.join(MODES)}, got {mode!r}")
        self.mode = mode
        self.models = list(models)
        self.is_checked = False
        reason = None if mode == "off" else next(filter(None, map(validate_scoring, self.models)), None)
        self.is_on = mode != "off" and reason is None
        if reason is not None:
            self.give_up("scoring", reason)
        for model in self.models if mode != "off" else []:
            add_hooks(backbone(model))
        if self.is_on:
            for text in self._text_configs():
                plain = attention.plain_implementation(text._attn_implementation)
                text._attn_implementation = attention.register(plain)

    def settle(self, difference: float, allowed: float) -> None:
        """Go on sharing if the two paths agree (on every process), else leave it."""
        self.is_checked = True
        if difference <= allowed:
            return
        for text in self._text_configs():
            text._attn_implementation = attention.plain_implementation(text._attn_implementation)
        self.is_on = False
        self.give_up(
            "scoring", f"log-probabilities {difference:.1e} from those of the plain path (at most {allowed:.0e})"
        )

    def _text_configs(self) -> list[PreTrainedConfig]:
        return [model_config(model).get_text_config() for model in self.models]

    def give_up(self, what: str, reason: str) -> None:
        """Say once that sampling or scoring takes the plain path.

        Raises:
            ValueError: the mode is `on`.
        """
        model = self.models[0]
        base: Callable[[], nn.Module] | None = getattr(model, "get_base_model", None)
        name = type(model if base is None else base()).__name__
        if self.mode == "on":
            raise ValueError(f"--shared_prefix on: {name} cannot share prompts in {what}: {reason}; use auto or off")
        logger.warning(
            "%s does not share prompts between completions in %s: %s; the plain path is used", name, what, reason
        )


def add_hooks(below_head: nn.Module) -> None:
    """Let a backbone take what packed and plain rows ask for; once, however many trainers a model sees."""
    if not hasattr(below_head, MARK):
        below_head.register_forward_pre_hook(run_tower_once, with_kwargs=True)
        below_head.register_forward_hook(keep_scored_only, with_kwargs=True)
        setattr(below_head, MARK, True)


def tolerance(dtype: torch.dtype, mixed_precision: str) -> float:
    """How far the two paths may be apart in a precision."""
    is_full = dtype == torch.float32 and mixed_precision == "no"
    return IN_FULL_PRECISION if is_full else IN_HALF_PRECISION


def mean_difference(one: Tensor, other: Tensor, mask: Tensor) -> float:
    """Mean absolute difference where the mask is 1; infinite where a number is missing."""
    values = (one.float() - other.float()).abs()[mask.bool()]
    return torch.nan_to_num(values.mean(), nan=float("inf")).item() if len(values) else 0.0
