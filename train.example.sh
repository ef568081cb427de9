#!/usr/bin/env bash
# Continual pretraining on several nodes. Copy it, fill in the variables, and start it on the first host of the
# hostfile (one host name a line; that host must reach every host, itself too, by ssh without a password).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# Where NCCL finds InfiniBand or Ethernet, if it does not find it by itself:
# export NCCL_SOCKET_IFNAME=eth0
export OMP_NUM_THREADS=8

PROJECT_NAME="my-llama"
PARENT_SAVE_DIR="checkpoints/"
PARENT_TENSORBOARD_DIR="logs/"
PARENT_CONFIG_FILE="configs/"
PRETRAINED_MODEL_PATH="models/my-llama-initialised"

declare -a dataset=(
    "data/pretrain/arrow/part-00000"
    "data/pretrain/arrow/part-00001"
    "data/pretrain/arrow/part-00002"
)

FULL_PROJECT_NAME="${PROJECT_NAME}-$(date +%Y-%m-%d-%H-%M-%S)"

colossalai run --nproc_per_node 8 --hostfile hostfile --master_port 31312 scripts/train.py \
    --pretrained "$PRETRAINED_MODEL_PATH" \
    --dataset "${dataset[@]}" \
    --plugin zero2 \
    --save_interval 400 \
    --save_dir "${PARENT_SAVE_DIR}${FULL_PROJECT_NAME}" \
    --tensorboard_dir "${PARENT_TENSORBOARD_DIR}${FULL_PROJECT_NAME}" \
    --config_file "${PARENT_CONFIG_FILE}${FULL_PROJECT_NAME}.json" \
    --num_epochs 1 \
    --micro_batch_size 8 \
    --lr 1e-4 \
    --mixed_precision bf16 \
    --gradient_clipping 1.0 \
    --weight_decay 0.01 \
    --warmup_steps 100 \
    --use_grad_checkpoint \
    --use_flash_attn
