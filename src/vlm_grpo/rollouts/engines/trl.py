"""Completions by TRL's own generation: vLLM, in this process or as a server, and continuous batching."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

from vlm_grpo.records import ModelInputs
from vlm_grpo.rollouts.encoder import EncodedPrompt, PromptEncoder, collate_visual
from vlm_grpo.rollouts.engines.engine import Generation
from vlm_grpo.rollouts.engines.vllm import vllm_prompts

GenerateTurn = Callable[[list[list[int]], list[Any] | None, ModelInputs, int], Generation]


class TRLEngine:
    """Hands tokens and images to the generation of TRL's trainer, which keeps the weights of vLLM in step.

    Args:
        generate_turn: from prompts' tokens, images, tensors of images and completions per prompt to completions.
        encoder: encoded the prompts.
        num_generations: returns the completions per prompt of the phase, training or evaluation.
        vllm_options: TRL's generation options of vLLM, whose `n` is set; None without vLLM.
        is_in_process: whether vLLM runs in this process.
        can_share: whether vLLM may be given each group's prompt once.
    """

    needs_whole_groups = True  # TRL counts the completions of each prompt

    def __init__(
        self,
        generate_turn: GenerateTurn,
        encoder: PromptEncoder,
        num_generations: Callable[[], int],
        vllm_options: MutableMapping[str, object] | None,
        *,
        is_in_process: bool,
        can_share: bool,
    ) -> None:
        self.generate_turn, self.encoder, self.num_generations = generate_turn, encoder, num_generations
        self.vllm_options, self.is_in_process, self.can_share = vllm_options, is_in_process, can_share

    def generate(
        self, prompts: Sequence[EncodedPrompt], *, max_new_tokens: int | None = None, is_greedy: bool = False
    ) -> Generation:
        """Return one completion of each prompt.

        Raises:
            ValueError: a limit on tokens, or greedy decoding, which TRL's generation has no arguments for.
        """
        if max_new_tokens is not None or is_greedy:
            raise ValueError("generation by TRL takes neither a limit on tokens nor greedy decoding for one call")
        ids, images = [prompt.input_ids for prompt in prompts], None
        if self.vllm_options is None:
            return self.generate_turn(ids, None, collate_visual(prompts), self.num_generations())
        options = {"is_in_process": self.is_in_process, "can_share": self.can_share}
        ids, images, count = vllm_prompts(self.encoder, prompts, ids, **options)
        if count is not None:
            self.vllm_options["n"] = count
        return self.generate_turn(ids, images, {}, self.num_generations())
