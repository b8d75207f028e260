"""Parquet files of EasyR1 and RLLaVA: columns `problem`, `answer`, `images` as a list of {bytes, path}.

Format: https://github.com/hiyouga/EasyR1#custom-dataset. In rows here an image is {"name": its file in the image
folder, "path": what the parquet file calls it}; bytes exist only between a parquet file and the image folder.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_grpo.data.converters._common import (
    IMAGES,
    answer_text,
    build_conversation,
    image_column,
    image_list,
    other_columns,
    roles_and_texts,
)
from vlm_grpo.data.converters.roundtrip import ROUNDTRIP, UnsupportedField, json_digest
from vlm_grpo.data.errors import DataError, Problem
from vlm_grpo.data.images import URL_STARTS, image_ref
from vlm_grpo.data.paths import in_folder, leaves_folder
from vlm_grpo.io import content_name, whole_file, write_once
from vlm_grpo.records import NewRow, Row

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT_COLUMNS = ("problem", "answer", "images")
JSONL_COLUMNS = ("conversations", *IMAGES)
CONTENT_NAME = re.compile(r"[0-9a-f]{32}\.(png|jpg|webp|gif|bmp|tiff)")
BATCH_ROWS = 8  # rows read at a time
GROUP_ROWS = 256  # rows of one row group at most
GROUP_BYTES = 16 * 2**20  # bytes of images after which a row group ends early
METADATA = b"vlm_grpo"  # of the schema: names the columns whose text is JSON


def to_jsonl(row: Row) -> NewRow:
    """Convert a row to the conversations format."""
    for name in ("problem", "answer"):
        if not isinstance(row.get(name), str):
            raise UnsupportedField(name, row.get(name), "text")
    names = [image["name"] for image in row.get("images") or []]
    turns = build_conversation([("user", row["problem"]), ("assistant", row["answer"])])
    return {**other_columns(row, FORMAT_COLUMNS, JSONL_COLUMNS), **image_column(names), "conversations": turns}


def from_jsonl(row: Row) -> NewRow:
    """Convert a row to a parquet row: one question and its answer as text."""
    pairs = roles_and_texts(row)
    if [role for role, _ in pairs] != ["user", "assistant"]:
        raise UnsupportedField(
            "conversations", ", ".join(role for role, _ in pairs), "one question and its answer (user, assistant)"
        )
    images = [_entry(image) for image in image_list(row)]
    columns = other_columns(row, JSONL_COLUMNS, FORMAT_COLUMNS)
    rest = {name: value for name, value in columns.items() if value is not None}
    return {
        "problem": pairs[0][1],
        "answer": answer_text(pairs[1][1]),
        **({"images": images} if images else {}),
        **rest,
    }


def _entry(image: object) -> NewRow:
    if not isinstance(image, str) or not isinstance(image_ref(image).source, str):
        raise UnsupportedField("image", image, "a path or URL")
    return {"name": image, "path": None if CONTENT_NAME.fullmatch(image) else image}


def read_parquet(path: Path, folder: str) -> Iterator[tuple[str, Row | Problem]]:
    """Yield the rows of a file, a few at a time; embedded images are written to the folder.

    Raises:
        DataError: the file is missing or not a parquet file.
    """
    number = 0
    for batch, json_names in _batches(path):
        for row in batch:
            where = f"{path}[{number}]"
            yield where, _read_row(row, json_names, folder, where)
            number += 1


def _batches(path: Path) -> Iterator[tuple[list[Row], set[str]]]:
    """Yield the rows of a file, a few at a time, with the names of columns that contain JSON."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:  # pre-buffering would read the whole file
            json_names = json_columns(file.schema_arrow)
            for batch in file.iter_batches(batch_size=BATCH_ROWS):
                yield batch.to_pylist(), json_names
    except (OSError, pa.ArrowException) as error:
        raise DataError([Problem(str(path), "file", str(error), "a parquet file that can be read")]) from error


def _read_row(row: Row, json_names: set[str], folder: str, where: str) -> NewRow | Problem:
    converted = {name: value for name, value in row.items() if value is not None}
    try:
        for name in json_names & converted.keys():
            converted[name] = json.loads(converted[name])
        images = [_to_file(image, folder) for image in converted.pop("images", [])]
    except UnsupportedField as error:
        return Problem(where, *error.cells)
    return {**converted, "images": images} if images else converted


def _to_file(image: object, folder: str) -> NewRow:
    """Write an image to the folder and return its name: its path if that file has the same content, else a hash."""
    if isinstance(image, str):
        image = {"path": image}
    if not isinstance(image, dict) or not (image.get("bytes") or image.get("path")):
        raise UnsupportedField("images", image, "{bytes, path}")
    content, path = image.get("bytes"), image.get("path")
    if not content:
        return {"name": path, "path": path, "outside": True}
    if path and not os.path.isabs(path) and not leaves_folder(folder, path):
        target = Path(in_folder(folder, path))
        if target.is_file() and target.read_bytes() == content:
            return {"name": path, "path": path}
    try:
        name = content_name(content)
    except ValueError as error:
        raise UnsupportedField("images", str(error), "the bytes of an image file") from error
    try:
        write_once(Path(folder) / name, content)
    except FileExistsError:
        raise UnsupportedField(
            "images", str(Path(folder) / name), "no file of this name, or one with the same image"
        ) from None
    return {"name": name, "path": path}


def json_columns(schema: pa.Schema) -> set[str]:
    """Return the columns whose text is JSON, as recorded by `write_parquet`."""
    noted = (schema.metadata or {}).get(METADATA)
    return set(json.loads(noted)["json"]) if noted else set()


def write_parquet(
    path: Path, rows: Callable[[], Iterable[tuple[str, Row]]], folder: str, problems: list[Problem]
) -> int:
    """Write rows with the bytes of their images; return their number. With `problems` no file is written.

    `rows` is read several times: a parquet column has one type, which the first pass infers. A column without a common
    type is stored as the JSON text of its values.
    """
    types = _column_types(_with_files(rows(), folder, problems))
    while not problems:
        unsupported: set[str] = set()
        count = _write(path, rows(), folder, types, problems, unsupported)
        if not unsupported:
            return count
        types.update(dict.fromkeys(unsupported))
    return 0


def _with_files(rows: Iterable[tuple[str, Row]], folder: str, problems: list[Problem]) -> Iterator[tuple[str, Row]]:
    """Yield the rows; add a problem for each missing image."""
    for where, row in rows:
        for image in row.get("images", []):
            path = in_folder(folder, image["name"])
            if not _is_outside(image) and not os.path.isfile(path):
                problems.append(Problem(where, "image", f"{path}: no such file", "an image that can be read"))
        yield where, row


def _column_types(rows: Iterable[tuple[str, Row]]) -> dict[str, pa.DataType | None]:
    """Return the type of every additional column; None if its values have no common type."""
    import pyarrow as pa

    types: dict[str, pa.DataType | None] = {}
    for _, row in rows:
        for name in row.keys() - set(FORMAT_COLUMNS):
            column_type = None if name == ROUNDTRIP else _type_of(row[name])
            types[name] = _common(types[name], column_type) if name in types else column_type
    return {name: None if kind is not None and pa.types.is_null(kind) else kind for name, kind in types.items()}


def _type_of(value: object) -> pa.DataType | None:
    import pyarrow as pa

    try:
        return pa.infer_type([value])
    except (pa.ArrowException, OverflowError, ValueError, TypeError):
        return None


def _common(first: pa.DataType | None, second: pa.DataType | None) -> pa.DataType | None:
    import pyarrow as pa

    if first is None or second is None or first == second:
        return first if first == second else None
    try:
        schemas = [pa.schema([("x", kind)]) for kind in (first, second)]
        return pa.unify_schemas(schemas, promote_options="permissive").field("x").type
    except pa.ArrowException:
        return None


class _Abort(Exception):
    """Abort writing and discard the file."""


def _write(
    path: Path,
    rows: Iterable[tuple[str, Row]],
    folder: str,
    types: dict[str, pa.DataType | None],
    problems: list[Problem],
    unsupported: set[str],
) -> int:
    """Try once; columns whose type cannot hold their values exactly are added to `unsupported`, and no file is left."""
    import pyarrow.parquet as pq

    schema = _schema(types)
    count = 0
    try:
        with whole_file(path) as file, pq.ParquetWriter(file, schema) as writer:
            for group in _groups(rows, folder, problems):
                if not problems:
                    writer.write_table(_table(group, schema, types, unsupported))
                count += len(group)
                if unsupported:
                    raise _Abort
            if problems:
                raise _Abort
    except _Abort:
        return 0
    return count


def _schema(types: dict[str, pa.DataType | None]) -> pa.Schema:
    import pyarrow as pa

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    fixed_fields = [("problem", pa.string()), ("answer", pa.string()), ("images", pa.list_(image))]
    json_names = sorted(name for name, kind in types.items() if kind is None)
    fields = [*fixed_fields, *((name, kind or pa.string()) for name, kind in types.items())]
    return pa.schema(fields, metadata={METADATA: json.dumps({"json": json_names})} if json_names else None)


def _groups(rows: Iterable[tuple[str, Row]], folder: str, problems: list[Problem]) -> Iterator[list[Row]]:
    """Yield lists of rows with their images as bytes, one list per row group."""
    group: list[Row] = []
    size = 0
    for where, row in rows:
        try:
            images = [_with_bytes(image, folder) for image in row.get("images", [])]
        except OSError as error:
            problems.append(Problem(where, "image", str(error), "an image that can be read"))
            continue
        group.append({**row, "images": images})
        size += sum(len(image["bytes"] or b"") for image in images)
        if len(group) == GROUP_ROWS or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _with_bytes(image: Row, folder: str) -> NewRow:
    content = None if _is_outside(image) else Path(in_folder(folder, image["name"])).read_bytes()
    return {"bytes": content, "path": image["path"]}


def _is_outside(image: Row) -> bool:
    """Return whether only the image's path or URL is stored in the file."""
    return bool(image.get("outside")) or image["name"].startswith(URL_STARTS)


def _table(
    group: list[Row], schema: pa.Schema, types: dict[str, pa.DataType | None], unsupported: set[str]
) -> pa.Table:
    """Return the rows as a table; a column that would not round-trip is left empty and added to `unsupported`."""
    import pyarrow as pa

    columns = []
    for field in schema:
        values = [row.get(field.name) for row in group]
        if field.name in types and types[field.name] is None:
            values = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values]
        try:
            column = pa.array(values, field.type)
        except (pa.ArrowException, OverflowError, ValueError, TypeError):
            column = pa.nulls(len(values), field.type)
        if field.name in types and json_digest(column.to_pylist()) != json_digest(values):
            unsupported.add(field.name)
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=schema)
