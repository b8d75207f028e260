#!/usr/bin/env bash
# GRPO on several nodes: run this script on each node with NODE_RANK and MASTER_ADDR set.
# Edit the paths, then run: bash run_scripts/run_multinode.sh
set -euo pipefail
cd "$(dirname "$0")/.."

MODEL="Qwen/Qwen2.5-VL-3B-Instruct"
DATA="/path/to/refcoco_train.jsonl:/path/to/refcocop_train.jsonl:/path/to/refcocog_train.jsonl"
IMAGES="/path/to/coco"
NODES="${NODES:-2}"
NODE_RANK="${NODE_RANK:-0}"
MASTER_ADDR="${MASTER_ADDR:-127.0.0.1}"
OUTPUT="output/multinode"
GPUS=8

torchrun --nnodes "$NODES" --node_rank "$NODE_RANK" --nproc_per_node "$GPUS" --master_addr "$MASTER_ADDR" --master_port 29500 src/vlm_grpo/grpo_jsonl.py \
    --output_dir "$OUTPUT" \
    --model_name_or_path "$MODEL" \
    --deepspeed configs/deepspeed/zero3.json \
    --data_file_paths "$DATA" \
    --image_folders "$IMAGES" \
    --task_type rec \
    --reward_funcs iou format \
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
