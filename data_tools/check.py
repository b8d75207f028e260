"""Print all problems of a data set with line numbers and counts, like `vlm-grpo check`.

python data_tools/check.py --data_file_paths train.jsonl --image_folders images
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # also runs from a checkout


def main(argv: list[str] | None = None) -> int:
    """Return the exit status: 0, 1 if there are problems, 2 for a usage error."""
    from vlm_grpo.cli.check import main as check

    return check(argv)


if __name__ == "__main__":
    sys.exit(main())
