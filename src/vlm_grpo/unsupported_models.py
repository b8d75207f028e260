"""Models that cannot be trained, by `config.model_type`, with the reason and an alternative.

They are rejected before a model is loaded. Model types in neither this table nor FAMILIES are accepted.
"""

from __future__ import annotations

from collections.abc import Mapping

REMOTE_CODE = "a checkpoint for remote code, which the classes in transformers cannot load"

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
        "it generates speech, and only its thinker (the text model) can be trained: save the thinker alone, with "
        "Qwen3OmniMoeThinkerForConditionalGeneration.from_pretrained(...).save_pretrained(folder), and the processor "
        "in the same folder"
    ),
}


def unsupported_reason(
    config: Mapping[str, object], known: Mapping[str, object], *, trust_remote_code: bool
) -> str | None:
    """Return the reason why a model cannot be trained, with an alternative; None if it can.

    Args:
        config: the content of its config.json.
        known: the model types of transformers.
        trust_remote_code: whether code in a checkpoint may run.
    """
    model_type = str(config.get("model_type", ""))
    if model_type in UNSUPPORTED_MODELS:
        return f"{model_type} cannot be trained here: {UNSUPPORTED_MODELS[model_type]}"
    if model_type in known:
        return None
    if "auto_map" not in config:
        return f"model_type {model_type!r} is unknown to this version of transformers; a newer version may support it"
    if not trust_remote_code:
        return (
            f"model_type {model_type!r} needs remote code and is unknown to transformers: look for a converted "
            "checkpoint (names that end in -hf), or run its remote code with --trust_remote_code, which is untested"
        )
    return None
