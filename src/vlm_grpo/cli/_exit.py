"""Map the errors of a command or data tool to a message and an exit status."""

from __future__ import annotations

import sys
from collections.abc import Callable

from vlm_grpo.data.errors import DataError, problem_table


def exit_status(work: Callable[[], int]) -> int:
    """Run `work` and return its status (0, or 1 for problems); 1 after a DataError, 2 after a usage error."""
    try:
        return work()
    except DataError as error:
        print(f"nothing was written\n{problem_table(error.problems)}", file=sys.stderr)
        return 1
    except (OSError, ValueError, KeyError) as error:
        print(f"error: {error.args[0] if isinstance(error, KeyError) else error}", file=sys.stderr)
        return 2
