"""Facts about each model family, keyed by `config.model_type`; no behavior.

Families that are not listed use generic defaults (`model_utils.py`), with a warning where family-specific facts are
missing. Models that cannot be trained are in `unsupported_models.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from vlm_grpo.registry import Registry

# resized: pixels of the image after the processor resized it. thousand: 0 to 1000 per side for any image size.
# unit: 0 to 1 per side.
CoordinateSpace = Literal["resized", "thousand", "unit"]


@dataclass(frozen=True)
class Family:
    """Facts about one model family.

    Attributes:
        vision_tower, language_model: names of these modules in the loaded model (`named_modules`).
        projector: modules and parameters between the two. In the Qwen and GLM families they are part of the tower.
        placeholders: tokens that only the processor inserts, for images and videos and their delimiters. The first is
            repeated once per image feature.
        coordinate_space: space of the boxes that the family was trained on; None if it is not published.
        source: publication of the coordinate space.
        other_towers: further encoders, frozen together with the vision tower.
        checkpoints: examples on the Hub.
        refuses_prefix: reason why the completions of a prompt cannot share its forward pass; None if they can.
        has_video: whether the processor supports videos.
        tools: format of tool calls in the chat template, a name in TOOL_CALL_FORMATS; None without tools.
    """

    vision_tower: str
    projector: tuple[str, ...]
    language_model: str
    placeholders: tuple[str, ...]
    coordinate_space: CoordinateSpace | None
    source: str = ""
    other_towers: tuple[str, ...] = ()
    checkpoints: tuple[str, ...] = ()
    refuses_prefix: str | None = None
    has_video: bool = False
    tools: str | None = None


LANGUAGE = "model.language_model"
PROJECTOR = ("model.multi_modal_projector",)
QWEN_MARKS = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>")
QWEN_MERGER = ("model.visual.merger",)
QWEN3_MERGERS = (*QWEN_MERGER, "model.visual.deepstack_merger_list")
QWEN3_REPORT = "Qwen3-VL technical report, arXiv:2511.21631"
GLM_PROJECTOR = ("model.visual.downsample", "model.visual.merger")
GLM_MARKS = (
    "<|image|>",
    "<|video|>",
    "<|begin_of_image|>",
    "<|end_of_image|>",
    "<|begin_of_video|>",
    "<|end_of_video|>",
)
GLM_REPORT = "GLM-4.5V and GLM-4.1V-Thinking, arXiv:2507.01006"
LLAVA_15 = "LLaVA-1.5, arXiv:2310.03744"
IDEFICS_MARKS = ("<image>", "<fake_token_around_image>", "<global-img>")
LINEAR, SLIDING = "layers of linear_attention", "layers of sliding_attention"
MINICPM = Family(
    "model.vision_tower",
    ("model.merger",),
    LANGUAGE,
    ("<|image_pad|>", "<|video_pad|>", "<image>", "</image>", "<slice>", "</slice>"),
    None,
    checkpoints=("openbmb/MiniCPM-V-4.6",),
    refuses_prefix=LINEAR,
    has_video=True,
)

FAMILIES: Registry[Family] = Registry(
    "model family",
    {
        "qwen2_vl": Family(
            "model.visual",
            QWEN_MERGER,
            LANGUAGE,
            QWEN_MARKS,
            "thousand",
            source="Qwen2-VL, arXiv:2409.12191",
            checkpoints=("Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen2-VL-7B-Instruct"),
            has_video=True,
        ),
        "qwen2_5_vl": Family(
            "model.visual",
            QWEN_MERGER,
            LANGUAGE,
            QWEN_MARKS,
            "resized",
            source="Qwen2.5-VL, arXiv:2502.13923",
            checkpoints=("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct"),
            has_video=True,
        ),
        "qwen3_vl": Family(
            "model.visual",
            QWEN3_MERGERS,
            LANGUAGE,
            QWEN_MARKS,
            "thousand",
            source=QWEN3_REPORT,
            checkpoints=("Qwen/Qwen3-VL-4B-Instruct", "Qwen/Qwen3-VL-8B-Thinking"),
            has_video=True,
            tools="hermes",
        ),
        "qwen3_vl_moe": Family(
            "model.visual",
            QWEN3_MERGERS,
            LANGUAGE,
            QWEN_MARKS,
            "thousand",
            source=QWEN3_REPORT,
            checkpoints=("Qwen/Qwen3-VL-30B-A3B-Instruct",),
            has_video=True,
            tools="hermes",
        ),
        "qwen3_5": Family(
            "model.visual",
            QWEN_MERGER,
            LANGUAGE,
            QWEN_MARKS,
            "thousand",
            source="Qwen3.5 keeps Qwen3-VL's, arXiv:2511.21631",
            checkpoints=("Qwen/Qwen3.5-4B", "Qwen/Qwen3.5-27B"),
            refuses_prefix=LINEAR,
            has_video=True,
            tools="qwen_xml",
        ),
        "qwen3_5_moe": Family(
            "model.visual",
            QWEN_MERGER,
            LANGUAGE,
            QWEN_MARKS,
            "thousand",
            source="Qwen3.5 keeps Qwen3-VL's, arXiv:2511.21631",
            checkpoints=("Qwen/Qwen3.5-35B-A3B",),
            refuses_prefix=LINEAR,
            has_video=True,
            tools="qwen_xml",
        ),
        "qwen3_omni_moe_thinker": Family(
            "model.visual",
            ("model.visual.merger", "model.visual.merger_list"),
            LANGUAGE,
            ("<|image_pad|>", "<|video_pad|>", "<|audio_pad|>", "<|vision_bos|>", "<|audio_bos|>"),
            "thousand",
            source="Qwen3-Omni's grounding cookbook, arXiv:2509.17765",
            other_towers=("model.audio_tower",),
            checkpoints=("the thinker of Qwen/Qwen3-Omni-30B-A3B-Instruct",),
            has_video=True,
        ),
        "internvl": Family(
            "model.vision_tower",
            PROJECTOR,
            LANGUAGE,
            ("<IMG_CONTEXT>", "<img>", "</img>", "<video>"),
            "thousand",
            source="InternVL's documentation of grounding data, arXiv:2312.14238",
            checkpoints=("OpenGVLab/InternVL3-2B-hf", "OpenGVLab/InternVL3_5-4B-HF"),
            has_video=True,
        ),
        "glm4v": Family(
            "model.visual",
            GLM_PROJECTOR,
            LANGUAGE,
            GLM_MARKS,
            "thousand",
            source=GLM_REPORT,
            checkpoints=("zai-org/GLM-4.1V-9B-Thinking",),
            has_video=True,
        ),
        "glm4v_moe": Family(
            "model.visual",
            GLM_PROJECTOR,
            LANGUAGE,
            GLM_MARKS,
            "thousand",
            source=GLM_REPORT,
            checkpoints=("zai-org/GLM-4.5V",),
            has_video=True,
            tools="glm",
        ),
        "glm46v": Family(
            "model.visual",
            GLM_PROJECTOR,
            LANGUAGE,
            GLM_MARKS,
            "thousand",
            source="the makers' skill glmv-grounding (github.com/zai-org/glm-skills)",
            checkpoints=("zai-org/GLM-4.6V-Flash", "zai-org/GLM-4.6V"),
            has_video=True,
            tools="glm",
        ),
        "gemma3": Family(
            "model.vision_tower",
            PROJECTOR,
            LANGUAGE,
            ("<image_soft_token>", "<start_of_image>", "<end_of_image>"),
            None,
            checkpoints=("google/gemma-3-4b-it", "google/gemma-3-12b-it"),
            refuses_prefix=SLIDING,
        ),
        "gemma4": Family(
            "model.vision_tower",
            ("model.embed_vision",),
            LANGUAGE,
            ("<|image|>", "<|video|>", "<|image>", "<image|>"),
            None,
            other_towers=("model.audio_tower", "model.embed_audio"),
            checkpoints=("google/gemma-4-E2B-it", "google/gemma-4-E4B-it"),
            refuses_prefix=SLIDING,
            has_video=True,
            tools="gemma",
        ),
        "mistral3": Family(
            "model.vision_tower",
            PROJECTOR,
            LANGUAGE,
            ("[IMG]", "[IMG_BREAK]", "[IMG_END]"),
            None,
            checkpoints=("mistralai/Mistral-Small-3.2-24B-Instruct-2506",),
            tools="mistral",
        ),
        "smolvlm": Family(
            "model.vision_model",
            ("model.connector",),
            "model.text_model",
            IDEFICS_MARKS,
            None,
            checkpoints=("HuggingFaceTB/SmolVLM2-2.2B-Instruct", "HuggingFaceTB/SmolVLM-256M-Instruct"),
            has_video=True,
        ),
        "idefics3": Family(
            "model.vision_model",
            ("model.connector",),
            "model.text_model",
            IDEFICS_MARKS,
            None,
            checkpoints=("HuggingFaceM4/Idefics3-8B-Llama3",),
        ),
        "llava": Family(
            "model.vision_tower",
            PROJECTOR,
            LANGUAGE,
            ("<image>",),
            "unit",
            source=LLAVA_15,
            checkpoints=("llava-hf/llava-1.5-7b-hf",),
        ),
        "llava_next": Family(
            "model.vision_tower",
            (*PROJECTOR, "model.image_newline"),
            LANGUAGE,
            ("<image>",),
            None,
            checkpoints=("llava-hf/llava-v1.6-mistral-7b-hf",),
        ),
        "llava_onevision": Family(
            "model.vision_tower",
            (*PROJECTOR, "model.image_newline"),
            LANGUAGE,
            ("<image>", "<video>"),
            "unit",
            source="trained on LLaVA-1.5's form of boxes, arXiv:2408.03326",
            checkpoints=("llava-hf/llava-onevision-qwen2-0.5b-ov-hf", "llava-hf/llava-onevision-qwen2-7b-ov-hf"),
            has_video=True,
        ),
        "lfm2_vl": Family(
            "model.vision_tower",
            PROJECTOR,
            LANGUAGE,
            ("<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>"),
            "unit",
            source="model card of LFM2.5-VL-450M",
            checkpoints=("LiquidAI/LFM2.5-VL-1.6B", "LiquidAI/LFM2.5-VL-450M"),
            refuses_prefix="layers of conv",
            tools="python",
        ),
        "paligemma": Family(
            "model.vision_tower",
            PROJECTOR,
            LANGUAGE,
            ("<image>",),
            "thousand",
            source="PaliGemma, arXiv:2407.07726: 1024 location tokens, read as thousandths",
            checkpoints=("google/paligemma2-3b-mix-448",),
            refuses_prefix="bidirectional attention",
        ),
        "minicpmv4_6": MINICPM,
        "minicpmv4_7": replace(MINICPM, checkpoints=("openbmb/MiniCPM-V-4.7-1B",)),
        "kimi_k25": Family(
            "model.vision_tower",
            ("model.mm_projector",),
            LANGUAGE,
            ("<|media_pad|>", "<|kimi_k25_video_placeholder|>", "<|media_begin|>", "<|media_end|>"),
            None,
            checkpoints=("moonshotai/Kimi-K2.6",),
        ),
        "ovis2": Family(
            "model.vision_tower",
            ("model.visual_embeddings_table",),
            LANGUAGE,
            ("<IMG_ATOM>", "<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>", "<image>"),
            None,
            checkpoints=("thisisiron/Ovis2-1B-hf", "thisisiron/Ovis2-2B-hf"),
        ),
        "deepseek_vl": Family(
            "model.vision_model",
            ("model.aligner",),
            LANGUAGE,
            ("<image_placeholder>",),
            None,
            checkpoints=("deepseek-community/deepseek-vl-1.3b-chat",),
        ),
        "deepseek_vl_hybrid": Family(
            "model.vision_model",
            (
                "model.aligner",
                "model.high_res_vision_neck",
                "model.high_res_vision_proj",
                "model.high_res_vision_alpha",
            ),
            LANGUAGE,
            ("<image_placeholder>",),
            None,
            other_towers=("model.high_res_vision_model",),
            checkpoints=("deepseek-community/deepseek-vl-7b-chat",),
        ),
    },
)


def coordinate_space(model_type: str) -> CoordinateSpace | None:
    """Return the coordinate space of a family's boxes; None where it is unknown."""
    family = FAMILIES.get(model_type)
    return None if family is None else family.coordinate_space
