#!/usr/bin/env bash
# `dvc repro` with JOBS stages side by side (default: the cores), since DVC runs one after the other. Stages of one
# wave do not depend on each other; the longest come first. Run from the repository's root.
set -euo pipefail
cores=$(nproc)
jobs=${JOBS:-$cores}
export OMP_NUM_THREADS=$((cores > jobs ? cores / jobs : 1))
group=$((jobs > 4 ? 1 : 3)) # stages in one call of DVC, whose start takes seconds
waves=(
    'experiment@'
    'patch_experiment@|auc_against_updates$|augmentations$|(transfer|sensitivity|one_class)@'
    'table|figure|cifar10'
)
dvc repro demo_data clean
for wave in "${waves[@]}"; do
    dvc stage list --name-only | grep -E "^($wave)" | tac | xargs -P "$jobs" -n "$group" dvc --wait-for-lock repro -s
done
dvc repro
