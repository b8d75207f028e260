"""The chat template of a command line's model, before the model is loaded: files of the processor alone are read."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vlm_grpo.cli.parsing import UsageError
from vlm_grpo.regular import check_regular

if TYPE_CHECKING:
    from vlm_grpo.cli.arguments import ScriptArguments
    from vlm_grpo.rollouts.chat_template import ChatTemplate

KWARGS_FLAG = "--chat_template_kwargs"
PATH_HELP = "chat template in place of the processor's own, a jinja file"
KWARGS_HELP = "variables of the chat template as JSON, such as '{\"enable_thinking\": false}'"
END = 160  # characters of a prompt's end that are shown


@dataclass(frozen=True)
class Prompting:
    """What a model's processor says about prompts.

    Attributes:
        processor: with the chat template that is used.
        template: the same, with the variables of the command line.
    """

    processor: Any
    template: ChatTemplate

    @property
    def think_tags(self) -> bool:
        """Whether prompts shall ask for <think> tags: not where the template begins or skips the thought itself."""
        from vlm_grpo.text import thought_at

        opening = self.template.opening([{"role": "user", "content": [{"type": "text", "text": "?"}]}]).by_template
        return thought_at(opening) == len(opening)

    @property
    def markup(self) -> tuple[str, ...]:
        """The tokens that must not stand in data."""
        from vlm_grpo.rollouts.decoding import markup_of

        return markup_of(self.processor)


def load_prompting(name: str, options: Mapping[str, Any] | None, path: str | None = None, **loading: Any) -> Prompting:
    """Return what the processor of a model says about prompts.

    Args:
        name: folder or hub id.
        options: variables of the template.
        path: of a chat template that replaces the processor's.
        loading: further arguments of `from_pretrained`.

    Raises:
        UsageError: the processor cannot be loaded, has no chat template, or the template's file is wrong.
    """
    from transformers import AutoProcessor

    from vlm_grpo.rollouts.chat_template import ChatTemplate

    loading = {"trust_remote_code": False, **loading}  # or transformers asks on the terminal
    refuse_model(name, trust_remote_code=bool(loading["trust_remote_code"]), revision=loading.get("revision"))
    try:
        processor = AutoProcessor.from_pretrained(name, **loading)
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UsageError(f"--model_name_or_path {name}: its processor cannot be loaded: {reason}") from error
    if path is not None:
        processor.chat_template = read_template(path)
    check_template(processor, name)
    return Prompting(processor, ChatTemplate(processor, options or {}))


def refuse_model(name: str, *, trust_remote_code: bool, revision: str | None) -> None:
    """Refuse a model with code of its own that cannot be used here; what cannot be read is left to its processor.

    Raises:
        UsageError: says what to use instead.
    """
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    from vlm_grpo.refusals import refusal

    try:
        content, _ = PreTrainedConfig.get_config_dict(name, revision=revision)
    except (OSError, ValueError):
        return
    if "auto_map" in content and (reason := refusal(content, CONFIG_MAPPING, trust_remote_code=trust_remote_code)):
        raise UsageError(f"--model_name_or_path {name}: {reason}")


def check_template(processor: Any, name: str) -> None:
    """Refuse a processor that cannot turn messages into a prompt.

    Raises:
        UsageError: neither it nor its tokenizer has a chat template.
    """
    if not getattr(processor, "chat_template", None):
        raise UsageError(
            f"--model_name_or_path {name}: the processor has no chat template, so that no prompt can be made of "
            "messages; give --chat_template_path FILE.jinja, or put a chat_template.jinja into the model's folder"
        )


def read_template(path: str) -> str:
    """Return the text of a chat template.

    Raises:
        UsageError: there is no such file, or it is not valid jinja.
    """
    from jinja2 import TemplateSyntaxError
    from transformers.utils.chat_template_utils import _compile_jinja_template

    try:
        check_regular(path)
        text = Path(path).read_text(encoding="utf-8")
        _compile_jinja_template(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--chat_template_path {path}: {error}") from error
    except TemplateSyntaxError as error:
        raise UsageError(f"--chat_template_path {path}:{error.lineno}: {error.message}") from error
    return text


def parse_kwargs(text: str | None) -> dict[str, Any] | None:
    """Return the variables that a flag holds as JSON; None without the flag.

    Raises:
        UsageError: it is no JSON object.
    """
    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UsageError(f'{KWARGS_FLAG} must be a JSON object such as {{"enable_thinking": false}}, got {text!r}')
    return value


def trained_kwargs(model: str) -> tuple[dict[str, Any], Path] | None:
    """Return the variables that a model was trained with, and the run.json that says so; None where none does.

    A checkpoint holds run.json; so does the output folder of its training, in which it lies.
    """
    for folder in (Path(model), Path(model).resolve().parent):
        path = folder / "run.json"
        if Path(model).is_dir() and path.is_file():
            training = json.loads(path.read_text(encoding="utf-8")).get("training") or {}
            return _as_object(training.get("chat_template_kwargs")), path
    return None


def _as_object(value: Any) -> dict[str, Any]:
    """The variables as run.json keeps them; that of an earlier version holds them as Python writes a dict."""
    return dict((ast.literal_eval(value) if isinstance(value, str) else value) or {})


def find_prompting(
    script: ScriptArguments, training: Any, model: Any
) -> tuple[Prompting, None] | tuple[None, UsageError]:
    """Return what the model's processor says about prompts, or why it says nothing.

    Raises:
        UsageError: --chat_template_path is wrong.
    """
    if script.chat_template_path is not None:
        read_template(script.chat_template_path)
    loading = {"revision": model.model_revision, "trust_remote_code": training.trust_remote_code}
    try:
        options = training.chat_template_kwargs
        return load_prompting(model.model_name_or_path, options, script.chat_template_path, **loading), None
    except UsageError as error:
        return None, error


def own_processor(script: ScriptArguments, training: Any, model: Any, prompting: Prompting | None) -> Any:
    """Return the processor with the command line's chat template, loaded as TRL loads it; None leaves that to TRL."""
    if script.chat_template_path is None or prompting is None:
        return None
    from transformers import AutoProcessor

    loading = {"revision": model.model_revision, "trust_remote_code": training.trust_remote_code}
    sides = {"truncation_side": "left", "padding_side": "left"}
    processor = AutoProcessor.from_pretrained(model.model_name_or_path, **sides, **loading)
    processor.chat_template = prompting.processor.chat_template
    return processor


class GoldTurn(NamedTuple):
    """The turn of a perfect model: what the prompt opens of it, and what the model would write."""

    opening: str
    completion: str


def gold_turn(row: Mapping[str, Any], template: ChatTemplate | None) -> GoldTurn:
    """Return the turn that answers a row rightly; without a template the prompt opens nothing of it."""
    from vlm_grpo.tasks import ideal_completion
    from vlm_grpo.text import continuation

    ideal = ideal_completion(row["record"])
    if template is None:
        return GoldTurn("", ideal)
    opening = "".join(template.opening(row["prompt"]))
    return GoldTurn(opening, continuation(ideal, opening))


def prompt_end(prompt: str) -> str:
    """Return the last characters of a rendered prompt, as they are shown."""
    return prompt if len(prompt) <= END else f"[...]{prompt[-END:]}"
