#!/usr/bin/env bash
# RLOO instead of GRPO: counting, with the KL penalty in the reward.
# Edit the paths, then run: bash run_scripts/run_rloo.sh
set -euo pipefail
cd "$(dirname "$0")/.."

MODEL="Qwen/Qwen2.5-VL-3B-Instruct"
DATA="/path/to/counting.jsonl"
IMAGES="/path/to/images"
OUTPUT="output/rloo"
GPUS=8

accelerate launch --num_processes "$GPUS" src/vlm_grpo/grpo_jsonl.py \
    --output_dir "$OUTPUT" \
    --model_name_or_path "$MODEL" \
    --trainer rloo \
    --deepspeed configs/deepspeed/zero2.json \
    --data_file_paths "$DATA" \
    --image_folders "$IMAGES" \
    --task_type counting \
    --reward_funcs accuracy format:0.5 \
    --max_pixels 1003520 \
    --min_pixels 3136 \
    --learning_rate 1e-6 \
    --beta 0.05 \
    --num_generations 8 \
    --max_completion_length 512 \
    --per_device_train_batch_size 8 \
    --gradient_accumulation_steps 2 \
    --num_train_epochs 2 \
    --bf16 true \
    --logging_steps 1 \
    --save_steps 100 \
    --report_to tensorboard
