"""Completions in the training dashboard: the newest, and a sample of older ones from the whole run.

All sizes are bounded: groups, completions of a group, characters of a text, images of a prompt, bytes of an image.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vlm_grpo.answer_parser import completion_text
from vlm_grpo.data.images import image_ref, open_image
from vlm_grpo.evaluation.report.learning_curves import script_dumps
from vlm_grpo.records import Completion, JsonObject, Row
from vlm_grpo.rollouts.logged_rollout import LoggedRollout, content_text

NEWEST = 24  # groups
SAMPLE = 24  # older groups
GROUPS = 2  # per rollout
COMPLETIONS = 8  # per group
IMAGES = 3  # per prompt
SIDE = 256  # pixels, the longer side of an image
IMAGE_BYTES = 40_000
COMPLETION_LENGTH, PROMPT_LENGTH, TRUTH_LENGTH = 2000, 1000, 300  # characters
# Control characters, changes of the text direction, and unpaired surrogates, which cannot be encoded.
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
CompletionGroup = JsonObject  # as in the page, with `number`: the number of earlier groups


@dataclass
class Gallery:
    """Groups of completions, oldest first."""

    stride: int = 1  # older groups are kept if their number is a multiple of it
    count: int = 0  # groups so far
    sample: list[CompletionGroup] = field(default_factory=list)
    newest: list[CompletionGroup] = field(default_factory=list)
    _encoded: dict[int, str] = field(default_factory=dict)

    def add(self, group: CompletionGroup) -> CompletionGroup:
        """Add a group and assign its number, unless it has one."""
        group.setdefault("number", self.count)
        self.count = group["number"] + 1
        self.newest.append(group)
        if len(self.newest) > NEWEST:
            oldest = self.newest.pop(0)
            if oldest["number"] % self.stride == 0:
                self.sample.append(oldest)
        while len(self.sample) > SAMPLE:
            self.stride *= 2
            self.sample = [group for group in self.sample if group["number"] % self.stride == 0]
        return group

    @property
    def groups(self) -> list[CompletionGroup]:
        """Return all groups on the page."""
        return [*self.sample, *self.newest]

    def forget_after(self, step: int) -> None:
        """Remove everything after the step from which training resumes."""
        self.sample = [group for group in self.sample if group["step"] <= step]
        self.newest = [group for group in self.newest if group["step"] <= step]
        self.count = max((group["number"] + 1 for group in self.groups), default=0)
        self._encoded = {}

    @property
    def image_names(self) -> set[str]:
        """Return the file names of all images on the page."""
        return {name for group in self.groups for name in group["images"]}

    def encoded(self) -> str:
        """Return the groups as JSON."""
        groups = self.groups
        self._encoded = {group["number"]: self._encoded.get(group["number"]) or script_dumps(group) for group in groups}
        return f'"groups":[{",".join(self._encoded.values())}],"newest":{len(self.newest)}'


def restore_gallery(stride: int, groups: Sequence[CompletionGroup]) -> Gallery:
    """Restore a gallery from its stored groups, oldest first."""
    gallery = Gallery(stride)
    for group in groups:
        gallery.add(group)
    return gallery


def groups_of(
    rollout: LoggedRollout, size: int, weights: Mapping[str, float]
) -> tuple[list[CompletionGroup], dict[str, bytes]]:
    """Return the first groups of a rollout for a page, and their images by file name.

    Args:
        rollout: samples of one process; groups may be incomplete.
        size: completions per group.
        weights: weights of the rewards.
    """
    images: dict[str, bytes] = {}
    groups = []
    for start in range(0, len(rollout.rows), size)[:GROUPS]:
        members = range(start, min(start + size, len(rollout.rows)))
        files = encode_images(rollout.images[start][:IMAGES])
        images |= files
        row = rollout.rows[start]
        groups.append(
            {
                "step": rollout.step,
                "prompt": truncate_text(prompt_text(row.get("prompt")), PROMPT_LENGTH),
                "truth": truncate_text(_target_text(row), TRUTH_LENGTH),
                "images": list(files),
                "more_images": len(rollout.images[start]) - len(files),
                "of": len(members),
                "completions": representative_completions(
                    [_completion_view(rollout, index, weights) for index in members]
                ),
            }
        )
    return groups, images


def _completion_view(rollout: LoggedRollout, index: int, weights: Mapping[str, float]) -> JsonObject:
    rewards = {name: _finite(values[index]) for name, values in rollout.rewards.items()}
    weighted = [weights.get(name, 1.0) * value for name, value in rewards.items() if value is not None]
    return {
        "text": truncate_text(messages_text(rollout.completions[index]), COMPLETION_LENGTH),
        "rewards": {name: value if value is None else round(value, 4) for name, value in rewards.items()},
        "reward": round(sum(weighted), 4) if weighted else None,
        "advantage": round(_finite(rollout.advantages[index]) or 0.0, 4),
        "tokens": int(rollout.lengths[index]),
        "is_truncated": bool(rollout.is_truncated[index]),
    }


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def representative_completions(completions: Sequence[JsonObject]) -> list[JsonObject]:
    """Return the completions of a small group; of a large one the best, the worst and some between, best first."""
    if len(completions) <= COMPLETIONS:
        return list(completions)
    ranked = sorted(completions, key=lambda shown: math.inf if shown["reward"] is None else -shown["reward"])
    step = (len(ranked) - 1) / (COMPLETIONS - 1)
    return [ranked[round(place * step)] for place in range(COMPLETIONS)]


def truncate_text(text: str, limit: int) -> str:
    """Truncate a text in the middle to about `limit` characters, and remove control characters."""
    if len(text) > limit:
        tail = limit // 4
        text = f"{text[: limit - tail]} […{len(text) - limit} characters…] {text[-tail:]}"
    return UNSEEN.sub("\ufffd", text)


def messages_text(completion: Completion) -> str:
    """Return the text of a completion; several turns are each preceded by their role."""
    if isinstance(completion, str) or len(completion or []) <= 1:
        return completion_text(completion)
    turns = completion or []
    return "\n".join(f"[{message.get('role')}] {content_text(message.get('content'))}" for message in turns)


def prompt_text(prompt: object) -> str:
    """Return a prompt as text, without the system turn; images and videos as `[image]` and `[video]`."""
    if not isinstance(prompt, Sequence) or isinstance(prompt, str):
        return str(prompt or "")
    turns = [message for message in prompt if message.get("role") != "system"]
    if len(turns) == 1:
        return content_text(turns[0].get("content"))
    return "\n".join(f"[{message.get('role')}] {content_text(message.get('content'))}" for message in turns)


def _target_text(row: Row) -> str:
    value = next((row[name] for name in ("answer", "solution") if row.get(name) is not None), "")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def encode_images(sources: Sequence[object]) -> dict[str, bytes]:
    """Return JPEG files named by a hash of their content; unreadable images are left out."""
    contents = []
    for source in sources:
        try:
            contents.append(encode_image(source))
        except ValueError:
            continue
    return {f"{hashlib.sha256(content).hexdigest()[:16]}.jpg": content for content in contents}


def encode_image(source: object) -> bytes:
    """Return JPEG bytes of an image, at most 256 pixels on the longer side and 40,000 bytes."""
    image = open_image(image_ref(source))
    image.thumbnail((SIDE, SIDE), reducing_gap=2.0)
    for quality in (85, 60, 30, 10):
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=quality)
        if buffer.tell() <= IMAGE_BYTES:
            break
    return buffer.getvalue()
