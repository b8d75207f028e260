"""Check a run against the model's configuration and processor, before the model is loaded."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sized
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_grpo.cli.train_args import UsageError
from vlm_grpo.records import Row

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, ProcessorMixin
    from trl import ModelConfig

    from vlm_grpo.trainers.config import VLMGRPOConfig


logger = logging.getLogger(__name__)

MANY_TOKENS = 4096  # per image, above which a warning is logged
FIRST_ROWS = 4
MANY_ROWS = 1000
# Flags of TRL that are incompatible with vision-language models.
LANGUAGE_ONLY = {
    "cast_lm_head_to_fp32": "TRL supports this for language models only; remove it, or train in float32",
    "use_transformers_continuous_batching": (
        "not supported for vision-language models; remove it, or use --rollout_engine vllm"
    ),
}
MOST_PLACES = 5


def check_model(model: ModelConfig, training: VLMGRPOConfig, task: str, dataset: Iterable[Row]) -> None:
    """Check that a model can be trained; warn about large images and unknown coordinate spaces.

    Args:
        task: its metrics may compare positions in an image.
        dataset: the first rows are checked for large images.

    Raises:
        UsageError: the model does not exist, cannot be read or trained, or is incompatible with a flag.
    """
    from vlm_grpo.answer_space import check_answer_space, space_notice
    from vlm_grpo.evaluation.backends.openai import needs_space

    config = load_model_config(model, training)
    processor = load_processor(model, training)
    if getattr(processor, "image_processor", None) is None:
        check_text_alone(model.model_name_or_path or "", config.model_type, dataset)
        return
    check_language_only(training)
    check_images(processor, dataset)
    try:
        limit(processor, config, training)
        check_answer_space(training.answer_space, processor)
    except ValueError as error:
        raise UsageError(f"wrong flags:\n  {error}") from error
    if needs_space(task) and (notice := space_notice(config.model_type, training.answer_space)):
        logger.warning(notice)
    if costs := cost_notice(processor, config.model_type, islice(dataset, FIRST_ROWS)):
        logger.warning(costs)


def load_model_config(model: ModelConfig, training: VLMGRPOConfig) -> PreTrainedConfig:
    """Return the model's configuration.

    Raises:
        UsageError: there is none, or the model cannot be trained.
    """
    from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

    from vlm_grpo.unsupported_models import unsupported_reason

    name, options = model.model_name_or_path or "", {"revision": model.model_revision}
    check_not_adapter(name)
    trust = bool(training.trust_remote_code)
    try:
        content, _ = PreTrainedConfig.get_config_dict(name, **options)
        reason = unsupported_reason(content, CONFIG_MAPPING, trust_remote_code=trust)
        config = None if reason else AutoConfig.from_pretrained(name, trust_remote_code=trust, **options)
    except (OSError, ValueError) as error:
        raise UsageError(f"--model_name_or_path {name!r} cannot be read: {error}") from error
    if reason or config is None:
        raise UsageError(f"--model_name_or_path {name}: {reason}")
    return config


def load_processor(model: ModelConfig, training: VLMGRPOConfig) -> ProcessorMixin:
    """Return the model's processor; a tokenizer for a model without images.

    Raises:
        UsageError: there is none.
    """
    from transformers import AutoProcessor

    name = model.model_name_or_path
    try:
        return AutoProcessor.from_pretrained(
            name, revision=model.model_revision, trust_remote_code=bool(training.trust_remote_code)
        )
    except (OSError, ValueError) as error:
        raise UsageError(f"--model_name_or_path {name!r} has no valid processor: {error}") from error


def check_not_adapter(name: str) -> None:
    """Check that a folder is not an adapter without a model.

    Raises:
        UsageError: it is; the message names the base model and what to do.
    """
    file = Path(name) / "adapter_config.json"
    if not file.is_file() or (Path(name) / "config.json").exists():
        return
    try:
        base = json.loads(file.read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        base = None
    base = base or "the base model"
    raise UsageError(
        f"--model_name_or_path {name}: an adapter of {base}, not a model. To continue its training, use "
        f"--model_name_or_path {base}, the same --use_peft flags, and --resume_from_checkpoint with its folder. "
        "To train on top of it, merge it first (PeftModel.from_pretrained(model, folder)"
        ".merge_and_unload().save_pretrained(merged)) and save the processor in the same folder. `vlm-grpo evaluate` "
        "accepts the adapter itself"
    )


def check_text_alone(name: str, model_type: str, dataset: Iterable[Row]) -> None:
    """Check that no row has images or videos if the model is text-only.

    Raises:
        UsageError: names the first such row.
    """
    for number, row in enumerate(islice(dataset, MANY_ROWS if isinstance(dataset, Sized) else FIRST_ROWS)):
        if row.get("images") or row.get("videos"):
            raise UsageError(
                f"--model_name_or_path {name} ({model_type}) is a text-only model, but there are images in "
                f"{row.get('where', f'row {number}')}: choose a vision-language model (vlm-grpo families)"
            )


def check_language_only(training: VLMGRPOConfig) -> None:
    """Check that no flag is set that TRL supports only for language models.

    Raises:
        UsageError: such a flag is set.
    """
    problems = [f"--{name}: {reason}" for name, reason in LANGUAGE_ONLY.items() if getattr(training, name, False)]
    if problems:
        raise UsageError("\n  ".join(["wrong flags:", *problems]))


def check_images(processor: ProcessorMixin, dataset: Iterable[Row]) -> None:
    """Check that every row has an image if the processor needs one.

    Raises:
        UsageError: rows without an image; the message names the first ones. Only the first rows of a stream are read.
    """
    from vlm_grpo.rollouts.video import PALIGEMMA

    if type(processor).__name__ != PALIGEMMA:
        return
    rows = dataset if isinstance(dataset, Sized) else islice(dataset, FIRST_ROWS)
    without = [str(row.get("where", f"row {number}")) for number, row in enumerate(rows) if not row.get("images")]
    if without:
        places = ", ".join(without[:MOST_PLACES]) + (", ..." if len(without) > MOST_PLACES else "")
        raise UsageError(
            f"{PALIGEMMA} needs an image in every prompt, but {len(without)} rows have none ({places}); remove "
            "these rows, or train another family (vlm-grpo families)"
        )


def limit(processor: ProcessorMixin, config: PreTrainedConfig, limits: object) -> None:
    """Apply the image limits of the flags, so that an impossible limit fails before the model is loaded."""
    from vlm_grpo.model_utils import limit_images

    limit_images(processor, config, limits)


def cost_notice(processor: ProcessorMixin, model_type: str, rows: Iterable[Row]) -> str | None:
    """Return a warning about images with very many tokens in the first rows; None if there are none."""
    from vlm_grpo.data.images import image_ref, image_size
    from vlm_grpo.image_tokens import count_image_tokens, is_ranged

    images = [image for row in rows for image in row.get("images") or []]
    sizes = sorted({image_size(image_ref(image)) for image in images}, key=lambda size: size[0] * size[1])
    if not sizes:
        return None
    largest = sizes[-1]
    count = count_image_tokens(processor, model_type, largest)
    if count <= MANY_TOKENS:
        return None
    flag = "--max_pixels or --max_image_tokens" if is_ranged(processor.image_processor) else "--max_image_tokens"
    return (
        f"an image of {largest[0]} x {largest[1]} pixels in the first rows has {count:,} tokens, in every "
        f"completion's prompt; set {flag}, such as --max_image_tokens 1024"
    )
