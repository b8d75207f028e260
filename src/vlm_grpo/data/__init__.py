"""Data loading: from source files to records, and from records to lazy rows with paths or undecoded bytes."""

from vlm_grpo.data.dataset import load_dataset, val_split
from vlm_grpo.data.errors import DataError, Problem, problem_table
from vlm_grpo.data.parsing import ReaderConfig
from vlm_grpo.data.validation import check_source

__all__ = ["DataError", "Problem", "ReaderConfig", "check_source", "load_dataset", "problem_table", "val_split"]
