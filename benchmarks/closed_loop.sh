#!/usr/bin/env bash
# Does a policy trained on two cores act, and does it listen? Records demonstrations of reach and pick-up, trains the
# embedded VLM under AEGIS on two processes for at most MINUTES, rolls 100 test scenes a task out, swaps instructions,
# asks questions. Everything lands in OUT; given again, the command goes on where it stopped. A training that runs out
# of time is judged by its last checkpoint, saved at most 200 steps before.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-outputs/closed_loop} STEPS=${STEPS:-4500} MINUTES=${MINUTES:-60} EPISODES=${EPISODES:-2000} SEED=${SEED:-0} ANCHOR=${ANCHOR:-subspace}
export PATH="$PWD/.venv/bin:$PATH" HF_HUB_OFFLINE=1 MUJOCO_GL=${MUJOCO_GL:-egl}
checkpoint=$OUT/training/checkpoints/last/pretrained_model

aegis-record --env.type=aegis_tabletop --env.split=train --env.task=reach,pick --episodes="$EPISODES" \
    --root="$OUT/data" --seed="$SEED"

used=$(cat "$OUT/training_seconds" 2>/dev/null || echo 0)
left=$((MINUTES * 60 - used))
if [[ ! -d $OUT/training/checkpoints/$(printf %06d "$STEPS") ]] && ((left > 0)); then
    if [[ -d $checkpoint ]]; then
        training=(--config_path="$checkpoint/train_config.json" --resume=true)
    else
        training=(--policy.type=aegis --policy.device=cpu --policy.protection=aegis --policy.anchor="$ANCHOR"
            --policy.optimizer_lr=5e-4 --policy.optimizer_lr_backbone=2e-4 --policy.flow_samples=2
            --dataset.repo_id=local/closed_loop --dataset.root="$OUT/data" --output_dir="$OUT/training"
            --steps="$STEPS" --batch_size=16 --num_workers=0 --save_freq=200 --log_freq=50 --seed="$SEED")
    fi
    SECONDS=0
    trap 'echo $((used + SECONDS)) >"$OUT/training_seconds"' EXIT
    OMP_NUM_THREADS=1 timeout --signal=INT "$left" \
        torchrun --nproc_per_node=2 "$(which lerobot-train)" "${training[@]}" 2>&1 | tee -a "$OUT/training.log" ||
        [[ $? -eq 124 ]] # out of time
    echo $((used + SECONDS)) >"$OUT/training_seconds"
    trap - EXIT
fi

[[ -e $OUT/rollouts/eval_info.json ]] ||
    lerobot-eval --policy.path="$checkpoint" --policy.device=cpu --env.type=aegis_tabletop --env.task=reach,pick \
        --env.split=test --eval.n_episodes=100 --eval.batch_size=20 --eval.use_async_envs=false \
        --output_dir="$OUT/rollouts" --seed=1000
[[ -e $OUT/swap.json ]] ||
    aegis-swap --policy.path="$checkpoint" --task=reach,pick --pairs=50 \
        --output="$OUT/swap.json"
[[ -e $OUT/vqa/results.json ]] ||
    aegis-vqa --policy.path="$checkpoint" --benchmark=tabletop --split=test --samples=1200 --output_dir="$OUT/vqa"
