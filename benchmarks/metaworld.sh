#!/usr/bin/env bash
# Do both skills survive on Meta-World? Records demonstrations of TASKS, trains the embedded VLM on them under each of
# PROTECTIONS, rolls 20 new scenes a task out, and asks the backbone 1,000 questions. Everything lands in OUT; given
# again, the command goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-outputs/metaworld} STEPS=${STEPS:-2000} EPISODES=${EPISODES:-250} SEED=${SEED:-0}
ROLLOUTS=${ROLLOUTS:-20} SAMPLES=${SAMPLES:-1000} PROTECTIONS=${PROTECTIONS:-none aegis}
TASKS=${TASKS:-reach-v3,drawer-close-v3,button-press-topdown-v3,window-open-v3,door-open-v3}
export PATH="$PWD/.venv/bin:$PATH" HF_HUB_OFFLINE=1 MUJOCO_GL=${MUJOCO_GL:-egl}

[[ -d $OUT/data ]] ||
    aegis-record --env.type=aegis_metaworld --env.task="$TASKS" --env.image_size=96 --noise=0.3 \
        --episodes="$EPISODES" --root="$OUT/data" --seed="$SEED"

for protection in $PROTECTIONS; do
    run=$OUT/$protection
    checkpoint=$run/training/checkpoints/last/pretrained_model
    if [[ ! -d $run/training/checkpoints/$(printf %06d "$STEPS") ]]; then
        if [[ -d $checkpoint ]]; then
            training=(--config_path="$checkpoint/train_config.json" --resume=true)
        else
            rm -rf "$run/training" # stopped before the first checkpoint
            training=(--policy.type=aegis --policy.device=cpu --policy.protection="$protection"
                --policy.optimizer_lr_backbone=1e-3 --policy.n_action_steps=8
                --dataset.repo_id=local/metaworld --dataset.root="$OUT/data" --output_dir="$run/training"
                --steps="$STEPS" --batch_size=16 --num_workers=0 --save_freq=200 --log_freq=50 --seed="$SEED")
        fi
        lerobot-train "${training[@]}" 2>&1 | tee -a "$run.log"
    fi
    [[ -e $run/rollouts/eval_info.json ]] ||
        lerobot-eval --policy.path="$checkpoint" --policy.device=cpu --env.type=aegis_metaworld \
            --env.task="$TASKS" --env.image_size=96 --eval.n_episodes="$ROLLOUTS" --eval.batch_size=$((ROLLOUTS < 10 ? ROLLOUTS : 10)) \
            --eval.use_async_envs=false --output_dir="$run/rollouts" --seed=1000
    [[ -e $run/vqa/results.json ]] ||
        aegis-vqa --policy.path="$checkpoint" --benchmark=tabletop --split=test --samples="$SAMPLES" \
            --output_dir="$run/vqa"
done
