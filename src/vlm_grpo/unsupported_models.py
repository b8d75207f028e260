"""Models that cannot be trained here, by `config.model_type`: why, and what to use instead.

Checked before a model is loaded. What is not listed here, and not in FAMILIES, is tried.
"""

from __future__ import annotations

from collections.abc import Mapping

REMOTE_CODE = "a checkpoint with code of its own, which transformers has replaced by classes of another form"

UNSUPPORTED_MODELS: Mapping[str, str] = {
    "internvl_chat": f"{REMOTE_CODE}: use the converted one, such as OpenGVLab/InternVL3_5-4B-HF or InternVL3-2B-hf",
    "chatglm": f"{REMOTE_CODE} (glm-4v-9b): use zai-org/GLM-4.1V-9B-Thinking",
    "minicpmv": f"{REMOTE_CODE}: use openbmb/MiniCPM-V-4.6",
    "minicpmo": "transformers has no classes for it: use openbmb/MiniCPM-V-4.6",
    "ovis": f"{REMOTE_CODE}: use the converted one, such as thisisiron/Ovis2-2B-hf",
    "ovis2_5": "transformers has no classes for it: use thisisiron/Ovis2-2B-hf",
    "multi_modality": f"{REMOTE_CODE}: use the converted one, such as deepseek-community/deepseek-vl-1.3b-chat",
    "deepseek_vl_v2": "transformers has no classes for it: use deepseek-community/deepseek-vl-1.3b-chat",
    "kimi_vl": "transformers has no classes for it: use moonshotai/Kimi-K2.6, or Qwen/Qwen3-VL-30B-A3B-Instruct",
    "llava_qwen": f"{REMOTE_CODE}: use the converted one, such as llava-hf/llava-onevision-qwen2-7b-ov-hf",
    "llava_llama": f"{REMOTE_CODE}: use the converted one, such as llava-hf/llava-1.5-7b-hf",
    "llava_mistral": f"{REMOTE_CODE}: use the converted one, such as llava-hf/llava-v1.6-mistral-7b-hf",
    "qwen3_omni_moe": (
        "it speaks, and only the part that writes can be trained: save that alone, with Qwen3OmniMoeThinkerFor"
        "ConditionalGeneration.from_pretrained(...).save_pretrained(folder) and the processor beside it"
    ),
}


def unsupported_reason(
    config: Mapping[str, object], known: Mapping[str, object], *, trust_remote_code: bool
) -> str | None:
    """Return why a model cannot be trained and what to use instead; None if it can.

    Args:
        config: the content of its config.json.
        known: what transformers knows, by model type.
        trust_remote_code: whether code that comes with a checkpoint may run.
    """
    model_type = str(config.get("model_type", ""))
    if model_type in UNSUPPORTED_MODELS:
        return f"{model_type} cannot be trained here: {UNSUPPORTED_MODELS[model_type]}"
    if model_type in known:
        return None
    if "auto_map" not in config:
        return f"model_type {model_type!r} is not known to this version of transformers; a newer one may know it"
    if not trust_remote_code:
        return (
            f"model_type {model_type!r} comes with code of its own and is not known to transformers: look for a "
            "converted checkpoint (names that end in -hf), or run its code, untested here, with --trust_remote_code"
        )
    return None
