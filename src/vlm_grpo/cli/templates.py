"""Load the chat template of a model from its processor, before the model is loaded."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vlm_grpo.cli.train_args import UsageError
from vlm_grpo.file_checks import check_regular
from vlm_grpo.records import JsonObject, Row

if TYPE_CHECKING:
    from transformers import ProcessorMixin
    from trl import ModelConfig

    from vlm_grpo.cli.args import ScriptArguments
    from vlm_grpo.rollouts.chat_template import ChatTemplate
    from vlm_grpo.trainers.config import VLMGRPOConfig

KWARGS_FLAG = "--chat_template_kwargs"
PATH_HELP = "chat template that replaces the processor's, a jinja file"
KWARGS_HELP = "variables of the chat template as JSON, such as '{\"enable_thinking\": false}'"
END = 160  # characters shown of the end of a prompt


@dataclass(frozen=True)
class Prompting:
    """Prompt settings of a model's processor.

    Attributes:
        processor: the processor with the chat template in use.
        template: the chat template with the variables from the command line.
    """

    processor: ProcessorMixin
    template: ChatTemplate

    @property
    def think_tags(self) -> bool:
        """Return whether prompts ask for <think> tags: not if the template opens or skips thinking itself."""
        from vlm_grpo.answer_parser import thinking_start

        opening = self.template.opening([{"role": "user", "content": [{"type": "text", "text": "?"}]}]).from_template
        return thinking_start(opening) == len(opening)

    @property
    def markup(self) -> tuple[str, ...]:
        """Return special tokens that the data must not contain."""
        from vlm_grpo.rollouts.decoding import markup_tokens

        return markup_tokens(self.processor)


def load_prompting(
    name: str, options: Mapping[str, object] | None, path: str | None = None, **loading: Any
) -> Prompting:
    """Load the prompt settings of a model's processor.

    Args:
        name: folder or Hub id.
        options: variables of the template.
        path: file of a chat template that replaces the processor's.
        loading: additional arguments of `from_pretrained`.

    Raises:
        UsageError: the processor cannot be loaded or has no chat template, or the template file is invalid.
    """
    from transformers import AutoProcessor

    from vlm_grpo.rollouts.chat_template import ChatTemplate

    loading = {"trust_remote_code": False, **loading}  # otherwise transformers prompts on the terminal
    check_supported(name, trust_remote_code=bool(loading["trust_remote_code"]), revision=loading.get("revision"))
    try:
        processor = AutoProcessor.from_pretrained(name, **loading)
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UsageError(f"--model_name_or_path {name}: its processor cannot be loaded: {reason}") from error
    if path is not None:
        processor.chat_template = read_template(path)
    check_template(processor, name)
    return Prompting(processor, ChatTemplate(processor, options or {}))


def check_supported(name: str, *, trust_remote_code: bool, revision: str | None) -> None:
    """Check that a model with remote code is supported; unreadable configurations are left to the processor.

    Raises:
        UsageError: the model is not supported; the message names an alternative.
    """
    from transformers import CONFIG_MAPPING, PreTrainedConfig

    from vlm_grpo.unsupported_models import unsupported_reason

    try:
        content, _ = PreTrainedConfig.get_config_dict(name, revision=revision)
    except (OSError, ValueError):
        return
    if "auto_map" in content and (
        reason := unsupported_reason(content, CONFIG_MAPPING, trust_remote_code=trust_remote_code)
    ):
        raise UsageError(f"--model_name_or_path {name}: {reason}")


def check_template(processor: ProcessorMixin, name: str) -> None:
    """Check that a processor can render messages to a prompt.

    Raises:
        UsageError: neither the processor nor its tokenizer has a chat template.
    """
    if not getattr(processor, "chat_template", None):
        raise UsageError(
            f"--model_name_or_path {name}: the processor has no chat template to render "
            "messages; set --chat_template_path FILE.jinja, or add a chat_template.jinja to the model's folder"
        )


def read_template(path: str) -> str:
    """Return the text of a chat template.

    Raises:
        UsageError: the file does not exist or is not valid jinja.
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


def parse_kwargs(text: str | None) -> JsonObject | None:
    """Parse the template variables in a flag, a JSON object; None without the flag.

    Raises:
        UsageError: the value is not a JSON object.
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


def trained_kwargs(model: str) -> tuple[JsonObject, Path] | None:
    """Return the chat template variables of a model's training, and the path of its run.json; None without one.

    run.json is in the checkpoint or in its parent folder, the output_dir.
    """
    for folder in (Path(model), Path(model).resolve().parent):
        path = folder / "run.json"
        if Path(model).is_dir() and path.is_file():
            training = json.loads(path.read_text(encoding="utf-8")).get("training") or {}
            return _as_object(training.get("chat_template_kwargs")), path
    return None


def _as_object(value: JsonObject | str | None) -> JsonObject:
    """Return the variables stored in run.json; earlier versions stored the repr of a dict."""
    return dict((ast.literal_eval(value) if isinstance(value, str) else value) or {})


def find_prompting(
    script: ScriptArguments, training: VLMGRPOConfig, model: ModelConfig
) -> tuple[Prompting, None] | tuple[None, UsageError]:
    """Load the prompt settings of the model's processor, or return the error.

    Raises:
        UsageError: --chat_template_path is invalid.
    """
    if script.chat_template_path is not None:
        read_template(script.chat_template_path)
    loading = {"revision": model.model_revision, "trust_remote_code": training.trust_remote_code}
    try:
        options = training.chat_template_kwargs
        options = options if isinstance(options, dict) else None
        return load_prompting(model.model_name_or_path or "", options, script.chat_template_path, **loading), None
    except UsageError as error:
        return None, error


def custom_processor(
    script: ScriptArguments, training: VLMGRPOConfig, model: ModelConfig, prompting: Prompting | None
) -> ProcessorMixin | None:
    """Return the processor with --chat_template_path, loaded as in TRL; None without the flag."""
    if script.chat_template_path is None or prompting is None:
        return None
    from transformers import AutoProcessor

    loading = {"revision": model.model_revision, "trust_remote_code": training.trust_remote_code}
    sides = {"truncation_side": "left", "padding_side": "left"}
    processor = AutoProcessor.from_pretrained(model.model_name_or_path, **sides, **loading)
    processor.chat_template = prompting.processor.chat_template
    return processor


class GoldTurn(NamedTuple):
    """The gold assistant turn: the part that is already in the prompt, and the completion."""

    opening: str
    completion: str


def gold_turn(row: Row, template: ChatTemplate | None) -> GoldTurn:
    """Return the gold turn of a row; without a template, none of it is in the prompt."""
    from vlm_grpo.answer_parser import remaining_turn
    from vlm_grpo.tasks import ideal_completion

    ideal = ideal_completion(row["record"])
    if template is None:
        return GoldTurn("", ideal)
    opening = "".join(template.opening(row["prompt"]))
    return GoldTurn(opening, remaining_turn(ideal, opening))


def prompt_end(prompt: str) -> str:
    """Return the last characters of a rendered prompt."""
    return prompt if len(prompt) <= END else f"[...]{prompt[-END:]}"
