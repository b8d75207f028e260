"""What a command of the package ended with, for campaigns: its status and what it said, or the exception it let out."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

HANGS_AFTER = 180  # seconds, after which a command counts as hanging: every stack is shown and the tests end


@dataclass(frozen=True)
class Outcome:
    """`status` is the command's; `trace` holds the traceback of an exception that nobody caught."""

    status: int | str | None
    said: str
    trace: str = ""

    @property
    def is_named(self) -> bool:
        """Whether it worked, or said in words what was wrong."""
        return not self.trace and (self.status in (0, None) or bool(self.said.strip()))


def outcome(command: Callable[[list[str]], int], words: Sequence[str]) -> Outcome:
    """Run a command in this process and put the environment back as it was."""
    before, said, trace = dict(os.environ), io.StringIO(), ""
    faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)
    status: int | str | None = "exception"
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            status = command(list(words))
    except SystemExit as end:
        status = end.code
    except BaseException:
        trace = traceback.format_exc()
    finally:
        faulthandler.cancel_dump_traceback_later()
        os.environ.clear()
        os.environ.update(before)
    return Outcome(status, said.getvalue(), trace)


def training(model: Path, data: Path, images: Path, output: Path, **flags: object) -> list[str]:
    """The words of a training of one step."""
    quick = {
        "model_name_or_path": model,
        "data_file_paths": data,
        "image_folders": images,
        "output_dir": output,
        "num_generations": 2,
        "per_device_train_batch_size": 2,
        "max_completion_length": 4,
        "max_steps": 1,
        "report_to": "none",
        "bf16": "false",
        "use_cpu": "true",
        "gradient_checkpointing": "false",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": "true",
    }
    return [f"--{name}={value}" for name, value in {**quick, **flags}.items()]
