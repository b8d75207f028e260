"""Sixty functions as users write them, as rewards of a training: each works, or is refused by its name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.campaigns.outcome import outcome, training
from tests.trainers.test_kill import write_data
from vlm_grpo.cli import train

# name -> (source, whether it is a reward). Every source defines `f`.
WORKING = {
    "record": "def f(completion, record): return float(len(completion) % 3)",
    "record_none": "def f(completion, record): return None if record.id == 0 else 1.0",
    "record_bool": "def f(completion, record): return True",
    "record_int": "def f(completion, record): return 1",
    "record_numpy": "import numpy as np\ndef f(completion, record): return np.float32(0.5)",
    "record_tensor": "import torch\ndef f(completion, record): return torch.tensor(0.5)",
    "truth": "def f(completion, ground_truth): return float(completion == ground_truth)",
    "answer": "def f(completion, answer): return float(completion == answer)",
    "solution": "def f(completion, solution): return float(solution in completion)",
    "gt": "def f(response, gt): return float(response == gt)",
    "batch": "def f(completions, **columns): return [0.5] * len(completions)",
    "batch_prompts": "def f(prompts, completions, **columns): return [0.5] * len(prompts)",
    "batch_solution": "def f(completions, solution, **kwargs): return [float(len(s)) for s in solution]",
    "batch_tuple": "def f(completions, **columns): return tuple(0.5 for _ in completions)",
    "batch_tensor": "import torch\ndef f(completions, **columns): return torch.ones(len(completions))",
    "batch_numpy": "import numpy as np\ndef f(completions, **columns): return np.zeros(len(completions))",
    "batch_some_none": "def f(completions, **columns): return [None if n else 1.0 for n, _ in enumerate(completions)]",
    "batch_async": "async def f(completions, **columns): return [0.5] * len(completions)",
    "batch_problem": "def f(completions, problem, **kwargs): return [float(len(p)) for p in problem]",
    "lambda": "f = lambda completion, record: 0.5",
    "partial": "from functools import partial\ndef g(completion, record, *, s): return s\nf = partial(g, s=0.5)",
    "callable": "class G:\n    def __call__(self, completion, record): return 0.5\nf = G()",
    "callable_batch": "class G:\n    def __call__(self, completions, **_): return [0.5] * len(completions)\nf = G()",
    "wrapped": "import functools\ndef d(g):\n    @functools.wraps(g)\n    def h(*a, **k): return g(*a, **k)\n"
    "    return h\n@d\ndef f(completion, record): return 0.5",
    "default": "def f(completion, record, scale=2.0): return scale",
    "dict_form": "def f(reward_input: dict): return {'overall': 0.5, 'format': 1.0}",
    "list_form": "def f(reward_inputs: list): return [{'overall': 0.5} for _ in reward_inputs]",
    "verl": "def f(data_source, solution_str, ground_truth, extra_info=None): return float(len(solution_str) % 2)",
}
BROKEN = {
    "nan": "def f(completion, record): return float('nan')",
    "inf": "def f(completion, record): return float('inf')",
    "huge": "def f(completion, record): return 1e300",
    "huge_int": "def f(completion, record): return 10 ** 400",
    "text": "def f(completion, record): return 'much'",
    "list": "def f(completion, record): return [0.5]",
    "dict": "def f(completion, record): return {'reward': 0.5}",
    "complex": "def f(completion, record): return 1j",
    "raises": "def f(completion, record): raise KeyError('x')",
    "assert": "def f(completion, record): assert False",
    "exits": "import sys\ndef f(completion, record): sys.exit(0)",
    "recursion": "def f(completion, record): return f(completion, record)",
    "stops": "def f(completion, record): raise StopIteration",
    "one_argument": "def f(completion): return 0.5",
    "no_argument": "def f(): return 0.5",
    "four_arguments": "def f(a, b, c, d): return 0.5",
    "batch_short": "def f(completions, **columns): return [0.5]",
    "batch_long": "def f(completions, **columns): return [0.5] * (len(completions) + 1)",
    "batch_none": "def f(completions, **columns): return None",
    "batch_number": "def f(completions, **columns): return 0.5",
    "batch_text": "def f(completions, **columns): return ['a'] * len(completions)",
    "batch_nan": "def f(completions, **columns): return [float('nan')] * len(completions)",
    "batch_generator": "def f(completions, **columns):\n    yield from [0.5] * len(completions)",
    "batch_raises": "def f(completions, **columns): raise ValueError('no')",
    "batch_column": "def f(completions, no_such_column, **columns): return [0.5] * len(completions)",
    "batch_strict": "def f(completions): return [0.5] * len(completions)",
    "single_async": "async def f(completion, record): return 0.5",
    "class": "class f:\n    def __init__(self, completion, record): pass",
    "not_callable": "f = 0.5",
    "missing": "def g(completion, record): return 0.5",
    "syntax": "def f(completion, record) return 0.5",
    "imports": "import no_such_package\ndef f(completion, record): return 0.5",
    "import_raises": "raise RuntimeError('at import')\ndef f(completion, record): return 0.5",
    "import_exits": "import sys\nsys.exit(3)\ndef f(completion, record): return 0.5",
    "indentation": "def f(completion, record):\nreturn 0.5",
    "empty": "",
    "null_byte": "def f(completion, record): return '\0'",
}


def end_of(source: str, model: Path, folder: Path) -> tuple[object, str, str]:
    write_data(folder)
    (folder / "own.py").write_text(source, encoding="utf-8")
    words = training(model, folder / "a.jsonl", folder, folder / "out", reward_funcs=f"{folder}/own.py:f")
    end = outcome(train.main, words)
    return end.status, end.said, end.trace


@pytest.mark.extended
@pytest.mark.parametrize("name", WORKING)
def test_a_reward_in_a_known_form_trains(name: str, tiny_model: Path, tmp_path: Path):
    status, said, trace = end_of(WORKING[name], tiny_model, tmp_path)
    assert status == 0 and not trace, said[-2000:] + trace[-2000:]
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    assert any("reward" in entry for entry in history)


@pytest.mark.extended
@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_reward_is_refused_by_its_name(name: str, tiny_model: Path, tmp_path: Path):
    status, said, trace = end_of(BROKEN[name], tiny_model, tmp_path)
    assert status != 0
    assert "own.py" in said or "reward 'f'" in said + trace, said[-2000:] + trace[-2000:]
    assert not (tmp_path / "out" / "model.safetensors").exists()
