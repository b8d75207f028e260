"""`vlm-grpo index`: build the search index of the environment agent_search from documents."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from vlm_grpo.cli.command_parser import CommandParser

EXAMPLE = "example: vlm-grpo index notes/ articles.jsonl --output library.index"
SOURCES = (
    "folders of .txt and .md files, single files (also .jsonl, .json and .csv), and Hugging Face data sets "
    "(a folder of save_to_disk, parquet, org/name@split)"
)


def main(argv: list[str] | None = None) -> int:
    """Write the index and return the exit status: 0, 1 for documents that cannot be read, 2 for a usage error."""
    from vlm_grpo.cli._exit import exit_status

    parser = CommandParser("vlm-grpo index", description=__doc__, epilog=EXAMPLE)
    add = parser.add_argument
    add("documents", nargs="+", metavar="DOCUMENTS", help=SOURCES)
    add("--output", required=True, metavar="FILE", help="index file to write")
    add("--id_key", metavar="COLUMN", help="column with the id of a document (default: id, else its number)")
    add("--title_key", metavar="COLUMN", help="column with the title (default: title, if there is one)")
    add("--text_key", metavar="COLUMN", help="column with the text (default: text)")
    add("--overwrite", action="store_true", help="replace an existing file")
    arguments = parser.parse_args(argv)
    return exit_status(lambda: index(arguments))


def index(arguments: argparse.Namespace) -> int:
    """Index the documents and print a summary."""
    from vlm_grpo.envs.retrieval.bm25 import write_index
    from vlm_grpo.envs.retrieval.corpus import ColumnNames

    keys = ColumnNames(arguments.id_key, arguments.title_key, arguments.text_key)
    summary = write_index(arguments.documents, arguments.output, keys=keys, overwrite=arguments.overwrite)
    size = Path(arguments.output).stat().st_size / 2**20
    print(f"{summary.documents:,} documents in {summary.passages:,} passages, {summary.words:,} words")
    print(f"written: {arguments.output} ({size:.1f} MiB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
