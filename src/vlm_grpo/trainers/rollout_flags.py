"""The flags of rollout engines: TRL's `--use_vllm` and `--vllm_mode` are other names of this package's."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from vlm_grpo.import_utils import is_file_spec
from vlm_grpo.registry import unknown_name
from vlm_grpo.rollouts.engines.summaries import DEFAULT, SUMMARIES

if TYPE_CHECKING:
    from vlm_grpo.trainers.config import VisionFields

UNSET = {  # of this package's flags, for a configuration of TRL's own class
    **dict.fromkeys(("rollout_engine", "rollout_url", "rollout_options", "rollout_folder")),
    "rollout_transfer": "folder",
    "rollout_wait": 600.0,
}


def resolve_engine(args: VisionFields) -> None:
    """Set the engine, its servers and its options from the flags of this package and of TRL.

    `use_vllm` is false afterwards: it would make TRL's trainer start a vLLM of its own.

    Raises:
        KeyError: there is no such engine.
        ValueError: flags that contradict each other, or that the engine would ignore.
    """
    for name in [name for name in UNSET if not hasattr(args, name)]:
        setattr(args, name, UNSET[name])
    if args.use_vllm:
        if args.rollout_engine not in (None, "vllm"):
            raise ValueError(f"--use_vllm and --rollout_engine {args.rollout_engine} contradict each other")
        args.rollout_engine, args.use_vllm = "vllm", False
        if args.vllm_mode == "server" and not args.rollout_url:
            args.rollout_url = [args.vllm_server_base_url or f"http://{args.vllm_server_host}:{args.vllm_server_port}"]
    args.rollout_engine = args.rollout_engine or DEFAULT
    if args.rollout_engine not in SUMMARIES and not is_file_spec(args.rollout_engine):
        from vlm_grpo.rollouts.engines.table import ENGINES  # a registered one; imports more than a parser needs

        if args.rollout_engine not in ENGINES:
            raise KeyError(unknown_name("rollout engine", args.rollout_engine, list(ENGINES)))
    args.rollout_options = read_options(args.rollout_options)
    args.rollout_url = [url.rstrip("/") for url in args.rollout_url or []] or None
    _check_flags(args)


def read_options(values: dict[str, Any] | str | None) -> dict[str, Any] | None:
    """Return `--rollout_options` as a mapping.

    Raises:
        ValueError: it is not a JSON object.
    """
    try:
        options = json.loads(values) if isinstance(values, str) else values
    except ValueError:
        options = False
    if options is not None and not isinstance(options, dict):
        raise ValueError(f"--rollout_options must be a JSON object, got {values!r}")
    return options


def _check_flags(args: VisionFields) -> None:
    name, urls = args.rollout_engine, args.rollout_url
    if name == "sglang" and not urls:
        raise ValueError("--rollout_engine sglang needs --rollout_url http://host:port: it runs on servers alone")
    if name == DEFAULT and (urls or args.rollout_options):
        flag = "--rollout_url" if urls else "--rollout_options"
        raise ValueError(f"{flag} has no effect with --rollout_engine transformers; set --rollout_engine vllm")
    wrong = [url for url in urls or () if not url.startswith(("http://", "https://"))]
    if wrong:
        raise ValueError(f"--rollout_url must be like http://host:8000, got {wrong[0]!r}")
    if urls and args.rollout_options:
        raise ValueError("--rollout_options are of an engine in this process: start the servers with them instead")
    if args.rollout_transfer != "folder" and (name != "vllm" or not urls):
        raise ValueError(f"--rollout_transfer {args.rollout_transfer} needs --rollout_engine vllm with --rollout_url")
    if args.rollout_wait <= 0:
        raise ValueError(f"--rollout_wait must be above 0 seconds, got {args.rollout_wait:g}")
    _check_vespo(args)


def _check_vespo(args: VisionFields) -> None:
    """TRL checks this for its own vLLM."""
    mode = getattr(args, "vllm_importance_sampling_mode", "")
    if getattr(args, "loss_type", "") != "vespo" or args.rollout_engine == DEFAULT or mode.startswith("token"):
        return
    if args.vllm_importance_sampling_correction:
        raise ValueError(
            f"--loss_type vespo needs --vllm_importance_sampling_mode token_truncate or token_mask, got {mode}"
        )
