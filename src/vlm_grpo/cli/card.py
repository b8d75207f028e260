"""Facts of a command line for the model card."""

from __future__ import annotations

import dataclasses

from vlm_grpo.cli.args import ScriptArguments
from vlm_grpo.cli.templates import Prompting
from vlm_grpo.prompts import PROMPTS
from vlm_grpo.records import JsonObject, Record
from vlm_grpo.tasks import TASKS
from vlm_grpo.trainers.model_card import QUESTION, CardFacts


def card_facts(script: ScriptArguments, record: JsonObject, prompting: Prompting) -> CardFacts:
    """Return the facts for the model card: task, data, command and an example question."""
    task = TASKS[script.task_type]
    facts = CardFacts(script.task_type, list(record["data"]["files"]), record["command"], system=task.system)
    if script.environment or script.format_prompt:
        return facts
    messages = PROMPTS[task.prompt].render(Record(0, QUESTION, None), think_tags=prompting.think_tags)
    return dataclasses.replace(facts, question=messages[-1]["content"][-1]["text"])
