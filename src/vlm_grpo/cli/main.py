"""`vlm-grpo COMMAND ...`: every command is a module with `main(argv) -> int`, which is imported on demand."""

from __future__ import annotations

import importlib
import os
import sys

from vlm_grpo.registry import unknown_name

COMMANDS = {
    "train": "train with GRPO or RLOO (the same as grpo_jsonl.py)",
    "evaluate": "evaluate a model, checkpoint or server on a data set",
    "compare": "compare two evaluations of the same data",
    "check": "list all problems of a data set",
    "preview": "show rendered prompts with their images and the reward of the gold answer",
    "tasks": "list the tasks",
    "rewards": "list the rewards",
    "algorithms": "list the algorithms",
    "environments": "list the environments",
    "engines": "list the rollout engines",
    "families": "list the model families and their features",
    "index": "index documents for the environment agent_search",
    "quickstart": "train a tiny model on handwritten digits on a CPU, without a download",
}
LISTS = ("tasks", "rewards", "algorithms", "environments", "engines", "families")
# Commands with a module other than vlm_grpo.cli.COMMAND.
MODULES = {"index": "vlm_grpo.cli.build_index", "quickstart": "vlm_grpo.quickstart.demo"}


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit status; a pipe that is closed early, such as `| head`, is not an error."""
    try:
        status = run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # prevents an error message at exit
        return 0


def run(words: list[str]) -> int:
    """Run the command named by the first argument; return its exit status."""
    if not words or words[0] in ("-h", "--help"):
        print("usage: vlm-grpo COMMAND [--help]\n")
        print("\n".join(f"  {name:<12} {text}" for name, text in COMMANDS.items()))
        return 0 if words else 2
    if words[0] not in COMMANDS:
        print(f"vlm-grpo: {unknown_name('command', words[0], list(COMMANDS))}", file=sys.stderr)
        return 2
    if words[0] in LISTS:
        return importlib.import_module("vlm_grpo.cli.list").main(words)
    return importlib.import_module(MODULES.get(words[0], f"vlm_grpo.cli.{words[0]}")).main(words[1:])


if __name__ == "__main__":
    sys.exit(main())
