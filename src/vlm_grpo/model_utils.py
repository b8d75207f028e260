"""Settings of a loaded model and processor: placeholders, pixel limits and frozen vision modules."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from vlm_grpo.families import FAMILIES, Family
from vlm_grpo.image_tokens import is_ranged, limit_image_tokens, pixel_unit

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn
    from transformers import PreTrainedConfig, ProcessorMixin


logger = logging.getLogger(__name__)

# Attributes of configurations and processors with placeholder tokens.
PLACEHOLDERS = tuple(
    f"{kind}_token_{suffix}" for kind in ("image", "video", "audio", "vision_start") for suffix in ("id", "index")
)
PARTS = ("vision tower", "projector", "language model", "head")
# Linear layers of the language model only: an adapter goes elsewhere only where it is asked to.
LANGUAGE_LINEAR = r"^(?!.*(visual|vision|audio)).*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)$"
# PEFT makes a plain list of names of the pattern above where a model has experts: what is excluded is said once more.
TOWER_MODULES = r".*(visual|vision|audio).*"
# Usual names of the vision tower in families that are not in FAMILIES.
VISION_TOWERS = ("visual", "vision_tower", "vision_model")


def for_language_model(adapter: PeftConfig | None) -> PeftConfig | None:
    """Return a PEFT configuration that targets the language model's linear layers, unless it has targets."""
    if adapter is None or getattr(adapter, "target_modules", "") is not None:
        return adapter
    excluded = getattr(adapter, "exclude_modules", None) or TOWER_MODULES
    modules: dict[str, Any] = {"target_modules": LANGUAGE_LINEAR, "exclude_modules": excluded}
    return replace(adapter, **modules)


def placeholder_ids(config: PreTrainedConfig, processor: ProcessorMixin) -> list[int]:
    """Return the tokens that stand for an image, a video or sound in this model's prompts.

    They must not be sampled: the next forward pass would expect the corresponding pixels.
    """
    tokens = {getattr(source, name, None) for source in (config, processor) for name in PLACEHOLDERS}
    family = FAMILIES.get(getattr(config, "model_type", ""))
    if family is not None:
        tokenizer: Any = getattr(processor, "tokenizer", processor)
        tokens |= {*tokenizer.convert_tokens_to_ids(list(family.placeholders))} - {tokenizer.unk_token_id}
    return sorted(token for token in tokens if isinstance(token, int))


def set_pixel_limits(processor: ProcessorMixin, min_pixels: int | None, max_pixels: int | None) -> None:
    """Limit the pixels of every processed image, for families that resize to a range of pixel counts.

    Raises:
        ValueError: the minimum exceeds the maximum, or the family resizes to a fixed size and would ignore the limits.
    """
    if min_pixels is None and max_pixels is None:
        return
    image_processor: Any = getattr(processor, "image_processor", None)
    keys = ("shortest_edge", "longest_edge")
    size: Any = getattr(image_processor, "size", None)
    if not is_ranged(image_processor) or not hasattr(image_processor, "merge_size"):
        raise ValueError(
            f"--max_pixels/--min_pixels: {type(image_processor).__name__} resizes to {size}, not to a range of pixels, "
            "so the limits would be ignored; use --max_image_tokens, which works for every family"
        )
    frames = pixel_unit(image_processor) // (image_processor.patch_size * image_processor.merge_size) ** 2
    low = size["shortest_edge"] if min_pixels is None else min_pixels * frames
    high = size["longest_edge"] if max_pixels is None else max_pixels * frames
    if low > high:
        low, high = low // frames, high // frames
        raise ValueError(f"--min_pixels must be at most --max_pixels, got {low} and {high}")
    image_processor.size = type(size)(**{**dict(size), keys[0]: low, keys[1]: high})


def limit_images(processor: ProcessorMixin, config: PreTrainedConfig, limits: object) -> None:
    """Limit pixels and tokens of every processed image by `min_pixels`, `max_pixels` and `max_image_tokens`.

    Args:
        limits: object with some of these attributes; missing ones and None mean no limit.

    Raises:
        ValueError: the family would ignore or cannot satisfy a limit.
    """
    set_pixel_limits(processor, getattr(limits, "min_pixels", None), getattr(limits, "max_pixels", None))
    most = getattr(limits, "max_image_tokens", None)
    if most is not None:
        limit_image_tokens(processor, config, most)


def model_config(model: nn.Module) -> PreTrainedConfig:
    """Return the configuration of a model, or of the base model of an adapter."""
    return cast("PreTrainedConfig", model.config)


def method_of(model: nn.Module, name: str) -> Callable[..., Any]:
    """Return a method that a model of transformers has beside those of a module, also below an adapter."""
    return getattr(model, name)


def name_experts(model: nn.Module) -> None:
    """Set the attribute of the text configuration that TRL's load-balancing loss uses for the number of experts."""
    text = model_config(model).get_text_config()
    if not hasattr(text, "num_experts") and hasattr(text, "num_local_experts"):
        text.num_experts = text.num_local_experts


def freeze_vision(model: nn.Module) -> int:
    """Freeze the vision tower and return the number of frozen parameters.

    If the projector is part of the tower, it is frozen as well.

    Raises:
        ValueError: the model has no known vision tower.
    """
    towers = vision_towers(model)
    frozen = 0
    for parameter in {id(p): p for tower in towers for p in tower.parameters()}.values():
        parameter.requires_grad_(False)
        frozen += parameter.numel()
    return frozen


def vision_towers(model: nn.Module) -> list[nn.Module]:
    """Return the modules of the vision tower: from FAMILIES, or by name for an unlisted family.

    Raises:
        ValueError: the model has none.
    """
    model_type = model_config(model).model_type
    if model_type in FAMILIES:
        names: tuple[str, ...] = towers_of(FAMILIES[model_type])
    else:
        names = VISION_TOWERS
        logger.warning(
            "%s is not a known family: modules named %s are assumed to be its vision tower; "
            "register it with vlm_grpo.families.FAMILIES.register to specify it",
            model_type,
            " or ".join(names),
        )
    # An adapter adds a prefix to the names of the wrapped model.
    ends = tuple(f".{name}" for name in names)
    towers = [module for name, module in model.named_modules() if f".{name}".endswith(ends)]
    if not towers:
        raise ValueError(
            f"--freeze_vision_modules: {type(model).__name__} ({model_type}) has none of {', '.join(names)}; "
            "remove the flag, or register the family's modules in vlm_grpo.families.FAMILIES"
        )
    return towers


def towers_of(family: Family) -> tuple[str, ...]:
    """Return the names of a family's towers, the vision tower first."""
    return (family.vision_tower, *family.other_towers)


def part_of(name: str, family: Family) -> str:
    """Return which of PARTS a parameter belongs to by its name, with or without an adapter's prefix."""
    path = f".{name}."
    if any(f".{place}." in path for place in family.projector):
        return "projector"
    if any(f".{place}." in path for place in towers_of(family)):
        return "vision tower"
    return "language model" if f".{family.language_model}." in path else "head"


def freeze_parts(model: nn.Module, parts: Collection[str]) -> None:
    """Freeze some of PARTS.

    Raises:
        ValueError: the family's parts are unknown, or nothing would be trainable.
    """
    family = FAMILIES.get(model_config(model).model_type)
    if family is None:
        flags = ", ".join(f"--freeze_{part.replace(' ', '_')}" for part in parts)
        raise ValueError(
            f"{flags}: the modules of {model_config(model).model_type} are unknown; register them in FAMILIES"
        )
    for name, parameter in model.named_parameters():
        if part_of(name, family) in parts:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"nothing is left to train: {', '.join(parts)} are frozen, and so is the rest")


def parameter_table(model: nn.Module) -> str:
    """Return the numbers of all and of trainable parameters per part of the model; adapters are counted separately."""
    family = FAMILIES.get(model_config(model).model_type)
    counts: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        part = "adapter" if "lora_" in name else "all" if family is None else part_of(name, family)
        size = getattr(parameter, "ds_numel", parameter.numel())  # with ZeRO-3 the local tensor is empty
        entry = counts.setdefault(part, [0, 0])
        entry[0] += size if parameter.requires_grad else 0
        entry[1] += size
    rows = [*counts.items(), ("total", [sum(column) for column in zip(*counts.values(), strict=True)])]
    lines = [f"{part:<16}{trained:>16,}{total:>16,}" for part, (trained, total) in rows]
    return "\n".join([f"{'parameters':<16}{'trained':>16}{'of':>16}", *lines])
