#!/usr/bin/env bash
# Visual question answering with reasoning steps, from a data set saved with save_to_disk.
# Edit the paths, then run: bash run_scripts/run_grpo_vqa.sh
set -euo pipefail
cd "$(dirname "$0")/.."

MODEL="Qwen/Qwen2.5-VL-3B-Instruct"
DATA="/path/to/vqa_dataset"
OUTPUT="output/grpo_vqa"
GPUS=8

accelerate launch --num_processes "$GPUS" src/vlm_grpo/grpo_jsonl.py \
    --output_dir "$OUTPUT" \
    --model_name_or_path "$MODEL" \
    --deepspeed configs/deepspeed/zero3.json \
    --dataset_name "$DATA" \
    --use_huggingface_dataset true \
    --task_type vqa \
    --reward_funcs format accuracy reasoning \
    --val_split_ratio 0.02 \
    --val_freq 1 \
    --max_pixels 1003520 \
    --min_pixels 3136 \
    --learning_rate 1e-6 \
    --num_generations 8 \
    --max_completion_length 512 \
    --per_device_train_batch_size 8 \
    --gradient_accumulation_steps 2 \
    --num_train_epochs 2 \
    --bf16 true \
    --logging_steps 1 \
    --save_steps 100 \
    --report_to tensorboard
