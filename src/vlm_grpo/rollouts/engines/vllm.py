"""vLLM in the trainer's process: its own copy of the weights, renewed from the policy before a rollout.

Prompts are the trainer's token ids with expanded images. vLLM processes the images apart from them, and what it makes
of each is placed where the trainer's ids have the image. So a turn continues exactly the tokens that were sampled.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch

from vlm_grpo.data.images import open_image
from vlm_grpo.rollouts.batch import prompt_groups
from vlm_grpo.rollouts.encoder import EncodedPrompt
from vlm_grpo.rollouts.engines.engine import Generation, NamedTensor
from vlm_grpo.rollouts.engines.placement import Expansion, place_images
from vlm_grpo.rollouts.engines.sampling import SamplingSettings

if TYPE_CHECKING:
    from PIL import Image
    from torch.distributed import ProcessGroup
    from vllm import LLM, RequestOutput
    from vllm.inputs.engine import MultiModalInput, TokensInput

INSTALL = (
    "--rollout_engine vllm in this process needs vllm, which is not installed: pip install 'vlm_grpo[vllm]'; a server "
    "needs no vllm here: --rollout_url http://host:port"
)
TRANSFORMERS_BACKEND = (
    "{} computes with the classes of transformers, which vLLM changes in the whole process, the policy included: use a "
    "vLLM server (--rollout_url), or --rollout_engine transformers"
)


class VLLMEngine:
    """Completes prompts with a vLLM engine in this process.

    Args:
        folder: of the model, with the processor of the run.
        sampling: how tokens are chosen.
        dtype: of its weights and activations, such as "bfloat16".
        sleeps: whether `sleep` frees the accelerator's memory; the weights are then lost, and sent again.
        group: the processes whose GPUs the engine is spread over; None is this one alone.
        options: further arguments of `vllm.LLM`.

    Raises:
        ImportError: vllm is not installed.
        ValueError: vLLM would compute with the classes of transformers.
    """

    needs_whole_groups = False
    has_own_weights = True

    def __init__(
        self,
        folder: str,
        sampling: SamplingSettings,
        *,
        dtype: str,
        sleeps: bool = False,
        group: ProcessGroup | None = None,
        options: Mapping[str, object] | None = None,
    ) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # tensors are handed over as they are
        try:
            from vllm import LLM
        except ImportError as error:
            raise ImportError(INSTALL) from error
        self.sampling, self.sleeps, self.is_asleep, self.group = sampling, sleeps, False, group
        settings: dict[str, Any] = {
            "enable_sleep_mode": sleeps,
            "logprobs_mode": sampling.logprobs_mode,
            "mm_processor_cache_gb": 0,  # the images of a group are processed once anyhow
            "limit_mm_per_prompt": {"video": 0},  # refused below; some processors fail on vLLM's dummy videos
            **(options or {}),
        }
        if settings.get("model_impl") == "transformers":
            raise ValueError(TRANSFORMERS_BACKEND.format("--vllm_model_impl transformers"))
        self.llm: LLM = LLM(model=folder, dtype=dtype, **settings)
        if self.llm.llm_engine.model_config.using_transformers_backend():
            raise ValueError(TRANSFORMERS_BACKEND.format("vLLM has no classes of its own for this model and"))
        self._numbers = itertools.count()
        self._images: dict[Hashable, MultiModalInput] = {}  # as processed, by the images' keys; of one `generate`
        self.sleep()

    def generate(
        self, prompts: Sequence[EncodedPrompt], *, max_new_tokens: int | None = None, is_greedy: bool = False
    ) -> Generation:
        """Return one completion of each prompt, with the log-probabilities of its tokens.

        Raises:
            ValueError: a prompt has a video, or vLLM expands an image to other tokens than the trainer.
            RuntimeError: the engine ended a completion for another reason than its end or its length.
        """
        if self.group is None:
            return self._generate(prompts, max_new_tokens, is_greedy)
        everyone: list[list[EncodedPrompt]] = [[] for _ in range(self.group.size())]
        torch.distributed.all_gather_object(everyone, list(prompts), group=self.group)
        generation = self._generate([prompt for each in everyone for prompt in each], max_new_tokens, is_greedy)
        start = sum(len(each) for each in everyone[: self.group.rank()])
        own = slice(start, start + len(prompts))
        return Generation(generation.ids[own], (generation.logprobs or [])[own], (generation.finish_reasons or [])[own])

    def _generate(self, prompts: Sequence[EncodedPrompt], max_new_tokens: int | None, is_greedy: bool) -> Generation:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        if self.is_asleep:
            self.llm.wake_up(tags=["kv_cache"])
            self.is_asleep = False
        rows_of = {}
        for rows in prompt_groups(prompts):
            fields: dict[str, Any] = self.sampling.for_vllm(len(rows), max_new_tokens, is_greedy=is_greedy)
            fields = _structured(fields, self.sampling.regex)
            params = SamplingParams(**fields, output_kind=RequestOutputKind.FINAL_ONLY)
            number = str(next(self._numbers))
            self.llm.llm_engine.add_request(number, self._input(prompts[rows[0]]), params)
            rows_of[number] = rows
        self._images.clear()
        return _in_order(self._run(), rows_of, len(prompts), max_new_tokens or self.sampling.max_new_tokens)

    def _run(self) -> list[RequestOutput]:
        """Return the finished requests."""
        engine, finished = self.llm.llm_engine, []
        while engine.has_unfinished_requests():
            finished += [cast("RequestOutput", output) for output in engine.step() if output.finished]
        return finished

    def _input(self, prompt: EncodedPrompt) -> TokensInput | MultiModalInput:
        from vllm.inputs.engine import mm_input, tokens_input
        from vllm.multimodal.inputs import PlaceholderRange

        if prompt.videos:
            raise ValueError("--rollout_engine vllm takes images but no videos; leave it out for data with videos")
        if not prompt.refs:
            return tokens_input(prompt.input_ids)
        found = self._process(prompt)
        places = [_core(found["prompt_token_ids"], each) for each in found["mm_placeholders"]["image"]]
        starts = place_images(prompt.input_ids, [expansion for expansion, _ in places], prompt.refs[0].where)
        ranges = [
            PlaceholderRange(offset=start, length=len(expansion.tokens), is_embed=mask)
            for start, (expansion, mask) in zip(starts, places, strict=True)
        ]
        return mm_input(prompt.input_ids, found["mm_kwargs"], found["mm_hashes"], {"image": ranges})

    def _process(self, prompt: EncodedPrompt) -> MultiModalInput:
        """Return what vLLM makes of a prompt that is nothing but these images."""
        from vllm.multimodal.processing import ProcessorInputs
        from vllm.multimodal.processing.context import TimingContext

        key = tuple(ref.key for ref in prompt.refs)
        if key not in self._images:
            processor = self.llm.llm_engine.renderer.get_mm_processor()
            text = processor.dummy_inputs.get_dummy_text({"image": len(prompt.refs)})
            ids = self.llm.get_tokenizer().encode(text, add_special_tokens=False)
            items = processor.info.parse_mm_data({"image": prompt_images(prompt)})
            self._images[key] = processor.apply(ProcessorInputs(ids, items), TimingContext(enabled=False))
        return self._images[key]

    def update_weights(self, weights: Iterable[NamedTensor]) -> None:
        """Load the weights, and empty the caches of keys, values and image embeddings of the former ones."""
        if self.is_asleep:
            self.llm.wake_up(tags=["weights"])
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        self.llm.reset_prefix_cache()
        self.llm.llm_engine.reset_encoder_cache()

    def sleep(self) -> None:
        """Free the accelerator's memory until the next `update_weights` and `generate`, where the engine `sleeps`."""
        if self.sleeps and not self.is_asleep:
            self.llm.sleep(level=2)
            self.is_asleep = True

    def close(self) -> None:
        """Shut the engine down."""
        self.llm.llm_engine.engine_core.shutdown()


def prompt_images(prompt: EncodedPrompt) -> list[Image.Image]:
    """Return the images of a prompt, and those that tools showed in it, which were not kept open."""
    return [*prompt.images, *(open_image(ref) for ref in prompt.refs[len(prompt.images) :])]


def _core(ids: Sequence[int], place: Any) -> tuple[Expansion, Any]:
    """Return an image's expansion, from its first to its last token of the image, and vLLM's mask of these tokens."""
    tokens, mask = ids[place.offset : place.offset + place.length], place.is_embed
    if mask is None:
        return Expansion(tokens, frozenset(tokens)), None
    kept = mask.nonzero().flatten().tolist()
    first, end = kept[0], kept[-1] + 1
    tokens, mask = tokens[first:end], mask[first:end]
    image_tokens = frozenset(token for token, is_image in zip(tokens, mask.tolist(), strict=True) if is_image)
    return Expansion(tokens, image_tokens), mask


def _structured(fields: dict[str, Any], regex: str | None) -> dict[str, Any]:
    from vllm.sampling_params import StructuredOutputsParams

    options = fields.get("structured_outputs")
    if regex is not None:
        return {**fields, "structured_outputs": StructuredOutputsParams(regex=regex)}
    return {**fields, "structured_outputs": StructuredOutputsParams(**options)} if isinstance(options, dict) else fields


def _in_order(
    outputs: Sequence[RequestOutput], rows_of: Mapping[str, Sequence[int]], count: int, most: int
) -> Generation:
    """Return the completions, of at most so many tokens, of finished requests in the order of their rows."""
    ids: list[list[int]] = [[] for _ in range(count)]
    logprobs: list[list[float | None]] = [[] for _ in range(count)]
    reasons = ["stop"] * count
    for output in outputs:
        for row, each in zip(rows_of[output.request_id], output.outputs, strict=True):
            if each.finish_reason == "length" and len(each.token_ids) < most:
                raise ValueError(
                    f"vLLM ended a completion after {len(each.token_ids)} of {most} tokens, since its prompt has "
                    f"{len(output.prompt_token_ids or ())}: set --vllm_max_model_length to the longest prompt and "
                    "completion together"
                )
            if each.finish_reason not in ("stop", "length"):
                raise RuntimeError(
                    f"vLLM ended a completion with {each.finish_reason!r} after {len(each.token_ids)} tokens"
                )
            ids[row], reasons[row] = list(each.token_ids), each.finish_reason
            tables = each.logprobs or []
            logprobs[row] = [table[token].logprob for token, table in zip(ids[row], tables, strict=True)]
    return Generation(ids, logprobs, reasons)
