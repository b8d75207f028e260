"""Videos where families differ: checks what a processor or model supports, and tells GLM-4V's placeholders apart.

Some support no videos, none beside images in one prompt, or none of unequal length in one batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import BatchFeature

from vlm_grpo.model_utils import model_config
from vlm_grpo.rollouts.messages import Prompt

if TYPE_CHECKING:
    from transformers import ProcessorMixin


# GLM's processors write image placeholders for frames.
GLM = ("glm4v", "glm4v_moe", "glm46v")
# Processors whose videos transformers' model cannot read: Kimi's counts the features of a video before it joins frames.
WITHOUT_VIDEOS = ("Kimi_K25Processor",)
PALIGEMMA = "PaliGemmaProcessor"


class TensorVideoProcessor:
    """A video processor that returns tensors, also for families that return lists of arrays unless they are asked."""

    def __init__(self, inner: Callable[..., BatchFeature]) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __call__(self, *args: object, **options: object) -> BatchFeature:
        return self.inner(*args, **{**options, "return_tensors": "pt"})


def join_dimension(name: str, visual: Collection[str]) -> int:
    """Return the dimension along which a family concatenates the tensors of several images: 0 but for packed patches.

    MiniCPM-V packs the patches of all slices along the last dimension of one row, separated by
    `target_sizes`.
    """
    sizes = {"pixel_values": "target_sizes", "pixel_values_videos": "target_sizes_videos"}.get(name)
    return -1 if sizes in visual else 0


def completion_types(processor: ProcessorMixin) -> dict[str, int]:
    """Return the values of a completion's per-token fields, where they are not 0.

    PaliGemma reads tokens of type 0 in both directions and those of type 1 causally: its completions are of type 1, or
    they would be scored with attention to later tokens (arXiv:2407.07726, section 3.1).
    """
    return {"token_type_ids": 1} if type(processor).__name__ == PALIGEMMA else {}


def check_media(prompt: Prompt, processor: ProcessorMixin, where: str = "") -> None:
    """Check that this processor supports the media of a prompt.

    Raises:
        ValueError: as `check_videos`, or it has no image and the processor needs one.
    """
    if not prompt.images and type(processor).__name__ == PALIGEMMA:
        raise ValueError(f"{where or 'a row'}: no image, and {PALIGEMMA} needs one in every prompt; leave the row out")
    check_videos(prompt, processor)


def check_videos(prompt: Prompt, processor: ProcessorMixin) -> None:
    """Check that this processor supports the videos of a prompt.

    Raises:
        ValueError: it has no part for videos, or its chat template no place, or it puts a video's frames where the
            prompt's images were.
    """
    if not prompt.videos:
        return
    where, name = prompt.videos[0].where or "a row", type(processor).__name__
    inner = getattr(processor, "video_processor", None)
    written = str(getattr(processor, "chat_template", None) or "video")
    if inner is None or name in WITHOUT_VIDEOS or "video" not in written:
        raise ValueError(f"{where}: {name} cannot read videos; give frames as images, or take another model family")
    if prompt.images and "pixel_values" in getattr(inner, "model_input_names", ()):
        raise ValueError(
            f"{where}: {name} cannot read images and a video in one prompt, the one would replace the other; give the "
            "video's frames as images, or the image as a frame"
        )


def check_frames(videos: Sequence[Tensor]) -> None:
    """Check that (videos, frames, C, H, W) tensors have equal lengths: padding frames would be counted as real ones.

    Raises:
        ValueError: the videos of a batch differ in their number of frames.
    """
    lengths = sorted({video.size(1) for video in videos if video.ndim == 5})
    if len(lengths) > 1:
        raise ValueError(
            f"videos of one batch must have the same number of frames in this model family, got {lengths}; cut them "
            "with 'max_frames' or take lists of as many frames"
        )


def patch_glm4v_placeholder_mask(*models: nn.Module | None) -> None:
    """Let GLM-4V process images and videos in one batch; other families are unchanged.

    Its processor writes image placeholders for frames too, between marks of a video. The model of transformers 5.23
    takes all of them for both, and a batch that has both fails.
    """
    for module in (module for model in models if model is not None for module in model.modules()):
        if getattr(getattr(module, "config", None), "model_type", "") in GLM and hasattr(module, "get_rope_index"):
            setattr(module, "get_placeholder_mask", _PlaceholderMask(module))  # noqa: B010 - no attribute of a module


class _PlaceholderMask:
    """GLM-4V's `get_placeholder_mask`: an image placeholder within the marks of a video is a frame's."""

    def __init__(self, module: nn.Module) -> None:
        self.stock: Callable[..., tuple[Tensor, Tensor]] = getattr(type(module), "get_placeholder_mask").__get__(module)  # noqa: B009 - of a subclass
        self.config = model_config(module)

    def __call__(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor,
        image_features: Tensor | None = None,
        video_features: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        if input_ids is None:
            return self.stock(input_ids, inputs_embeds, image_features=image_features, video_features=video_features)
        num_starts, num_ends = (
            (input_ids == token).cumsum(1)
            for token in (self.config.video_start_token_id, self.config.video_end_token_id)
        )
        is_placeholder, in_video = input_ids == self.config.image_token_id, num_starts > num_ends  # (B, T)
        masks = {"image": is_placeholder & ~in_video, "video": is_placeholder & in_video}
        for kind, features in (("image", image_features), ("video", video_features)):
            if features is not None and int(masks[kind].sum()) * inputs_embeds.size(-1) != torch.numel(features):
                raise ValueError(f"{int(masks[kind].sum())} {kind} placeholders for {len(features)} features")
        return masks["image"].unsqueeze(-1), masks["video"].unsqueeze(-1)


def thumbnails(images: Sequence[Image.Image], largest: int = 256) -> list[Image.Image]:
    """Return small copies of decoded images, the only form in which images are gathered across ranks."""

    def shrink(image: Image.Image) -> Image.Image:
        small = image.copy()
        small.thumbnail((largest, largest))
        return small

    return [shrink(image) for image in images]
