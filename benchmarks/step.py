"""A GRPO step of stock TRL and of this package in turn, in one process: same model, images, completions.

python benchmarks/step.py                      the two named points on a CPU
python benchmarks/step.py --all --output benchmarks/step_cpu.json     every setting of SETTINGS
python benchmarks/step.py --large --output benchmarks/step_gpu.json   the 3B's shape in bfloat16, on a GPU
python benchmarks/step.py --settings p858_c32 --repeats 5             one setting
python benchmarks/step.py --rehearse                                  what --large does, at tiny size on a CPU

The model is a random Qwen2.5-VL of 25 million parameters; with --large it has the shape of the 3B. Time goes to the
phase that runs: decoding images, the image processor, sampling, passes without gradient (old and reference), forward,
backward, and what is left (rewards, optimizer, moving data). Beside the ratio of seconds stands what there is to gain:
for images how many are decoded and processed, for the rest the ratio of the floating-point operations that torch counts
in one more step of each; on a GPU these are not counted. The output file is written after every step.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from computer import describe
from datasets import Dataset, Features, Image, Value
from PIL import Image as Picture
from PIL import ImageFile
from tables import PHASES, step_table, step_title
from torch.utils.flop_counter import FlopCounterMode

from vlm_grpo.io import write_whole
from vlm_grpo.tiny import TinySize, build_tiny_qwen

SMALL = TinySize(
    hidden=512, layers=6, heads=8, intermediate=1536, vision_hidden=256, vision_layers=6, vision_heads=8, vocabulary=512
)
LARGE = TinySize(
    hidden=2048, layers=36, heads=16, intermediate=11008, vision_hidden=1280, vision_layers=32, vision_heads=16,
    vocabulary=151_936,
)  # fmt: skip
TINY = TinySize()


@dataclass(frozen=True)
class Scale:
    """A model and where it is trained; on a GPU in bfloat16 with gradient checkpointing, as a model of 3B is."""

    size: TinySize
    is_on_gpu: bool
    one_at_a_time: bool  # one trainer after the other, so that each has all of the memory

    @property
    def device(self) -> str:
        """Return the name of torch's device."""
        return "cuda" if self.is_on_gpu else "cpu"


SCALES = {
    "cpu": Scale(SMALL, is_on_gpu=False, one_at_a_time=False),
    "large": Scale(LARGE, is_on_gpu=True, one_at_a_time=True),
    "rehearse": Scale(TINY, is_on_gpu=False, one_at_a_time=True),
}


@dataclass(frozen=True)
class Setting:
    """Side of the square image in pixels, tokens of every completion, completions of a prompt, and what is trained."""

    side: int
    completion: int
    generations: int = 8
    beta: float = 0.0
    frozen: bool = False
    lora: bool = False


SETTINGS = {
    "p330_c128": Setting(448, 128),
    "p858_c32": Setting(784, 32),
    "p330_c128_g4": Setting(448, 128, generations=4),
    "p330_c128_g16": Setting(448, 128, generations=16),
    "p858_c128": Setting(784, 128),
    "p858_c32_reference": Setting(784, 32, beta=0.04),
    "p858_c32_frozen": Setting(784, 32, frozen=True),
    "p858_c32_lora": Setting(784, 32, lora=True),
    "p858_c512": Setting(784, 512),
    "p4000_c32_g4": Setting(1736, 32, generations=4),
}
NAMED = ("p330_c128", "p858_c32")
ON_GPU = {
    "p1100_c128": Setting(896, 128),
    "p1100_c128_frozen": Setting(896, 128, frozen=True),
    "p1100_c512": Setting(896, 512),
}
REHEARSED = {
    "p1100_c128": Setting(112, 8),
    "p1100_c128_frozen": Setting(112, 8, frozen=True),
    "p1100_c512": Setting(112, 16),
}


class Meter:
    """Charges seconds, or operations while `counter` is set, to the innermost phase that runs."""

    def __init__(self) -> None:
        self.counter: FlopCounterMode | None = None
        self.begin()

    def begin(self) -> None:
        self.spent, self.calls = dict.fromkeys(PHASES, 0.0), dict.fromkeys(PHASES, 0)
        self.running = ["rest"]
        self.mark = self.now()

    def now(self) -> float:
        if self.counter is not None:
            return self.counter.get_total_flops()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()

    def charge(self) -> None:
        now = self.now()
        self.spent[self.running[-1]] += now - self.mark
        self.mark = now

    @contextmanager
    def phase(self, name: str, calls: int = 1) -> Iterator[None]:
        self.charge()
        self.running.append(name)
        self.calls[name] += calls
        try:
            yield
        finally:
            self.charge()
            self.running.pop()


METER = Meter()


def within(name: str | Callable[[], str], inner: Callable) -> Callable:
    """The function, charged to a phase."""

    def measured(*args: Any, **options: Any) -> Any:
        with METER.phase(name if isinstance(name, str) else name()):
            return inner(*args, **options)

    return measured


def watch_images(processor: Any) -> None:
    """Charge every decoding of an image file and every image that goes through the processor, whoever asks for it."""
    decode, kind = ImageFile.ImageFile.load, type(processor.image_processor)
    process = kind.preprocess

    def load(image: Any) -> Any:
        if not image.tile:  # decoded before
            return decode(image)
        with METER.phase("load"):
            return decode(image)

    def preprocess(self: Any, images: Any, *args: Any, **options: Any) -> Any:
        with METER.phase("process", len(images) if isinstance(images, list | tuple) else 1):
            return process(self, images, *args, **options)

    ImageFile.ImageFile.load, kind.preprocess = load, preprocess


def watch_trainer(trainer: Any) -> None:
    """Charge the phases of a step where TRL enters them, and where this package does."""
    if hasattr(trainer, "completion_logprobs"):
        trainer.engine.generate = within("generate", trainer.engine.generate)
        trainer.completion_logprobs = within("old/reference", trainer.completion_logprobs)
    else:
        trainer._generate_single_turn = within("generate", trainer._generate_single_turn)
    trainer._get_per_token_logps_and_entropies = within(
        lambda: "forward" if torch.is_grad_enabled() else "old/reference", trainer._get_per_token_logps_and_entropies
    )
    trainer.accelerator.backward = within("backward", trainer.accelerator.backward)


def half_of_them(completions: list, **columns: Any) -> list[float]:
    """Every group has a signal, whatever is sampled."""
    return [float(number % 2) for number in range(len(completions))]


def rows(folder: Path, side: int) -> Dataset:
    """One prompt with one image file of random pixels."""
    path = folder / f"{side}.png"
    pixels = np.random.RandomState(0).randint(0, 255, (side // 8, side // 8, 3), dtype=np.uint8)
    Picture.fromarray(pixels).resize((side, side)).save(path)
    question = [{"role": "user", "content": "What color is the shape? " * 10}]
    turns = [{"role": Value("string"), "content": Value("string")}]
    features = Features({"prompt": turns, "image": Image()})
    return Dataset.from_list([{"prompt": question, "image": str(path)}], features=features)


def build(kind: str, folder: Path, setting: Setting, scale: Scale) -> Any:
    """A trainer of a kind, `trl` or `ours`, that takes one step whenever it is asked to train."""
    from peft import LoraConfig
    from transformers import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    from vlm_grpo.trainers.config import VLMGRPOConfig
    from vlm_grpo.trainers.grpo import VLMGRPOTrainer

    trainer_class, config = {"trl": (GRPOTrainer, GRPOConfig), "ours": (VLMGRPOTrainer, VLMGRPOConfig)}[kind]
    args = config(
        output_dir=str(folder / kind),
        per_device_train_batch_size=setting.generations,
        num_generations=setting.generations,
        max_completion_length=setting.completion,
        generation_kwargs={"min_new_tokens": setting.completion},
        max_steps=1,
        beta=setting.beta,
        bf16=scale.is_on_gpu,
        use_cpu=not scale.is_on_gpu,
        gradient_checkpointing=scale.one_at_a_time,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    torch.manual_seed(0)
    with torch.device(scale.device):
        model, processor = build_tiny_qwen(scale.size, max_pixels=16384 * 28 * 28)
    model = model.bfloat16() if scale.is_on_gpu else model
    model.config._name_or_path = str(folder)  # what the reference model is loaded from
    if setting.beta and not setting.lora:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    if setting.frozen:
        model.model.visual.requires_grad_(False)
    adapter = LoraConfig(r=16, target_modules=r".*language_model.*_proj") if setting.lora else None
    data = rows(folder, setting.side)
    trainer = trainer_class(
        model, half_of_them, args, train_dataset=data, processing_class=processor, peft_config=adapter
    )
    trainer.remove_callback(PrinterCallback)
    watch_trainer(trainer)
    return trainer


def one_step(trainer: Any) -> dict[str, float]:
    """What each phase of one training step took, and `step`, all of them."""
    from transformers import TrainerCallback

    class Whole(TrainerCallback):
        def on_step_begin(self, *args: Any, **options: Any) -> None:
            METER.charge()
            METER.spent["rest"] = 0.0  # without setting up

        def on_step_end(self, *args: Any, **options: Any) -> None:
            METER.charge()
            spent.update(METER.spent)

    spent: dict[str, float] = {}
    watch = Whole()
    trainer.add_callback(watch)
    METER.begin()  # the batch is fetched before the step begins
    trainer.train()
    trainer.remove_callback(watch)
    return {**spent, "step": sum(spent.values())}


@contextmanager
def peak_memory(found: list[float], is_on_gpu: bool) -> Iterator[None]:
    """Append by how many MiB memory in use grew at most; on a GPU all that is allocated there."""
    gc.collect()
    if is_on_gpu:
        torch.cuda.reset_peak_memory_stats()
    else:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
        before = resident("VmRSS")
    yield
    found.append(torch.cuda.max_memory_allocated() / 2**20 if is_on_gpu else resident("VmHWM") - before)


def resident(field: str) -> float:
    """MiB of this process."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) / 1024


def operations(trainer: Any) -> dict[str, float]:
    """Return the floating-point operations of each phase of one more step."""
    with FlopCounterMode(display=False) as METER.counter:
        counted = one_step(trainer)
    METER.counter = None
    return counted


def compare(
    setting: Setting, repeats: int, scale: Scale, save: Callable[[dict[str, Any]], None] = lambda result: None
) -> dict[str, Any]:
    """Return seconds, memory, calls and operations of both, by phase; `save` is told after each repeat."""
    folder = Path(tempfile.mkdtemp())
    kinds = ("trl", "ours")
    result: dict[str, Any] = {"setting": asdict(setting), "repeats": repeats, "computer": describe()}
    result |= {what: {kind: [] for kind in kinds} for what in ("seconds", "memory")}
    result |= {"operations": {kind: {} for kind in kinds}, "calls": {kind: {} for kind in kinds}}
    trainers: dict[str, Any] = {}
    for group in [[kind] for kind in kinds] if scale.one_at_a_time else [kinds]:
        for kind in group:
            trainers[kind] = build(kind, folder, setting, scale)
            one_step(trainers[kind])  # warms up
        result["prompt"] = prompt_tokens(trainers[group[0]], setting)
        for _ in range(repeats):
            for kind in group:
                with peak_memory(result["memory"][kind], scale.is_on_gpu):
                    result["seconds"][kind].append(one_step(trainers[kind]))
                result["calls"][kind] = dict(METER.calls)
            save(result)
        for kind in [] if scale.is_on_gpu else group:
            result["operations"][kind] = operations(trainers[kind])
        trainers.clear()
        release()
    return result


def prompt_tokens(trainer: Any, setting: Setting) -> int:
    """Return the tokens of the prompt, after one step."""
    return round(trainer.state.log_history[-1]["num_tokens"] / setting.generations - setting.completion)


def release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--settings", nargs="+", choices=[*SETTINGS, *ON_GPU], help="which ones (default: two)")
    parser.add_argument("--all", action="store_true", help="all settings")
    parser.add_argument("--large", action="store_true", help="the 3B's shape, on a GPU")
    parser.add_argument("--rehearse", action="store_true", help="the settings of --large at tiny size, on a CPU")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file for step_report.py; grows by each step")
    options = parser.parse_args()
    if options.large and not torch.cuda.is_available():
        parser.error("--large needs a GPU; without it the same phases are measured on a CPU, on a small model")
    _, processor = build_tiny_qwen(SMALL)
    watch_images(processor)
    scale = SCALES["rehearse" if options.rehearse else "large" if options.large else "cpu"]
    known = REHEARSED if options.rehearse else ON_GPU if options.large else SETTINGS
    results = json.loads(options.output.read_text()) if options.output and options.output.exists() else {}
    for name in options.settings or (known if options.all or scale.one_at_a_time else NAMED):

        def save(result: dict[str, Any], name: str = name) -> None:
            results[name] = result
            if options.output:
                write_whole(options.output, json.dumps(results) + "\n")

        save(compare(known[name], options.repeats, scale, save))
        print(f"\n{step_title(results[name])}\n\n{step_table(results[name])}", flush=True)


if __name__ == "__main__":
    main()
