"""Write docs/algorithms.md from the table of algorithms: `python docs/gen_algorithms.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # also runs from a checkout

from vlm_grpo.algorithms import TABLE, AlgorithmConfig  # not ALGORITHMS, to which others can be added

PAGE = Path(__file__).with_name("algorithms.md")
HEAD = """# Algorithms

<!-- Written by `python docs/gen_algorithms.py`; a test fails when it is out of date. -->

`--algorithm NAME` applies the published settings; a configuration file and the command line override them. In a script:
`VLMGRPOConfig.of("opo", "output", learning_rate=1e-6)`. Results do not depend on how completions are divided into
micro-batches or processes (tested; `bnpo` is by definition a mean over each micro-batch).

`r` are the rewards of the completions of a prompt, `l` their lengths in tokens, `A` the advantages, `w = p / p_old` the
ratio of a token's new to its old probability; `sg` stops the gradient.

## The table

| name | what it does | formula | updates per rollout |
|---|---|---|---|
"""
OWN = '''## Your own

```python
# mine.py
"""Reward minus the median of the group, and a loss without clipping."""

from vlm_grpo.algorithms import Algorithm, AlgorithmConfig


def median_advantage(rewards, *, strength=1.0):  # (prompts, completions); NaN where no reward applied
    return strength * (rewards - rewards.nanmedian(dim=1, keepdim=True).values)


class Unclipped(Algorithm):
    """The importance ratio without clipping."""

    def token_loss(self, inputs):  # (B, C) losses from inputs.logps, .old_logps, .advantages, .mask
        return -inputs.advantages * (inputs.logps - inputs.old_logps).exp()


mine = AlgorithmConfig(
    summary="reward minus the median",
    formula="A = r - median r; -A w",
    paper="none",
    settings={"loss_type": "dapo", "beta": 0.0},
    family=Unclipped,
    advantage_fn=median_advantage,
)
```

`--algorithm mine.py:NAME` takes each of the three:

- `mine.py:median_advantage`, a function from rewards to advantages, with TRL's clipped loss. Keyword-only parameters
  with a default are options: `--algorithm_options '{"strength": 0.5}'`. Without a default, `lengths` are the tokens of
  each completion, and `greedy` is the reward of each prompt's greedy completion.
- `mine.py:Unclipped`, a class that overrides one or more hooks of `Algorithm`. The others are those of GRPO.
- `mine.py:mine`, an entry like those of the table, with settings, an advantage function and a class.

In a script, `register_algorithm("mine", advantage=median_advantage, family=Unclipped)` adds the name to `ALGORITHMS`.

The trainer calls the hooks in this order:

| hook | when | returns or changes |
|---|---|---|
| `hints(rows, step)` | before sampling | text that the completions of each row begin with |
| `demonstrations(rows, step)` | before sampling | tokens of the rows that are not sampled |
| `advantages(rollout)` | when rewards are known | advantages of all completions or tokens; None is TRL's |
| `mask_tokens(rollout)` | with advantages set | `rollout.batch.token_mask`, or changed advantages |
| `finish(rollout)` | end of the rollout | `rollout.batch`, such as replaced completions |
| `token_loss(inputs)` | each micro-batch | loss of each token without KL term; TRL's loss if no class overrides it |
| `value_loss(values, batch)` | each micro-batch | loss of the value model, if there is one |
| `extra_loss(loss, batch, place, score)` | each micro-batch of a training | the loss combined with that of other data |

Class attributes say what the hooks need; the docstring of `Algorithm` (`vlm_grpo/algorithms/algorithm.py`) lists them.
Set `skips_zero_advantage = False` for a loss that is not proportional to the advantage. `Options` is a dataclass
with further options, and `state_dict` and `load_state_dict` store state in checkpoints.
'''
LEARNING = """## Do they learn?

![Share of right answers among sampled completions, by rollout](algorithms.png)

The digits of the quickstart: one warm start for each of three seeds, 64 completions per rollout, the same learning rate
for all but `kl_cov` (half of it), groups of 8 for all but `grpo_passk` (2). The numbers are in
[benchmarks](../benchmarks/README.md). It is not a ranking: algorithms with several updates per rollout take more steps
of the same size, and the learning rate is not tuned for each.
"""
DYNAMIC = """## Dynamic sampling

`--dynamic_sampling 10` (part of `dapo`, available for every algorithm of the GRPO trainer) replaces groups whose
rewards are all equal by groups of further prompts, in up to ten rounds. With `--dynamic_sampling_reward accuracy`, that
reward alone must vary. Surplus groups begin the next rollout, with the log-probabilities they were sampled with. After
the last round, the rollout is filled with groups of equal rewards, and a warning is logged. A resumed run continues
with the same prompts and completions. Dynamic sampling works with tools and environments, but not with demonstrations
or a `rollout_func`.

## Demonstrations, a value model, KL in the reward

`luffy`, `srft`, `hpt`, `chord` and `uft` also learn from demonstrations: [expert_data.md](expert_data.md) has the data
format and a command for each. [ppo.md](ppo.md) describes `ppo`, its value model, and `--kl_reward_coef`, which works
with every algorithm of the GRPO trainer without demonstrations.
"""


def page() -> str:
    """Return the whole page."""
    rows = [_row(name, config) for name, config in TABLE.items()]
    options = [_options(name, config) for name, config in TABLE.items() if config.options]
    told = "## Options\n\n`--algorithm_options` takes, with these defaults:\n\n" + "\n".join(options)
    refused = "## Combinations that raise an error\n\n" + "\n".join(REFUSED)
    parts = [HEAD + "\n".join(rows), told, refused, LEARNING.strip(), DYNAMIC.strip(), OWN.strip()]
    return "\n\n".join(parts) + "\n"


REFUSED = (
    "- Several updates per rollout with an exactly on-policy algorithm:",
    f"  {', '.join(f'`{name}`' for name, config in TABLE.items() if config.is_on_policy)}.",
    "- A single update per rollout with `kl_cov`: in the first one the policy equals the old policy.",
    "- Settings that an algorithm with its own loss would not use (`--delta`, `--entropy_coef`,",
    "  `--top_entropy_quantile`, `--epsilon` if nothing is clipped), or one with its own advantage (`--scale_rewards`,",
    "  `--multi_objective_aggregation`).",
    "- A single completion per prompt, except with",
    f"  {', '.join(f'`{name}`' for name, config in TABLE.items() if config.min_generations == 1)}.",
    "- `remax` with tools, which give no greedy completion.",
)


def _row(name: str, config: AlgorithmConfig) -> str:
    where = f" ({config.paper})" if config.paper else ""
    trainer = " `--trainer rloo`." if config.trainer == "rloo" else ""
    updates = "1" if config.is_on_policy else str(config.updates_per_rollout)
    return f"| `{name}` | {config.summary}{where}.{trainer} | {config.formula} | {updates} |"


def _options(name: str, config: AlgorithmConfig) -> str:
    return f"- `{name}`: `{json.dumps(config.options)}`"


def main() -> int:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
