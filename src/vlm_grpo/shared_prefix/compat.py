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
from vlm_grpo.shared_prefix.packed_logprobs import backbone, select_scored_positions
from vlm_grpo.shared_prefix.vision_cache import encode_unique_images

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


logger = logging.getLogger(__name__)

MARK = "has_shared_prefix_hooks"  # attribute of a backbone whose hooks are there
MODES = ("auto", "on", "off")
# Largest mean difference of log-probabilities between the two paths. Rounding alone gives 1e-6 and a few hundredths.
FULL_PRECISION_TOLERANCE, HALF_PRECISION_TOLERANCE = 1e-4, 0.1

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
        (_has_sliding_window(text), "a sliding window"),
        (bool(getattr(text, "attention_dropout", 0)), "attention dropout"),
        (getattr(text, "attn_logit_softcapping", None) is not None, "soft-capping of attention"),
        (bool(getattr(text, "use_bidirectional_attention", False)), "bidirectional attention"),
        (not _uses_interface(model), "attention outside of transformers' interface"),
    ]
    return next((reason for is_so, reason in checks if is_so), None)


def _has_sliding_window(text: PreTrainedConfig) -> bool:
    """Return whether the model has a sliding window in unlisted layers."""
    window = getattr(text, "sliding_window", None)
    return not getattr(text, "layer_types", None) and bool(window) and getattr(text, "use_sliding_window", True)


def _uses_interface(model: nn.Module) -> bool:
    text = getattr(backbone(model), "language_model", None) or getattr(backbone(model), "text_model", None)
    return text is not None and bool(getattr(type(text), "_supports_attention_backend", False))


class SharedPrefixState:
    """Whether a trainer's models share prefixes: requested, supported, and checked on the first group.

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
            self.report_unsupported("scoring", reason)
        for model in self.models if mode != "off" else []:
            add_hooks(backbone(model))
        if self.is_on:
            for text in self._text_configs():
                plain = attention.unpacked_implementation(text._attn_implementation)
                text._attn_implementation = attention.register(plain)

    def record_check(self, difference: float, allowed: float) -> None:
        """Switch sharing off if the two paths differ by more than is allowed (on any process)."""
        self.is_checked = True
        if difference <= allowed:
            return
        for text in self._text_configs():
            text._attn_implementation = attention.unpacked_implementation(text._attn_implementation)
        self.is_on = False
        self.report_unsupported(
            "scoring", f"log-probabilities {difference:.1e} from those of the plain path (at most {allowed:.0e})"
        )

    def _text_configs(self) -> list[PreTrainedConfig]:
        return [model_config(model).get_text_config() for model in self.models]

    def report_unsupported(self, what: str, reason: str) -> None:
        """Warn that sampling or scoring takes the plain path.

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
    """Add the forward hooks for packed rows to a backbone; once, however many trainers use the model."""
    if not hasattr(below_head, MARK):
        below_head.register_forward_pre_hook(encode_unique_images, with_kwargs=True)
        below_head.register_forward_hook(select_scored_positions, with_kwargs=True)
        setattr(below_head, MARK, True)


def tolerance(dtype: torch.dtype, mixed_precision: str) -> float:
    """Return how far the two paths may differ in a precision."""
    is_full = dtype == torch.float32 and mixed_precision == "no"
    return FULL_PRECISION_TOLERANCE if is_full else HALF_PRECISION_TOLERANCE


def mean_difference(one: Tensor, other: Tensor, mask: Tensor) -> float:
    """Return the mean absolute difference where the mask is 1; infinite where a number is missing."""
    values = (one.float() - other.float()).abs()[mask.bool()]
    return torch.nan_to_num(values.mean(), nan=float("inf")).item() if len(values) else 0.0
