"""The rollout engines of this package by name, with a line about each; the command line needs no more than that."""

from __future__ import annotations

DEFAULT = "transformers"
SUMMARIES = {
    DEFAULT: "The policy itself, in the trainer's process; each prompt is prefilled once for all of its completions.",
    "vllm": "vLLM in the trainer's process, or on servers (--rollout_url) that may run on other machines.",
    "sglang": "SGLang on servers (--rollout_url).",
}
