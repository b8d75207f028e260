"""Tensors of a transformers model as its checkpoint files have them.

transformers renames parameters when it loads a checkpoint, joins the experts of a layer, and undoes both in
`save_pretrained`. Engines load checkpoints: they know the names and shapes of the files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    PrefixChange,
    WeightConverter,
    WeightRenaming,
    WeightTransform,
    apply_converters,
    apply_renamings,
    revert_weight_conversion,
)

from vlm_grpo.rollouts.engines.engine import NamedTensor


def checkpoint_tensors(model: nn.Module, names: Sequence[str], tensors: Iterable[NamedTensor]) -> Iterator[NamedTensor]:
    """Yield a model's tensors as `save_pretrained` writes them; those that the files have as one wait for each other.

    Args:
        model: without wrapper and adapter; another than a transformers model is not converted.
        names: of all tensors, as the model has them.
        tensors: whole ones, in any order; each need only be valid until the next.
    """
    if not isinstance(model, PreTrainedModel):
        yield from tensors
        return
    _keep_used_conversions(model)
    group_of = {name: group for group, name in zip(_groups(model, names), names, strict=True)}
    missing = Counter(group_of.values())
    waiting: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors:
        group = group_of[name]
        parts = waiting.setdefault(group, {})
        missing[group] -= 1
        parts[name] = tensor.clone() if missing[group] else tensor  # it may be freed before the last part is there
        if not missing[group]:
            yield from revert_weight_conversion(model, waiting.pop(group)).items()


def _groups(model: PreTrainedModel, names: Sequence[str]) -> list[str]:
    """Return, for each name, the name in the checkpoint of the first tensor that it becomes a part of."""
    reverse = [transform.reverse_transform() for transform in reversed(_transforms(model))]
    renamings = [each for each in reverse if isinstance(each, WeightRenaming)]
    converters = [each for each in reverse if isinstance(each, WeightConverter)]
    groups = []
    for name in names:
        converted, pattern = apply_converters(name, converters)
        groups.append(converted if pattern is not None else apply_renamings(name, renamings))
    return groups


def _keep_used_conversions(model: PreTrainedModel) -> None:
    """Drop conversions that nothing in the checkpoint needed: transformers does so, but not where ZeRO-3 loads it."""
    name = "_weight_conversions"
    transforms = getattr(model, name, None)
    if transforms is not None:
        setattr(model, name, [each for each in transforms if each.was_used()])


def _transforms(model: PreTrainedModel) -> list[WeightTransform]:
    """Return what was done to the checkpoint that the model was loaded from; of a new model, what would be done."""
    transforms = getattr(model, "_weight_conversions", None)
    if transforms is not None:
        return list(transforms)
    default = get_model_conversion_mapping(model, add_legacy=False)
    return [each for each in default if not isinstance(each, PrefixChange)]
