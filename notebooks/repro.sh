#!/usr/bin/env bash
# `dvc repro` with JOBS stages side by side (default: the cores), since DVC runs one after the other. Stages of one
# wave do not depend on each other; the longest come first. Run from the repository's root.
set -euo pipefail
cores=$(nproc)
jobs=${JOBS:-$cores}
export OMP_NUM_THREADS=$((cores > jobs ? cores / jobs : 1))

# side_by_side NUMBER: the stages of the input, so many in one call of DVC, whose start takes seconds
side_by_side() {
    xargs -P "$jobs" -n "$((jobs > 4 ? 1 : $1))" dvc --wait-for-lock repro -s
}

stages() {
    dvc stage list --name-only | grep -E "^($1)" | tac
}

printf '%s\n' demo_data clean | xargs -P "$jobs" -n 1 dvc --wait-for-lock repro
stages 'experiment@untrained' | side_by_side 1  # first, as the other runs take their control from there
stages 'experiment@' | side_by_side 3
stages 'patch_experiment@|auc_against_updates$|augmentations$|(transfer|sensitivity|one_class)@' | side_by_side 1
stages 'table|figure|cifar10' | side_by_side 3
dvc repro
