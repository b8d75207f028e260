"""Write docs/algorithms.md from the table of algorithms: `python docs/gen_algorithms.py`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # also runs from a checkout

from vlm_grpo.algorithms import Recipe
from vlm_grpo.algorithms.recipes import RECIPES  # not those that somebody registered

PAGE = Path(__file__).with_name("algorithms.md")
HEAD = """# Algorithms

<!-- Written by `python docs/gen_algorithms.py`; a test fails when it is out of date. -->

`--algorithm NAME` sets the published recipe; a configuration file and the command line win over it. In a script it is
`VLMGRPOConfig.of("opo", "output", learning_rate=1e-6)`. Every result is the same however completions are cut into
micro-batches or spread over processes (tests; `bnpo` is a mean over each micro-batch by its definition).

`r` are the rewards of a prompt's completions, `l` their lengths in tokens, `A` the advantages, `w = p / p_old` the
ratio of a token's new to its old probability, `sg` stops the gradient.

## The table

| name | what it does | formula | updates per rollout |
|---|---|---|---|
"""
OWN = '''## Your own in twenty lines

```python
# mine.py
"""Reward minus the group's median, and a loss without clipping."""

import torch
from vlm_grpo.algorithms import Recipe


def median_advantage(rewards, *, strength=1.0):  # (prompts, completions); NaN where no reward applied
    return strength * (rewards - rewards.nanmedian(dim=1, keepdim=True).values)


def unclipped(tokens):  # (B, C) losses; tokens.mask, tokens.logps, tokens.old, tokens.advantages
    return -tokens.advantages * (tokens.logps - tokens.old).exp()


mine = Recipe(
    summary="reward minus the median",
    formula="A = r - median r; -A w",
    paper="none",
    settings={"loss_type": "dapo", "beta": 0.0},
    advantage=median_advantage,
    is_advantage_trls=False,
    objective=unclipped,
)
```

`--algorithm mine.py:mine --algorithm_options '{"strength": 0.5}'`, or `register_algorithm("mine", advantage=...)` in a
script. A function alone (`mine.py:median_advantage`) is an advantage with TRL's clipped loss.
'''
LEARNING = """## Do they learn?

![Share of right answers among sampled completions, by rollout](algorithms.png)

The digits of the quickstart: one warm start for each of three seeds, 64 completions a rollout, the same learning rate
for all but `kl_cov` (half of it), groups of 8 for all but `grpo_passk` (2). The numbers are in
[benchmarks](../benchmarks/README.md). It is no ranking: recipes that cut a rollout into several updates take more steps
of the same size, and a learning rate of its own would suit each better.
"""
DYNAMIC = """## Dynamic sampling

`--dynamic_sampling 10` (part of `dapo`, and goes with every algorithm of the GRPO trainer) replaces groups whose
rewards are all equal by those of further prompts, in up to ten rounds; `--dynamic_sampling_reward accuracy` lets one
reward decide. What is sampled beyond the size of a rollout begins the next one, with the log-probabilities that it was
sampled with. After the last round the rollout is filled with groups without signal and a warning is logged. A resumed
run goes on with the same prompts and completions. It goes with tools and environments, and not with expert answers or
a `rollout_func`.

## Expert answers, a value model, KL in the reward

`luffy`, `srft`, `hpt`, `chord` and `uft` learn from an expert's answers too: [expert_data.md](expert_data.md) has the
form of the data and a command for each. [ppo.md](ppo.md) is about `ppo` and its value model, and about
`--kl_in_reward`, which
goes with every algorithm of the GRPO trainer.
"""


def page() -> str:
    """Return the whole page."""
    rows = [_row(name, recipe) for name, recipe in RECIPES.items()]
    options = [_options(name, recipe) for name, recipe in RECIPES.items() if recipe.options]
    told = "## Options\n\nWhat `--algorithm_options` takes, with its defaults:\n\n" + "\n".join(options)
    refused = "## What is refused\n\n" + "\n".join(REFUSED)
    parts = [HEAD + "\n".join(rows), told, refused, LEARNING.strip(), DYNAMIC.strip(), OWN.strip()]
    return "\n\n".join(parts) + "\n"


REFUSED = (
    "- Several updates of a rollout where an algorithm is exactly on-policy:",
    f"  {', '.join(f'`{name}`' for name, recipe in RECIPES.items() if recipe.is_on_policy)}.",
    "- One update where nothing has moved before it: `kl_cov`.",
    "- Settings that an own loss would leave out (`--delta`, `--entropy_coef`, `--top_entropy_quantile`, `--epsilon`",
    "  where nothing is clipped) or an own advantage (`--scale_rewards`, `--multi_objective_aggregation`).",
    "- One completion of a prompt, except for",
    f"  {', '.join(f'`{name}`' for name, recipe in RECIPES.items() if recipe.min_generations == 1)}.",
    "- `remax` with vLLM or tools, which give no greedy completion.",
)


def _row(name: str, recipe: Recipe) -> str:
    where = f" ({recipe.paper})" if recipe.paper else ""
    trainer = " `--trainer rloo`." if recipe.trainer == "rloo" else ""
    updates = "1" if recipe.is_on_policy else str(recipe.mini_batches)
    return f"| `{name}` | {recipe.summary}{where}.{trainer} | {recipe.formula} | {updates} |"


def _options(name: str, recipe: Recipe) -> str:
    return f"- `{name}`: `{json.dumps(recipe.options)}`"


def main() -> int:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
