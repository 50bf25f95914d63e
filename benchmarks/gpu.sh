#!/usr/bin/env bash
# What wants a GPU, measured on one card in at most 9 minutes: what a training step of every protection takes, a chunk
# of actions, an anchor's pass, two processes if there are two cards. `python benchmarks/gpu.py --help` says more.
#
#     benchmarks/gpu.sh [--out=outputs/gpu] [--tiny]
#
# The result is OUT/gpu.json; OUT/logs holds what the parts said. Given again with the same OUT on the same card, it
# measures what is missing; the exit status is 1 while something is. --tiny tries everything on a CPU, within an hour.
# PYTHON names another interpreter than that of .venv, one with the dependencies of this project; the project itself need
# not be installed there.
set -uo pipefail

out=outputs/gpu
tiny=()
limit=540
for argument in "$@"; do
    case $argument in
        --out=*) out=${argument#*=} ;;
        --tiny) tiny=(--tiny) limit=3600 ;;
        *) echo "usage: $0 [--out=FOLDER] [--tiny]" >&2; exit 2 ;;
    esac
done

root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
export PYTHONPATH=$root:$root/envs:$root/eval${PYTHONPATH:+:$PYTHONPATH}
export HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
mkdir -p "$out/logs"

# The last seconds are for the JSON; what would not even start in the time left is not begun.
measure() {
    local left=$((limit - 10 - SECONDS)) seconds=$2
    ((left < 15)) && return
    ((${#tiny[@]} || left < seconds)) && seconds=$left
    timeout --kill-after=5 "$seconds" "$python" "$root/benchmarks/gpu.py" "$1" --out="$out" "${tiny[@]}" 2>&1 |
        tee -a "$out/logs/$1.log"
}

measure environment 90 || exit 1
measure step-none 120
measure step-aegis 120
measure step-gaussian 120
measure step-lora 120
measure chunk 150
measure anchor 200
measure two-processes 120
"$python" "$root/benchmarks/gpu.py" join --out="$out" "${tiny[@]}"
