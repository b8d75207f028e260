"""What an algorithm is: an entry of the table of algorithms, and the class whose hooks the trainer calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from torch import Tensor

from vlm_grpo.algorithms.group import group_advantages, grpo
from vlm_grpo.algorithms.losses import AVERAGES, LossInputs
from vlm_grpo.algorithms.trl_advantages import grpo_advantages
from vlm_grpo.records import Row, required

if TYPE_CHECKING:
    from vlm_grpo.rollouts.batch import RolloutBatch
    from vlm_grpo.rollouts.encoder import EncodedPrompt, PromptEncoder
    from vlm_grpo.rollouts.ranks import Ranks
    from vlm_grpo.shared_prefix.packed_logprobs import TokenLogprobs

Rows = Sequence[Row]
Metrics = Mapping[str, list[float]]
# From prompts, which kinds of media any process has, and (N, P + C) tokens and mask to the (N, C) log-probabilities.
Score = Callable[["Sequence[EncodedPrompt]", Sequence[bool], Tensor, Tensor, int], Tensor]
# Settings that change TRL's loss and have no meaning in another one, with the value that turns them off.
SETTINGS_OF_TRLS_LOSS = {
    "delta": None,
    "importance_sampling_level": "token",
    "top_entropy_quantile": 1.0,
    "off_policy_mask_threshold": None,
    "entropy_coef": 0.0,
    "use_adaptive_entropy": False,
}


@dataclass(frozen=True)
class AlgorithmOptions:
    """Options of an algorithm that has none; a family with options has a subclass with a default for each."""

    def validate(self, num_generations: int) -> str | None:
        """Return why the options are invalid; None if they are valid."""


@dataclass(frozen=True)
class RunContext:
    """What an algorithm may use of the run."""

    args: Any  # the training arguments
    ranks: Ranks  # collectives
    encoder: PromptEncoder
    reward_names: Sequence[str]  # one for each reward function
    pad_token_id: int
    eos_token_ids: Sequence[int]
    demonstration_rows: Any = None  # rows with questions of their own, or the training rows


@dataclass
class ScoredRollout:
    """A training rollout when its rewards are known; hooks change `batch` and `metrics`."""

    rows: Rows  # of the data, on this process
    batch: RolloutBatch  # the B completions of this process
    rewards: Tensor  # (all B, F), of the completions of all processes
    totals: Tensor  # (all B,), weighted sums of them; NaN if no reward applied
    step: int  # the optimizer step, counted from 0
    metrics: Metrics  # of training; the last values are those of this rollout
    demonstrations: Mapping[int, list[int]] = field(default_factory=dict)  # tokens of the rows that were not sampled
    greedy_rewards: Tensor | None = None  # (B,), of the greedy completion of each prompt, if `config.needs_greedy`
    old_logps: Tensor | None = None  # (B, C), under the policy that sampled the tokens, if `needs_old_logps`
    values: Tensor | None = None  # (B, C), of the value model, if `needs_values`
    penalties: Tensor | None = None  # (B, C), KL penalty of each token, with `--kl_reward_coef`


class Advantages(NamedTuple):
    """Advantages of all processes' completions (B,), or of their tokens (B, C) with the mask of these tokens."""

    values: Tensor
    mask: Tensor | None = None

    def of_completions(self) -> list[float]:
        """Return one number for each completion: the mean over its tokens."""
        if self.mask is None:
            return self.values.tolist()
        return ((self.values * self.mask).sum(dim=1) / self.mask.sum(dim=1).clamp(min=1)).tolist()


@dataclass(frozen=True)
class MicroStep:
    """The position of a micro-batch: its optimizer step, its index in that step, and the number of them."""

    step: int
    index: int
    count: int


class Algorithm:
    """How rewards become a loss. This class is the group family (GRPO and its relatives); others override hooks.

    The trainer calls the hooks in this order: 1 to 5 once for each rollout, 6 to 8 for each micro-batch. Every process
    calls every hook, so hooks may use the collectives of `self.ranks`. Evaluation calls `token_loss` alone.

    1. `hints(rows, step)`: text that the completions of each row begin with.
    2. `demonstrations(rows, step)`: completions that are not sampled; the others are sampled then.
    3. `advantages(rollout)`: advantages of all completions or tokens; None keeps TRL's.
    4. `mask_tokens(rollout)`: selects tokens of the whole rollout.
    5. `finish(rollout)`: last changes, such as replaced completions.
    6. `token_loss(inputs)`: the loss of each token; TRL's loss if no class overrides it.
    7. `value_loss(values, batch)`: the loss of the value model, if there is one.
    8. `extra_loss(loss, ...)`: combines the loss with that of other data.

    Class attributes tell the trainer what the hooks need:

    Attributes:
        Options: dataclass with the options of the class for `--algorithm_options`, each with its default.
        option_functions: further functions whose keyword-only parameters are options.
        needs_demonstrations: whether the data must have demonstrations.
        takes_demonstration_rows: whether these may be rows with questions of their own.
        needs_old_logps: whether hooks 3 and 4 read `rollout.old_logps`.
        needs_values: whether a value model is trained, of the kind of the option `value_model`; sets `rollout.values`.
        skips_zero_advantage: whether a completion with advantage 0 has neither loss nor gradient, so that its forward
            pass can be skipped. False for losses that are not proportional to the advantage.
        state_file: name of the JSON file for `state_dict` in a checkpoint.

    Args:
        name: as in `--algorithm`; None without one.
        config: the entry of the table.
        run: what hooks may use of the run.
    """

    Options: ClassVar[type[AlgorithmOptions]] = AlgorithmOptions
    option_functions: ClassVar[tuple[Callable[..., object], ...]] = ()
    needs_demonstrations: ClassVar[bool] = False
    takes_demonstration_rows: ClassVar[bool] = False
    needs_old_logps: ClassVar[bool] = False
    needs_values: ClassVar[bool] = False
    skips_zero_advantage: ClassVar[bool] = True
    state_file: ClassVar[str] = "algorithm.json"

    def __init__(self, name: str | None, config: AlgorithmConfig, run: RunContext) -> None:
        self.name, self.config, self.run, self.args, self.ranks = name, config, run, run.args, run.ranks
        self.option_values: dict[str, Any] = getattr(run.args, "algorithm_options", None) or {}
        self.options = config.build_options(name, self.option_values, run.args.num_generations)

    @classmethod
    def validate(cls, name: str, config: AlgorithmConfig, args: Any) -> None:
        """Check the training arguments against the algorithm, before any model is loaded.

        Raises:
            ValueError: names the conflict and what to do.
        """
        config.build_options(name, args.algorithm_options or {}, args.num_generations)
        if not config.uses_trl_loss:
            _validate_settings_of_loss(name, args)
        if not config.uses_trl_advantage and args.multi_objective_aggregation != "sum_then_normalize":
            raise ValueError(
                f"--multi_objective_aggregation {args.multi_objective_aggregation} has no effect: --algorithm {name} "
                "has its own advantage, of the weighted sum of rewards"
            )

    def call(self, function: Callable[..., object], *arguments: Any, **further: Any) -> Any:
        """Return the result of a function with those `--algorithm_options` that it takes."""
        return function(*arguments, **options_of(function, self.option_values), **further)

    def hints(self, rows: Rows, step: int) -> list[str]:
        """Return the beginning of each row's completion, equal within a group; an empty list if there are no hints."""
        return []

    def demonstrations(self, rows: Rows, step: int) -> dict[int, list[int]]:
        """Return the tokens of the rows of this process that are demonstrations instead of sampled completions."""
        return {}

    def advantages(self, rollout: ScoredRollout) -> Advantages | None:
        """Return the advantages of all processes; None keeps those that TRL computed."""
        rewards = rollout.totals
        if rollout.penalties is not None:
            rewards = rewards - self.ranks.gather(rollout.penalties.sum(dim=1))
        if self.config.advantage_fn is not None:
            return Advantages(self._by_formula(self.config.advantage_fn, rewards, rollout))
        if rollout.penalties is None:
            return None
        return Advantages(grpo_advantages(rewards, self.args.num_generations, self.args.scale_rewards).values)

    def _by_formula(self, formula: Callable[..., Tensor], rewards: Tensor, rollout: ScoredRollout) -> Tensor:
        size = self.args.num_generations
        options = options_of(formula, self.option_values)
        if "lengths" in inspect.signature(formula).parameters:
            options["lengths"] = self.ranks.gather(rollout.batch.loss_mask.sum(dim=1))
        if rollout.greedy_rewards is not None:
            options["greedy"] = self.ranks.gather(rollout.greedy_rewards).view(-1, size)[:, 0]
        return group_advantages(formula, rewards, size, **options)

    def mask_tokens(self, rollout: ScoredRollout) -> None:
        """Select tokens of a rollout whose advantages are set: `batch.token_mask`, or changed `batch.advantages`."""

    def finish(self, rollout: ScoredRollout) -> None:
        """Make the last changes to a rollout and its metrics, after it has been logged."""

    def token_loss(self, inputs: LossInputs) -> Tensor:
        """Return the (B, C) losses of tokens, without KL and sampler correction; not called where the loss is TRL's."""
        if self.config.loss_fn is None:
            raise NotImplementedError(f"{type(self).__name__} has TRL's loss")
        return self.call(self.config.loss_fn, inputs)

    def policy_loss(self, batch: RolloutBatch, scores: TokenLogprobs) -> tuple[Tensor, dict[str, float]]:
        """Return the (B, C) token losses with TRL's sampler correction and KL term, and numbers to log."""
        losses = self.token_loss(LossInputs.of_batch(batch, scores))
        if batch.importance_sampling_ratio is not None:  # of vLLM
            losses = losses * batch.importance_sampling_ratio
        sampled, logs, entropies = batch.sampled_mask, {}, required(scores.entropies, "the entropy of tokens")
        if self.args.beta != 0.0:
            distance = (required(batch.ref_logps, "the reference model's score") - scores.logps) * sampled
            kl = distance.exp() - distance - 1
            losses = losses + self.args.beta * kl
            logs["kl"] = self.ranks.masked_mean(kl, sampled)
        return losses, {**logs, "entropy": self.ranks.masked_mean(entropies, sampled)}

    def value_loss(self, values: Tensor, batch: RolloutBatch) -> tuple[Tensor, Tensor]:
        """Return the (B, C) losses of the value model's new values, and their mask."""
        raise NotImplementedError(f"{type(self).__name__} needs a value model, and has no value_loss")

    def extra_loss(
        self, loss: Tensor, batch: RolloutBatch, place: MicroStep, score: Score
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the loss of a training micro-batch combined with that of other data, and numbers to log."""
        return loss, {}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold, as JSON; an empty dict writes no file."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any], where: str) -> None:
        """Restore what `state_dict` returned; `where` names the file in errors."""


@dataclass(frozen=True)
class AlgorithmConfig:
    """An entry of `ALGORITHMS`: what `--algorithm NAME` does. Configuration files and the command line override it.

    Attributes:
        summary, formula, paper: one line each.
        settings: fields of the trainer's configuration.
        family: the class with the hooks.
        trainer: the trainer that runs it, grpo or rloo.
        advantage_fn: from (P, G) rewards to advantages; None is TRL's. Keyword-only parameters are options, except for
            `lengths` (P, G), the tokens of completions, and `greedy` (P,), the rewards of greedy completions.
        trl_advantage_fn: the advantage that TRL computes with these settings if there is no other.
        loss_fn: from `LossInputs` to the (B, C) losses of tokens; None is the family's loss, or TRL's.
        uses_ratio: whether the loss weights tokens by the ratio of new to old probabilities.
        unused_settings: settings that the loss does not use.
        updates_per_rollout: optimizer steps that one rollout is divided into.
        min_updates: fewest optimizer steps per rollout.
        is_on_policy: whether only one optimizer step per rollout is correct.
        min_generations: fewest completions per prompt.
        rewards: names and weights of rewards that are part of the algorithm.
    """

    summary: str
    formula: str
    paper: str
    settings: Mapping[str, Any]
    family: type[Algorithm] = Algorithm
    trainer: str = "grpo"
    advantage_fn: Callable[..., Tensor] | None = None
    trl_advantage_fn: Callable[..., Tensor] = grpo
    loss_fn: Callable[..., Tensor] | None = None
    uses_ratio: bool = True
    unused_settings: tuple[str, ...] = ()
    updates_per_rollout: int = 1
    min_updates: int = 1
    is_on_policy: bool = False
    min_generations: int = 2
    rewards: Mapping[str, float] = field(default_factory=dict)

    @property
    def uses_trl_advantage(self) -> bool:
        """Whether TRL computes the advantages."""
        return self.advantage_fn is None and self.family.advantages is Algorithm.advantages

    @property
    def formula_fn(self) -> Callable[..., Tensor] | None:
        """The advantage as a function of rewards, TRL's included; None if it is not a function of rewards alone."""
        return self.trl_advantage_fn if self.uses_trl_advantage else self.advantage_fn

    @property
    def uses_trl_loss(self) -> bool:
        """Whether TRL computes the loss of tokens."""
        return self.loss_fn is None and self.family.token_loss is Algorithm.token_loss

    @property
    def needs_greedy(self) -> bool:
        """Whether the advantage compares with the reward of each prompt's greedy completion."""
        return self.advantage_fn is not None and "greedy" in inspect.signature(self.advantage_fn).parameters

    @property
    def options(self) -> dict[str, Any]:
        """Names and defaults of `--algorithm_options`."""
        known = asdict(self.family.Options())
        for function in (self.advantage_fn, *self.family.option_functions, self.loss_fn):
            parameters = inspect.signature(function).parameters.values() if function else ()
            known |= {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}
        return known

    def build_options(self, name: str | None, values: Mapping[str, Any], num_generations: int) -> AlgorithmOptions:
        """Return the options of the family with these values of `--algorithm_options`.

        Raises:
            ValueError: a value is invalid.
        """
        own_values = {each.name: values[each.name] for each in fields(self.family.Options) if each.name in values}
        for option, value in own_values.items():
            default = getattr(self.family.Options, option)
            is_valid = isinstance(value, _types(option, default)) and isinstance(value, bool) == isinstance(
                default, bool
            )
            if not is_valid and not (value is None and default is None):
                raise ValueError(
                    f"--algorithm_options: {option} of --algorithm {name}: got {value!r}, default {default!r}"
                )
        options = self.family.Options(**own_values)
        problem = options.validate(num_generations)
        if problem is not None:
            raise ValueError(f"--algorithm_options: --algorithm {name}: {problem}, got {own_values or 'the defaults'}")
        return options


def _types(option: str, default: Any) -> Any:
    if default is None:
        return str if option.endswith("_reward") else int
    return (int, float) if isinstance(default, float) else type(default)


def options_of(function: Callable[..., object], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of `--algorithm_options` that a function takes."""
    return {name: value for name, value in options.items() if name in inspect.signature(function).parameters}


def _validate_settings_of_loss(name: str, args: Any) -> None:
    """Check that no setting is given that only TRL's loss would use."""
    for setting, off in SETTINGS_OF_TRLS_LOSS.items():
        if getattr(args, setting) != off:
            raise ValueError(
                f"--{setting} {getattr(args, setting)} has no effect: --algorithm {name} has its own loss; leave it out"
            )
    validate_average(name, args, "has its own loss")


def validate_average(name: str, args: Any, reason: str) -> None:
    """Check that `--loss_type` is one of those by which losses other than TRL's are averaged.

    Raises:
        ValueError: it is another one.
    """
    if args.loss_type not in AVERAGES:
        raise ValueError(
            f"--algorithm {name} takes --loss_type {', '.join(AVERAGES)}, got {args.loss_type}: it {reason}"
        )
