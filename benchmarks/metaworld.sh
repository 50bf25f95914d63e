#!/usr/bin/env bash
# Do both skills survive on Meta-World? Records demonstrations of TASKS, trains the embedded VLM on them under each of
# PROTECTIONS (JOBS at once), rolls ROLLOUTS new scenes a task out, asks the backbone SAMPLES questions, and writes one
# page about all of it. Everything lands in OUT; given again, the command goes on where it stopped.
set -euo pipefail
cd "$(dirname "$0")/.."
export OUT=${OUT:-outputs/metaworld} STEPS=${STEPS:-3000} EPISODES=${EPISODES:-250} SEED=${SEED:-0}
export ROLLOUTS=${ROLLOUTS:-20} SAMPLES=${SAMPLES:-1000}
export TASKS=${TASKS:-reach-v3,drawer-close-v3,button-press-topdown-v3,window-open-v3,door-open-v3}
export PATH="$PWD/.venv/bin:$PATH" HF_HUB_OFFLINE=1 MUJOCO_GL=${MUJOCO_GL:-egl} OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

aegis-record --env.type=aegis_metaworld --env.task="$TASKS" --env.image_size=96 --noise=0.3 \
    --episodes="$EPISODES" --root="$OUT/data" --seed="$SEED"

run_protection() {
    local run=$OUT/$1 training
    local saved=$run/training/checkpoints last
    last=$saved/$(printf %06d "$STEPS")
    local checkpoint=$last/pretrained_model
    if [[ ! -e $last/training_state/scheduler_state.json ]]; then # which is written last
        if [[ -d $saved/last ]]; then
            training=(--config_path="$saved/last/pretrained_model/train_config.json" --resume=true)
        else
            rm -rf "$run/training" # stopped before the first checkpoint
            training=(--policy.type=aegis --policy.device=cpu --policy.protection="$1"
                --policy.optimizer_lr=1e-3 --policy.optimizer_lr_backbone=1e-3 --policy.n_action_steps=8
                --policy.expert_width=128 --policy.expert_depth=4 --policy.expert_heads=4
                --dataset.repo_id=local/metaworld --dataset.root="$OUT/data" --output_dir="$run/training"
                --steps="$STEPS" --batch_size=8 --num_workers=0 --save_freq=500 --log_freq=50 --seed="$SEED")
        fi
        mkdir -p "$run"
        lerobot-train "${training[@]}" 2>&1 | tee -a "$run/training.log"
    fi
    [[ -e $run/rollouts/eval_info.json ]] ||
        lerobot-eval --policy.path="$checkpoint" --policy.device=cpu --env.type=aegis_metaworld \
            --env.task="$TASKS" --env.image_size=96 --eval.n_episodes="$ROLLOUTS" --eval.batch_size=$((ROLLOUTS < 10 ? ROLLOUTS : 10)) \
            --eval.use_async_envs=false --output_dir="$run/rollouts" --seed=1000
    [[ -e $run/vqa/results.json ]] ||
        aegis-vqa --policy.path="$checkpoint" --benchmark=tabletop --split=test --samples="$SAMPLES" \
            --output_dir="$run/vqa"
}
export -f run_protection
xargs -P "${JOBS:-2}" -n 1 bash -euo pipefail -c 'run_protection "$0"' <<<"${PROTECTIONS:-none aegis freeze}"

aegis-report --runs="$OUT"
