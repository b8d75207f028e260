"""`vlm-grpo evaluate`: evaluate a model, checkpoint or server on a data set, with the scoring of training.

With --environment, the model runs one episode per row instead, or --limit episodes without data.

Writes predictions.jsonl (a line per example), results.json (metrics with intervals, versions, settings) and
report.html to --output_dir. An interrupted evaluation is resumed. With several processes, rows are distributed:
`accelerate launch -m vlm_grpo.cli.evaluate ...`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm_grpo.cli.eval_args import DATA_FLAGS, EPISODE_DEFAULTS, parser, prediction_settings, validate
from vlm_grpo.cli.templates import Prompting
from vlm_grpo.cli.train_args import UsageError
from vlm_grpo.records import JsonObject
from vlm_grpo.redact import redact, redact_text

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState
    from datasets import Dataset
    from transformers import PreTrainedModel, ProcessorMixin

    from vlm_grpo.evaluation import Evaluation
    from vlm_grpo.evaluation.backends.hf import HFBackend
    from vlm_grpo.evaluation.predictions import Backend, Scoring


def main(argv: list[str] | None = None) -> int:
    """Evaluate and return the exit status: 0, 1 if a server failed, 2 for an error in flags or data."""
    flags = parser()
    options = flags.parse_args(argv)
    for problem in validate(options):
        flags.error(problem)
    from vlm_grpo.evaluation.backends.openai import ServerError
    from vlm_grpo.evaluation.predictions import EpisodeError
    from vlm_grpo.time_limits import TimeLimitError

    try:
        prompting, prompting_error = find_local_prompting(options)
        dataset = load_rows(options, prompting)
        if prompting_error is not None:
            raise prompting_error
        scoring = load_scoring(options, dataset)
        run(options, dataset, scoring)
    except ServerError as error:
        print(f"vlm-grpo evaluate: {redact_text(str(error))}", file=sys.stderr)
        print("finished rows are kept; run the same command to resume", file=sys.stderr)
        return 1
    except (UsageError, EpisodeError, ImportError, TimeLimitError) as error:
        print(f"vlm-grpo evaluate: {redact_text(str(error))}", file=sys.stderr)
        return 2
    return 0


def find_local_prompting(options: argparse.Namespace) -> tuple[Prompting | None, UsageError | None]:
    """Load the prompt settings of a local model, or return the error, which is raised after the data check.

    Chat template variables default to those of the model's training.
    """
    from vlm_grpo.cli.templates import load_prompting, parse_kwargs, trained_kwargs

    try:
        options.chat_template_kwargs = parse_kwargs(options.chat_template_kwargs)
        if options.backend == "openai":
            return None, None
        trained = trained_kwargs(options.model_name_or_path)
        if options.chat_template_kwargs is None and trained is not None and trained[0]:
            options.chat_template_kwargs, path = trained
            print(f"--chat_template_kwargs '{json.dumps(trained[0])}', as in training ({path})")
        kwargs, path = options.chat_template_kwargs, options.chat_template_path
        return load_prompting(options.model_name_or_path, kwargs, path), None
    except UsageError as error:
        return None, UsageError(error)


def load_rows(options: argparse.Namespace, prompting: Prompting | None = None) -> Dataset:
    """Load and check the data set of the flags; without data the episodes of --environment."""
    from vlm_grpo.data import load_dataset
    from vlm_grpo.evaluation.predictions import check_group

    if options.environment:
        check_environment_flags(options)
    if not has_data(options):
        from vlm_grpo.evaluation.backends.agent import environment_episodes

        return environment_episodes(options.seed, options.limit)

    options_given = {name: getattr(options, name) for name in DATA_FLAGS if getattr(options, name) is not None}
    try:
        dataset = load_dataset(
            options.data_file_paths or options.dataset_name,
            task=options.task_type,
            allow_outside=options.allow_outside,
            allow_private_urls=options.allow_private_urls,
            think_tags=True if prompting is None else prompting.think_tags,
            markup=None if prompting is None else prompting.markup,
            **options_given,
        )
        if options.group_by:
            check_group(dataset, options.group_by)
    except (ValueError, KeyError, FileNotFoundError) as error:
        raise UsageError(error.args[0] if isinstance(error, KeyError) else error) from error
    if not len(dataset):
        raise UsageError("there are no rows to evaluate")
    return dataset


def has_data(options: argparse.Namespace) -> bool:
    """Return whether rows come from files or the Hub, rather than from an environment."""
    return bool(options.data_file_paths or options.dataset_name)


def check_environment_flags(options: argparse.Namespace) -> None:
    """Create the environments once, before data and model are loaded.

    Raises:
        UsageError: an unknown environment, invalid options, or missing or superfluous data.
    """
    from vlm_grpo.cli.env_args import check_environments

    try:
        check_environments(options, has_data(options))
    except UsageError as error:
        raise UsageError(error) from error
    if not has_data(options) and options.limit is None:
        names = " ".join(options.environment)
        raise UsageError(f"--environment {names} has an unlimited number of episodes: set --limit")


def load_scoring(options: argparse.Namespace, dataset: Dataset) -> Scoring:
    """Return the rewards of the task, loaded before the model."""
    from vlm_grpo.evaluation.predictions import Scoring

    rewards = {name: getattr(options, f"reasoning_{name}") for name in ("encoder", "device", "threshold")}
    return Scoring(
        options.task_type,
        rewards,
        options.pass_k,
        options.group_by,
        of_episodes=bool(options.environment),
        has_answers=has_data(options),
    )


def run(options: argparse.Namespace, dataset: Dataset, scoring: Scoring) -> None:
    """Evaluate the remaining rows of this process and write the results of all processes."""
    from accelerate import PartialState

    from vlm_grpo.evaluation import predict_with, prediction_cache, shard, summary, unique_rows

    state = PartialState(cpu=options.use_cpu or options.backend == "openai")
    started = time.monotonic()
    rows = min(options.limit or len(dataset), len(dataset))
    facts = settings_and_data(options, dataset, rows)
    folder = Path(options.output_dir)
    prepare_output_dir(state, folder, facts, overwrite=options.overwrite)
    done = {entry["row"]: entry for entry in prediction_cache.read_predictions(folder)}
    state.wait_for_everyone()  # all processes must read before one of them appends
    remaining = [row for row in range(rows) if row not in done]
    numbers = [remaining[place] for place in shard(len(remaining), state.process_index, state.num_processes)]
    if done and state.is_main_process:
        print(f"resuming: {len(done)} of {rows} rows are already done")
    if numbers:
        backend = load_backend(options, state.device)
        facts |= agreement(options, state, backend, dataset, numbers)
        with progress_bar(rows, len(done), state) as bar:
            keep = prediction_cache.PredictionWriter(folder, state.process_index)
            predict_with(backend, dataset, numbers, scoring, on_batch=bar.update, keep=keep)
    state.wait_for_everyone()
    if state.is_main_process:
        predictions = unique_rows(prediction_cache.read_predictions(folder))
        evaluation = summary(options.task_type, predictions, options.seed, options.pass_k)
        save_evaluation(options, evaluation, dataset, {**facts, "seconds": round(time.monotonic() - started, 1)})
        prediction_cache.remove_cache(folder)
        print_metrics(evaluation, options.output_dir)
    if state.num_processes > 1:
        state.wait_for_everyone()
        state.destroy_process_group()


def agreement(
    options: argparse.Namespace, state: PartialState, backend: Backend, dataset: Dataset, numbers: list[int]
) -> JsonObject:
    """Print how far the backend agrees with transformers on the first rows; return it for results.json."""
    from vlm_grpo.evaluation.agreement import compare_backends

    if options.agreement is None or not state.is_main_process:
        return {}
    local = load_local(options, state.device, max_completion_length=options.max_completion_length)
    found = compare_backends(backend, local, dataset, numbers[: options.agreement])
    print("\n".join(found.lines(options.backend)))
    return {"agreement": {"rows": found.rows, "equal": found.equal, "prefix": found.prefix}}


def settings_and_data(options: argparse.Namespace, dataset: Dataset, rows: int) -> JsonObject:
    """Return everything that the predictions depend on: settings, model files, data."""
    from vlm_grpo.evaluation.fingerprint import data_digest, digest, model_digest

    evaluated = (dataset[row] for row in range(rows))
    episode_facts = (
        {"data": digest(json.dumps(row, sort_keys=True) for row in evaluated)} if not has_data(options) else {}
    )
    return {
        "settings": prediction_settings(options),
        "model_files": model_digest(options.model_name_or_path),
        "rows": rows,
        **(episode_facts or data_digest(evaluated)),
    }


def prepare_output_dir(state: PartialState, folder: Path, facts: JsonObject, *, overwrite: bool) -> None:
    """Prepare the output folder on the first process; errors are raised on all processes.

    Raises:
        UsageError: the folder has other content.
    """
    from accelerate.utils import broadcast_object_list

    from vlm_grpo.evaluation.prediction_cache import ResumeError, open_cache

    problem: list[str | None] = [None]
    if state.is_main_process:
        try:
            open_cache(folder, facts, overwrite=overwrite)
        except (ResumeError, OSError) as error:
            problem = [str(error)]
    if state.num_processes > 1:
        broadcast_object_list(problem)
    if problem[0] is not None:
        raise UsageError(problem[0])


def load_backend(options: argparse.Namespace, device: torch.device) -> Any:
    """Return the backend: a local model on its device, or a server."""
    from vlm_grpo.evaluation.sampling_params import SamplingParams

    sampling = SamplingParams(options.temperature, options.top_p, options.num_samples, options.seed)
    common = {"max_completion_length": options.max_completion_length, "sampling": sampling}
    if options.backend == "openai":
        from vlm_grpo.evaluation.backends.openai import OpenAIBackend, space_of_name

        name = options.model_name_or_path
        return OpenAIBackend(
            options.base_url,
            name,
            concurrency=options.concurrency or 8,
            timeout=options.timeout or 300.0,
            retries=3 if options.retries is None else options.retries,
            answer_space=options.answer_space or space_of_name(name),
            min_pixels=options.min_pixels,
            max_pixels=options.max_pixels,
            template_options=options.chat_template_kwargs,
            **common,
        )
    if options.backend == "local":
        local = load_local(options, device, **common)
        return load_agents(options, local) if options.environment else local
    engine = load_engine(options, device, **common)
    return load_agents(options, engine) if options.environment else engine


def load_local(options: argparse.Namespace, device: torch.device, **common: Any) -> HFBackend:
    """Return the backend of a model in this process."""
    from vlm_grpo.evaluation.backends.hf import HFBackend

    return HFBackend(
        *load_model(options, device),
        options.batch_size or 8,
        answer_space=options.answer_space,
        template_options=options.chat_template_kwargs,
        **common,
    )


def load_engine(options: argparse.Namespace, device: torch.device, **common: Any) -> HFBackend:
    """Return the backend of a rollout engine, in this process or on servers.

    Raises:
        UsageError: the model or a server is not for it.
    """
    from accelerate import Accelerator

    from vlm_grpo.evaluation.backends.rollout_engine import EngineBackend, config_dtype, make_engine, without_weights
    from vlm_grpo.rollouts.ranks import Ranks

    try:
        engine_options = json.loads(options.engine_options or "{}")
        model = without_weights(options.model_name_or_path)
        processor = load_processor(options, model)
        settings = {"answer_space": options.answer_space, "template_options": options.chat_template_kwargs, **common}
        backend = EngineBackend(model, processor, options.batch_size or 256, **settings)
        backend.engine = make_engine(
            backend,
            options.backend,
            name=options.model_name_or_path,
            processor=processor,
            dtype=config_dtype(model, options.dtype),
            ranks=Ranks(Accelerator(cpu=device.type == "cpu")),
            folder=Path(options.output_dir) / "rollout_engine",
            urls=[url for url in (options.base_url or "").split(",") if url],
            options=engine_options,
        )
    except (ValueError, TimeoutError) as error:
        raise UsageError(error) from error
    return backend


def load_agents(options: argparse.Namespace, model: HFBackend) -> Backend:
    """Return the backend that runs the model in the environments of the flags."""
    from vlm_grpo.cli.env_args import environment_factory
    from vlm_grpo.evaluation.backends.agent import AgentBackend
    from vlm_grpo.rollouts.env_pool import EnvPool

    given = {name: getattr(options, name) for name in EPISODE_DEFAULTS}
    limits = {name: EPISODE_DEFAULTS[name] if value is None else value for name, value in given.items()}
    env_pool = EnvPool([], environment_factory(options), limits["reward_time_limit"])
    return AgentBackend(
        model, env_pool, Path(options.output_dir), limits["max_turns"], limits["tool_time_limit"], limits["tool_format"]
    )


def load_model(options: argparse.Namespace, device: torch.device) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load the model on its device and the processor with the image limits of the flags.

    Raises:
        UsageError: a flag is incompatible with the model.
    """
    from transformers import AutoModelForImageTextToText

    from vlm_grpo.rollouts.video import patch_glm4v_placeholder_mask

    model = AutoModelForImageTextToText.from_pretrained(options.model_name_or_path, dtype=options.dtype or "auto")
    processor = load_processor(options, model)
    patch_glm4v_placeholder_mask(model)
    model.to(device)  # type: ignore[arg-type]  # transformers' decorator hides the signature
    return model, processor


def load_processor(options: argparse.Namespace, model: PreTrainedModel) -> ProcessorMixin:
    """Load the model's processor with the image limits and the chat template of the flags.

    Raises:
        UsageError: a flag is incompatible with the model.
    """
    from transformers import AutoProcessor

    from vlm_grpo.answer_space import check_answer_space
    from vlm_grpo.cli.templates import read_template
    from vlm_grpo.model_utils import limit_images

    processor = AutoProcessor.from_pretrained(options.model_name_or_path)
    if options.chat_template_path is not None:
        processor.chat_template = read_template(options.chat_template_path)
    try:
        limit_images(processor, model.config, options)
        check_answer_space(options.answer_space, processor)
    except ValueError as error:
        raise UsageError(error) from error
    print_space_notice(options, model.config.model_type)
    return processor


def print_space_notice(options: argparse.Namespace, model_type: str) -> None:
    """Print the assumed coordinate space of boxes if it is not known for the model."""
    from vlm_grpo.answer_space import space_notice
    from vlm_grpo.evaluation.backends.openai import needs_space

    notice = space_notice(model_type, options.answer_space) if needs_space(options.task_type) else None
    if notice:
        print(f"vlm-grpo evaluate: {notice}", file=sys.stderr)


def progress_bar(rows: int, done: int, state: PartialState) -> Any:
    """Return a progress bar over all rows, starting after those that are already done."""
    from tqdm import tqdm

    ranks = state.num_processes
    total, initial = -(-rows // ranks), done // ranks
    return tqdm(total=total, initial=initial, desc="evaluating", unit="row", disable=not state.is_main_process)


def save_evaluation(options: argparse.Namespace, evaluation: Evaluation, dataset: Dataset, facts: JsonObject) -> None:
    """Write the result files to the output folder."""
    from vlm_grpo.evaluation.results import write_results

    facts = {**facts, "settings": redact(vars(options)), "seed": options.seed}
    write_results(Path(options.output_dir), f"Evaluation of {options.model_name_or_path}", evaluation, dataset, facts)


def print_metrics(evaluation: Evaluation, folder: str) -> None:
    """Print one line per metric, and the paths of the files."""
    print(f"{'metric':<24} value [95 % interval]      examples")
    for name, metric in evaluation.metrics.items():
        print(f"{name:<24} {metric!s:<26} {metric.count}")
    for group, metrics in evaluation.groups.items():
        name, metric = next(iter(metrics.items()))
        print(f"{f'{group}: {name}':<24} {metric!s:<26} {metric.count}")
    print(f"written: {Path(folder) / 'results.json'}, predictions.jsonl, report.html")


if __name__ == "__main__":
    sys.exit(main())
