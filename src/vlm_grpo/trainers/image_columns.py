"""Data sets whose images stay files and bytes until a rollout needs them."""

from __future__ import annotations

from typing import Any

from datasets import Dataset, Image, IterableDataset

from vlm_grpo.data.images import image_ref, open_image
from vlm_grpo.records import NewRow, Row


def decode_images(row: Row) -> NewRow:
    """Return the row with decoded images in place of references and undecoded ones, for TRL's own path."""
    decoded: NewRow = {}
    if row.get("image") is not None:
        decoded["image"] = open_image(image_ref(row["image"]))
    if row.get("images"):
        decoded["images"] = [open_image(image_ref(image)) for image in row["images"]]
    return {**row, **decoded}


def disable_image_decoding(dataset: Dataset) -> Any:
    """Return the data set with image columns as `{bytes, path}`: rows are decoded only when a rollout needs them."""
    if isinstance(dataset, dict):
        return type(dataset)({name: disable_image_decoding(part) for name, part in dataset.items()})
    if not isinstance(dataset, Dataset | IterableDataset) or dataset.features is None:
        return dataset
    features = {name: _undecoded_feature(feature) for name, feature in dataset.features.items()}
    for name, feature in features.items():
        if feature != dataset.features[name]:
            dataset = dataset.cast_column(name, feature)
    return dataset


def _undecoded_feature(feature: Any) -> Any:
    """Return the feature with `decode=False` in every image below it."""
    if isinstance(feature, Image):
        return Image(decode=False, mode=feature.mode)
    if isinstance(feature, dict):
        return {name: _undecoded_feature(part) for name, part in feature.items()}
    if isinstance(feature, list):
        return [_undecoded_feature(part) for part in feature]
    inner = getattr(feature, "feature", None)
    return type(feature)(_undecoded_feature(inner)) if inner is not None else feature
