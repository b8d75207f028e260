"""Write trl_flags.json: the names of TRL's flags and a line of help each. Run it after changing the TRL version.

python docs/gen_trl_flags.py
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # also runs from a checkout

TARGET = Path(__file__).resolve().parents[1] / "src" / "vlm_grpo" / "cli" / "trl_flags.json"


def collect() -> dict[str, dict[str, str]]:
    """Return flag names with the first sentence of their help, from the installed TRL and our configurations."""
    from trl import ModelConfig, TrlParser

    from vlm_grpo.trainers.config import VLMGRPOConfig, VLMRLOOConfig

    kinds = {"grpo": VLMGRPOConfig, "rloo": VLMRLOOConfig, "model": ModelConfig}
    return {name: _flags(TrlParser(kind)) for name, kind in kinds.items()}


def _flags(parser: object) -> dict[str, str]:
    flags = {}
    for action in parser._actions:
        for option in action.option_strings:
            name = option.removeprefix("--")
            if option.startswith("--") and "-" not in name and name != "help" and not name.startswith("no_"):
                flags[name] = _first_sentence(action.help or "")
    return dict(sorted(flags.items()))


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=[.])\s", re.sub(r"\s+", " ", text).strip())[0].replace("`", "")[:110]


def main() -> None:
    """Write the file."""
    TARGET.write_text(json.dumps(collect(), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
