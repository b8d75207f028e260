"""How tokens are sampled, and the limits of a completion: the same settings for every engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

SUPPRESSED_BIAS = -100.0  # the least that vLLM and the servers take; no token with it is ever sampled


@dataclass(frozen=True)
class SamplingSettings:
    """How an engine samples the completions of a run.

    Attributes:
        max_new_tokens: of a completion.
        stop_token_ids: end a completion.
        suppressed_token_ids: are never sampled, such as the placeholders of images.
        temperature: divides the logits.
        top_p: the most likely tokens with this much probability are sampled from; 1 is all.
        top_k: so many of the most likely tokens are sampled from; 0 is all.
        min_p: least probability of a token, as a part of the most likely one's; None is 0.
        repetition_penalty: divides the logits of tokens that are there already; 1 leaves them as they are.
        regex: a completion has to match it; None lets it be anything.
        options: further ones of the engine, as --generation_kwargs gives them; they win over the others.
    """

    max_new_tokens: int
    stop_token_ids: Sequence[int]
    suppressed_token_ids: Sequence[int] = ()
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    regex: str | None = None
    options: Mapping[str, object] = field(default_factory=dict)

    @property
    def is_full_distribution(self) -> bool:
        """Whether tokens are sampled from the whole distribution, whose log-probabilities the trainer computes."""
        return self.top_p == 1.0 and self.top_k <= 0 and not self.min_p and self.repetition_penalty == 1.0

    @property
    def logprobs_mode(self) -> str:
        """vLLM's mode whose log-probabilities are those that the trainer computes, where there is one.

        The trainer's know the temperature and are normalised over all tokens. "Raw" ones know no temperature;
        "processed" ones leave out the tokens that cannot be sampled, such as the suppressed.
        """
        return "raw_logprobs" if self.temperature == 1.0 and self.is_full_distribution else "processed_logprobs"

    @property
    def _bias(self) -> dict[int, float]:
        """The user's own bias by token; JSON has its tokens as strings."""
        bias = self.options.get("logit_bias") or {}
        if not isinstance(bias, Mapping):
            raise ValueError(f"--generation_kwargs: logit_bias must map tokens to numbers, got {bias!r}")
        return {int(token): float(value) for token, value in bias.items()}

    def for_vllm(self, n: int, max_new_tokens: int | None, *, is_greedy: bool) -> dict[str, object]:
        """Return the fields of vLLM's `SamplingParams` for `n` completions of a prompt, with their log-probabilities.

        Args:
            n: completions.
            max_new_tokens: of each; None is the limit of the run.
            is_greedy: whether the most likely token is taken.
        """
        fields: dict[str, object] = {
            "n": n,
            "max_tokens": self.max_new_tokens if max_new_tokens is None else max_new_tokens,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
            "min_p": self.min_p or 0.0,
            "repetition_penalty": self.repetition_penalty,
            "stop_token_ids": sorted(self.stop_token_ids),
            "ignore_eos": True,  # these stop tokens alone: the model's own may be more
            "logprobs": 0,  # that of the sampled token alone
            **self.options,
        }
        fields["logit_bias"] = {**self._bias, **dict.fromkeys(self.suppressed_token_ids, SUPPRESSED_BIAS)}
        return {**fields, "temperature": 0.0} if is_greedy else fields
