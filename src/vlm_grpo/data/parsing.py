"""Parse one row of a source into a Record. Reads no files and decodes no images.

Three formats: `conversations` (human and gpt turns), columns (question, answer, images, with any names), and VQA
(columns with options and reference steps). In a conversation the last gpt turn is the gold answer to the last human
turn; all earlier turns become history.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from vlm_grpo.answer_parser import extract_answer
from vlm_grpo.data.conversations import Conversation, read_turns
from vlm_grpo.data.errors import Problem, known_name, show_value
from vlm_grpo.data.gold_answers import (
    LETTERS,
    ONE_ANSWER,
    VERL,
    answers_equal,
    is_finite,
    option_letter,
    parse_shape_answer,
    strip_option_letters,
    unwrap_answer,
)
from vlm_grpo.data.images import image_ref
from vlm_grpo.data.markup import EXPECTED, find_markup
from vlm_grpo.data.paths import in_folder, leaves_folder
from vlm_grpo.data.target_validation import BOX_COLUMNS, DETECTION_TASKS, SHAPE_TASKS, validate_shapes
from vlm_grpo.data.videos import video_items, video_ref
from vlm_grpo.prompts import MARKER, VIDEO_MARKER
from vlm_grpo.records import ImageRef, Record, Row, VideoRef
from vlm_grpo.rewards.accuracy import METHODS
from vlm_grpo.tasks import TASKS

QUESTION_KEYS = ("conversations", "problem", "question", "prompt", "messages")
ANSWER_KEYS = ("answer", "solution", "ground_truth")
IMAGE_KEYS = ("images", "image")
VIDEO_KEYS = ("videos", "video")


@dataclass(frozen=True)
class ReaderConfig:
    """Settings for parsing the rows of a source; a key of None means the usual column names."""

    folder: str = ""
    method: str | None = None
    task: str = "default"
    prompt_key: str | None = None
    answer_key: str | None = None
    image_key: str | None = None
    video_key: str | None = None
    allow_outside: bool = False
    ignored: tuple[str, ...] = ()  # columns that are not read
    allow_private_urls: bool = False
    markup: tuple[str, ...] | None = None  # special tokens that no text may contain; None means all known ones


class ParsedRow(NamedTuple):
    """Result of parsing a row: the record (None after an error), all problems, and the images in either case."""

    record: Record | None
    problems: list[Problem]
    images: tuple[ImageRef, ...] = ()
    videos: tuple[VideoRef, ...] = ()


def parse_row(row: Row, where: str, number: int, config: ReaderConfig) -> ParsedRow:
    """Parse a row to a record or problems. `number` is the id of a row without one."""
    if config.ignored:
        row = {name: value for name, value in row.items() if name not in config.ignored}
    reader = _RowParser(row, where, config)
    record = reader.record(number)
    if not any(not problem.is_warning for problem in reader.problems):
        for markup in find_markup(record, config.markup):
            reader.wrong(reader.question_key or "question", markup, EXPECTED)
    failed = any(not problem.is_warning for problem in reader.problems)
    return ParsedRow(None if failed else record, reader.problems, record.images, record.videos)


def parse_raw_row(raw: Row | Problem, where: str, number: int, config: ReaderConfig) -> ParsedRow:
    """Parse a raw row, which may already be a problem."""
    return ParsedRow(None, [raw]) if isinstance(raw, Problem) else parse_row(raw, where, number, config)


class _RowParser:
    """Parse the fields of one row and collect their problems."""

    def __init__(self, row: Row, where: str, config: ReaderConfig) -> None:
        self.row = row
        self.where = where
        self.config = config
        self.problems: list[Problem] = []
        self.question_key: str | None = None
        self.is_asked = False  # whether the question can be read
        self.used: set[str] = {"id", "task", *IMAGE_KEYS, *VIDEO_KEYS}

    def wrong(self, field: str, found: str, expected: str) -> None:
        self.problems.append(Problem(self.where, field, found, expected))

    def record(self, number: int) -> Record:
        key = self.question_key = self.key(self.config.prompt_key, QUESTION_KEYS, "the question")
        conversation = self.conversation(key)
        self.is_asked = not self.problems
        options = self.options()
        answer = self.answer(conversation, options)
        images = self.images()
        question, images = self.place(conversation, images, options, key)
        videos = self.videos(conversation, key)
        task = self.task()
        self.check_box(answer, task, len(images))
        return Record(
            id=self.identity(number),
            question=question,
            answer=answer,
            images=tuple(ref for ref in images if ref is not None),
            videos=videos,
            system=self.system(conversation),
            history=tuple(conversation.history),
            task=task,
            method=self.method(),
            options=options,
            reference_steps=self.reference_steps(),
            where=self.where,
            extra={name: value for name, value in self.row.items() if name not in self.used},
        )

    def key(self, configured: str | None, usual: tuple[str, ...], meaning: str) -> str | None:
        """Return the name of a column: the configured one, else the first of the usual ones that is not null."""
        names = (configured,) if configured else usual
        for name in names:
            if self.row.get(name) is not None:
                return name
        have = ", ".join(map(str, self.row)) or "none"
        self.wrong(names[0], f"missing or null (the row has: {have})", f"{meaning} in column {' or '.join(names)}")
        return None

    def conversation(self, key: str | None) -> Conversation:
        if key is None:
            return Conversation()
        self.used.add(key)
        value = self.row[key]
        if isinstance(value, str) and key != "conversations":
            if not value.strip():
                self.wrong(key, "empty text", "a question")
            return Conversation(question=value)
        if key != "conversations" and not isinstance(value, list | tuple):
            self.wrong(
                key or "options", f"{type(value).__name__} {show_value(value)}", "text, or a list of chat messages"
            )
            return Conversation()
        conversation, problems = read_turns(value, key)
        for field, found, expected in problems:
            self.wrong(field, found, expected)
        return conversation

    def answer(self, conversation: Conversation, options: tuple[str, ...]) -> object:
        """Return the gold answer without `<answer>` tags, from the answer column or the last gpt turn."""
        field, value = self.answer_field(conversation)
        if field is None:
            return None
        if field == "answer":
            self.used.add("answer")
        value, expected = option_letter(unwrap_answer(value), options)
        if expected is not None:
            self.wrong(field, show_value(value), expected)
        if isinstance(value, str):
            value = extract_answer(value) or value
            if not value.strip():
                self.wrong(field, "empty text", "the gold answer")
        elif not isinstance(value, int | float | list | dict) or not is_finite(value):
            expected = "text, a number (finite), a list or an object"
            self.wrong(field, f"{type(value).__name__} {show_value(value)}", expected)
        task = self.row.get("task") or self.config.task
        return parse_shape_answer(value, is_list=task in DETECTION_TASKS) if task in SHAPE_TASKS else value

    def answer_field(self, conversation: Conversation) -> tuple[str | None, object]:
        """Return the field of the gold answer and its value; a second, different answer is a problem."""
        if self.config.answer_key is not None:
            field = self.key(self.config.answer_key, ANSWER_KEYS, "the answer")
            return field, None if field is None else self.row[field]
        if conversation.answer_field is None:
            if not self.is_asked:
                return None, None  # without a question, a missing answer is a consequence and not reported again
            field = self.key(None, (*ANSWER_KEYS, VERL), "the answer (or a gpt turn at the end)")
            return field, None if field is None else self.row[field]
        for name in ANSWER_KEYS:
            if (value := self.row.get(name)) is not None and not answers_equal(value, conversation.answer):
                self.wrong(name, f"{show_value(value)}, not the answer of the gpt turn", ONE_ANSWER.format(name))
        return conversation.answer_field, conversation.answer

    def system(self, conversation: Conversation) -> str | None:
        """Return the system message of the conversation or of the column `system`."""
        value = self.row.get("system")
        if value is None:
            return conversation.system
        self.used.add("system")
        if not isinstance(value, str):
            self.wrong("system", f"{type(value).__name__} {show_value(value)}", "text")
        elif conversation.system is not None and conversation.system != value:
            self.wrong("system", f"{show_value(value)}, not the text of the system turn", "one system turn")
        return conversation.system or value or None

    def images(self) -> list[ImageRef | None]:
        """Return the images of the image column, with None for an invalid one."""
        names = (self.config.image_key,) if self.config.image_key else IMAGE_KEYS
        self.used.update(names)
        key = next((name for name in names if self.row.get(name)), None)
        if key is None:
            return []
        value = self.row[key]
        if isinstance(value, list | tuple):
            return [self.image(f"{key}[{number}]", item) for number, item in enumerate(value)]
        return [self.image(key, value)]

    def image(self, field: str, value: object) -> ImageRef | None:
        """Return a reference to one image; paths are joined with the image folder and must stay in it."""
        try:
            ref = image_ref(value, self.where)
        except ValueError as error:
            found = str(error) if isinstance(value, str) else f"{type(value).__name__} {show_value(value)}"
            self.wrong(field, found, "a path, URL, base64 text or {bytes, path}")
            return None
        if not isinstance(ref.source, str):
            return ref
        if not self.config.allow_outside and leaves_folder(self.config.folder, ref.source):
            folder = self.config.folder or "the working directory"
            absolute = "without an image folder, any absolute path; " if ref.source.startswith("/") else ""
            allowed = f"a path inside {folder} ({absolute}--allow_outside allows others)"
            self.wrong(field, show_value(ref.source), allowed)
            return None
        return ImageRef(in_folder(self.config.folder, ref.source), self.where, self.config.allow_private_urls)

    def place(
        self, conversation: Conversation, images: list[ImageRef | None], options: tuple[str, ...], key: str | None
    ) -> tuple[str, list[ImageRef | None]]:
        """Return the question with a marker for every image, and the images in the order of the markers.

        Images without a marker come first; in a conversation this is a warning.
        """
        slots = conversation.inline + [None] * sum(option.count(MARKER) for option in options)
        markers = slots.count(None)
        if markers > len(images):
            self.wrong(key or "question", f"{markers} {MARKER} markers", f"as many images, the row has {len(images)}")
            return conversation.question, images
        unmarked = len(images) - markers
        if unmarked and (markers or conversation.answer_field is not None):
            found = f"{markers} {MARKER} markers for {len(images)} images"
            self.problems.append(
                Problem(
                    self.where, key or "", found, "a marker for every image; images without one are placed first", True
                )
            )
        remaining = iter(images[unmarked:])
        inline_images = [next(remaining) if slot is None else self.image(f"{key} image", slot) for slot in slots]
        return self.mark_first(conversation, unmarked), [*images[:unmarked], *inline_images]

    def mark_first(self, conversation: Conversation, count: int) -> str:
        """Insert markers for `rest` images before the first user turn; return the question."""
        if not count or not conversation.history:
            return MARKER * count + conversation.question
        first = next(n for n, turn in enumerate(conversation.history) if turn["role"] == "user")
        turn = conversation.history[first]
        conversation.history[first] = {**turn, "content": MARKER * count + turn["content"]}
        return conversation.question

    def options(self) -> tuple[str, ...]:
        """Return the answer options without their letters."""
        key = next((name for name in ("options", "choices") if self.row.get(name)), None)
        value = self.row[key] if key else []
        if isinstance(value, Mapping):
            has_letters = list(map(str, value)) == list(LETTERS[: len(value)])
            value = list(value.values()) if has_letters else value
        is_list = isinstance(value, list | tuple) and all(type(item) in (str, int, float) for item in value)
        if key and (not is_list or len(value) > len(LETTERS)):
            self.wrong(key, f"{type(value).__name__} {show_value(value)}", "a list of at most 26 texts")
            return ()
        return strip_option_letters([str(item) for item in value])

    def reference_steps(self) -> tuple[str, ...]:
        value = self.row.get("reference_steps")
        if value is None:
            return ()
        if not isinstance(value, list | tuple) or not all(isinstance(step, str) and step.strip() for step in value):
            self.wrong("reference_steps", f"{type(value).__name__} {show_value(value)}", "a list of non-empty texts")
            return ()
        return tuple(value)

    def identity(self, number: int) -> str | int:
        value = self.row.get("id")
        if value is None:
            return number
        if type(value) not in (str, int):
            self.wrong("id", f"{type(value).__name__} {show_value(value)}", "text or a whole number")
        return value

    def task(self) -> str:
        return self.named("task", list(TASKS)) or self.config.task

    def method(self) -> str | None:
        return self.named("accu_reward_method", list(METHODS)) or self.config.method

    def named(self, field: str, known: list[str]) -> str | None:
        """Return a name in a field; report an unknown name."""
        value = self.row.get(field)
        if value in (None, ""):
            return None
        if value not in known:
            self.wrong(field, show_value(value), known_name(value, known))
        return value

    def videos(self, conversation: Conversation, key: str | None) -> tuple[VideoRef, ...]:
        """Return the videos of the video column; there must not be more `<video>` markers in user turns than videos."""
        names = (self.config.video_key,) if self.config.video_key else VIDEO_KEYS
        self.used.update(names)
        column = next((name for name in names if self.row.get(name)), None)
        refs = [] if column is None else [self.video(column, item) for item in video_items(self.row[column])]
        questions = [turn["content"] for turn in conversation.history if turn["role"] == "user"]
        markers = sum(text.count(VIDEO_MARKER) for text in (*questions, conversation.question))
        if markers > len(refs):
            have = f"as many videos, the row has {len(refs)}"
            self.wrong(key or "question", f"{markers} {VIDEO_MARKER} markers", have)
        return tuple(ref for ref in refs if ref is not None)

    def check_box(self, answer: object, task: str, images: int) -> None:
        """Check the gold box or mask and its columns; null columns count as missing."""
        columns = [name for name in BOX_COLUMNS if name in self.row]
        self.used.update(name for name in columns if self.row[name] is None)
        for problem in validate_shapes(self.row, answer, task, images) if answer is not None else ():
            self.wrong(*problem)

    def video(self, field: str, value: object) -> VideoRef | None:
        """Return a reference to one video; paths of the file or its frames must stay inside the image folder."""
        try:
            ref = video_ref(value, self.where)
        except ValueError:
            expected = 'a path, URL, list of frames or {"video", "fps", "max_frames"}'
            self.wrong(field, f"{type(value).__name__} {show_value(value)}", expected)
            return None
        if isinstance(ref.source, tuple):
            frames = [self.image(field, frame) for frame in ref.source]
            found = tuple(frame for frame in frames if frame is not None)
            return replace(ref, source=found) if len(found) == len(frames) else None
        if not isinstance(ref.source, str):
            return ref
        path = self.image(field, ref.source)
        if path is None:
            return None
        return VideoRef(str(path.source), ref.where, ref.fps, ref.max_frames, path.is_private_allowed)
