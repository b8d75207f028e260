"""A folder from which an engine loads the policy's model with the processor of the run, pixel limits included."""

from __future__ import annotations

from pathlib import Path

from transformers import ProcessorMixin
from transformers.utils import cached_file

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")


def link_model(model: str, processor: ProcessorMixin, folder: str | Path) -> Path:
    """Make a folder of links to a model's files, beside the processor of the run, and return it.

    Args:
        model: folder or Hub name of the model that the policy was loaded from.
        processor: of the run; what it was set to wins over the model's files.
        folder: to make.

    Raises:
        ValueError: the model's files are not on this machine.
    """
    config = cached_file(model, "config.json", _raise_exceptions_for_missing_entries=False) if model else None
    if config is None:
        raise ValueError(
            f"a rollout engine loads the model from its files, and {model or 'a model without a name'} has no "
            "config.json on this machine: save the model with its processor in a folder, and load it from there"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for source in Path(config).parent.iterdir():
        link = folder / source.name
        if source.is_file() and source.name not in PROCESSOR_FILES and not link.exists():
            link.symlink_to(source.resolve())
    for name in (*PROCESSOR_FILES, "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)  # a link: writing would change the model's own file
    processor.save_pretrained(folder)
    return folder
