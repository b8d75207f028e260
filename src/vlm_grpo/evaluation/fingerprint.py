"""Short digests of data and model, to detect whether two evaluations used the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from vlm_grpo.records import ImageRef, Record, Row, VideoRef

WEIGHTS = (".safetensors", ".bin", ".json")


def digest(parts: Iterable[str]) -> str:
    """Return the digest of a sequence of texts, 16 hexadecimal digits."""
    hasher = hashlib.blake2b(digest_size=8)
    for part in parts:
        hasher.update(part.encode("utf-8", "surrogatepass"))
        hasher.update(b"\0")
    return hasher.hexdigest()


def record_digest(record: Record) -> str:
    """Return the digest of question and gold answer, independent of image folder and prompt template.

    Image files are represented by name and size, so that no image has to be read.
    """
    facts = [record.question, record.answer, list(record.options), list(record.reference_steps), record.method]
    extra = {name: record.extra[name] for name in ("box_space", "box_image", "mask") if name in record.extra}
    media = [_medium(ref) for ref in record.images] + [_medium(ref) for ref in record.videos]
    return digest([json.dumps([*facts, extra, media], sort_keys=True, default=str)])


def _medium(ref: ImageRef | VideoRef) -> list[object]:
    source = ref.source
    if isinstance(source, bytes):
        return [hashlib.blake2b(source, digest_size=8).hexdigest()]
    if isinstance(source, tuple):
        return [_medium(frame) for frame in source]
    if not isinstance(source, str):  # decoded by the caller
        return [str(getattr(source, "size", None) or getattr(source, "shape", None))]
    path = Path(source)
    return [path.name, path.stat().st_size] if "://" not in source and path.is_file() else [source]


def data_digest(rows: Iterable[Row]) -> dict[str, str]:
    """Return digests of rows: `data` of their records, `prompts` of their messages."""
    pairs = [(record_digest(row["record"]), json.dumps(row["prompt"], sort_keys=True, default=str)) for row in rows]
    return {"data": digest(pair[0] for pair in pairs), "prompts": digest(pair[1] for pair in pairs)}


def model_digest(name: str) -> str | None:
    """Return the digest of names, sizes and times of a model folder's files; None for a name on the Hub or a server."""
    folder = Path(name)
    if not folder.is_dir():
        return None
    files = sorted(path for path in folder.iterdir() if path.suffix in WEIGHTS)
    return digest(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files)
