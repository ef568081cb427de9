#!/usr/bin/env bash
# Supervised fine-tuning on several nodes, from the weights of the last pretraining stage. Copy it and fill in the
# variables; see train.example.sh for the hostfile.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

export OMP_NUM_THREADS=8

PROJECT_NAME="my-llama-sft"
PARENT_SAVE_DIR="checkpoints/"
PARENT_TENSORBOARD_DIR="logs/"
PARENT_CONFIG_FILE="configs/"
PRETRAINED_MODEL_PATH="checkpoints/my-llama/modeling"

declare -a dataset=(
    "data/sft/arrow/part-00000"
    "data/sft/arrow/part-00001"
)

FULL_PROJECT_NAME="${PROJECT_NAME}-$(date +%Y-%m-%d-%H-%M-%S)"

colossalai run --nproc_per_node 8 --hostfile hostfile --master_port 31312 scripts/train.py \
    --pretrained "$PRETRAINED_MODEL_PATH" \
    --dataset "${dataset[@]}" \
    --plugin zero2 \
    --save_interval 100 \
    --save_dir "${PARENT_SAVE_DIR}${FULL_PROJECT_NAME}" \
    --tensorboard_dir "${PARENT_TENSORBOARD_DIR}${FULL_PROJECT_NAME}" \
    --config_file "${PARENT_CONFIG_FILE}${FULL_PROJECT_NAME}.json" \
    --num_epochs 3 \
    --micro_batch_size 8 \
    --accumulation_steps 8 \
    --lr 2e-5 \
    --mixed_precision bf16 \
    --grad_clip 1.0 \
    --weight_decay 0.01 \
    --use_grad_checkpoint \
    --use_flash_attn \
    --use_neft
