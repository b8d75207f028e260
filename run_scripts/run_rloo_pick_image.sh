#!/usr/bin/env bash
# Train an agent to pick the requested one of several images with a tool call, with RLOO and DeepSpeed ZeRO-3:
#   python data_tools/make_toy.py --task pick_image --output_dir toy_images
#   bash run_scripts/run_rloo_pick_image.sh --data_root toy_images --train_steps 200 --num_rollouts 4
# Other flags: --model_id, --candidates_per_episode (4), --fixed_correct_index (0; -1 samples the index),
# --per_device_batch_size, --use_lora (true or false), --gpus, --output_dir. Flags after -- are passed to the trainer.
set -euo pipefail

MODEL="Qwen/Qwen2.5-VL-3B-Instruct"
DATA_ROOT="toy_images"
CANDIDATES=4
ROLLOUTS=4
STEPS=200
BATCH=4
OUTPUT="output/rloo_pick_image"
GPUS=8
FLAGS=()

while [ $# -gt 0 ] && [ "$1" != "--" ]; do
    [ $# -gt 1 ] || { echo "$0: $1 needs a value" >&2; exit 2; }
    case "$1" in
        --model_id) MODEL="$2" ;;
        --data_root) DATA_ROOT="$2" ;;
        --candidates_per_episode) CANDIDATES="$2" ;;
        --fixed_correct_index) FLAGS+=(--fixed_correct_index "$2") ;;
        --num_rollouts) ROLLOUTS="$2" ;;
        --train_steps) STEPS="$2" ;;
        --per_device_batch_size) BATCH="$2" ;;
        --use_lora) if [ "$2" = true ]; then FLAGS+=(--use_peft true --lora_r 16 --lora_alpha 32); fi ;;
        --output_dir) OUTPUT="$2" ;;
        --gpus) GPUS="$2" ;;
        *) echo "$0: unknown flag $1; see the first lines of this script" >&2; exit 2 ;;
    esac
    shift 2
done
[ $# -eq 0 ] || shift

HERE="$(cd "$(dirname "$0")/.." && pwd)"
accelerate launch --num_processes "$GPUS" "$HERE/src/vlm_grpo/grpo_jsonl.py" \
    --output_dir "$OUTPUT" \
    --model_name_or_path "$MODEL" \
    --trainer rloo \
    --deepspeed "$HERE/configs/deepspeed/zero3.json" \
    --environment pick_image \
    --data_root "$DATA_ROOT" \
    --candidates_per_episode "$CANDIDATES" \
    --max_turns 1 \
    --num_generations "$ROLLOUTS" \
    --per_device_train_batch_size "$BATCH" \
    --max_steps "$STEPS" \
    --max_completion_length 512 \
    --learning_rate 1e-6 \
    --bf16 true \
    --logging_steps 1 \
    --save_steps 100 \
    --report_to tensorboard \
    ${FLAGS[@]+"${FLAGS[@]}"} "$@"
