"""Launch target of a training run, for `accelerate launch`, `torchrun`, `deepspeed` and `python -m`.

accelerate launch src/vlm_grpo/grpo_jsonl.py --model_name_or_path ... --data_file_paths ... --reward_funcs accuracy
All work is in `vlm_grpo.cli.train`; `vlm-grpo train` does the same.
"""

from __future__ import annotations

import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a file: this folder's modules must not shadow top-level packages
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(entry for entry in sys.path if Path(entry or ".").resolve() != here)]

from vlm_grpo.cli.train import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
