#!/usr/bin/env bash
# `dvc repro` with JOBS stages side by side (default: the cores), since DVC runs one after the other. Table 1 comes
# first, to be read while the rest is made. Stages of one wave do not depend on each other; the longest come first,
# and short ones last, so that all cores end together. Run from the repository's root.
set -euo pipefail
cores=$(env -u OMP_NUM_THREADS nproc)  # which would tell that variable's value
jobs=${JOBS:-$cores}
export OMP_NUM_THREADS=$((cores > jobs ? cores / jobs : 1))
started=$SECONDS

# side_by_side NUMBER: the stages of the input, so many in one call of DVC, whose start takes seconds
side_by_side() {
    xargs -r -P "$jobs" -n "$((jobs > 4 ? 1 : $1))" dvc --wait-for-lock repro -s
}

stages() {
    dvc stage list --name-only | sed -nE "/^($1)/p"
}

printf '%s\n' demo_data clean | xargs -P "$jobs" -n 1 dvc --wait-for-lock repro
# what others build on: the control of every run, the model that GradCAM explains and Tables 7 and 8 vary
first='experiment@(cutpaste_3way|untrained)-'
second='experiment@(rotation|cutout|scar|cutpaste|cutpaste_scar)-'  # the other methods of Table 1
stages "$first" | tac | side_by_side 1
{
    stages "$second"
    stages 'transfer@'
} | side_by_side 1
stages 'table1_detection$' | side_by_side 1
echo "Table 1 after $(((SECONDS - started) / 60)) min $(((SECONDS - started) % 60)) s"
{
    stages 'patch_experiment@|sensitivity@'
    stages 'experiment@' | sed -E "/^$first|^$second/d"
    stages 'one_class@'
} | side_by_side 2
stages 'augmentations$|auc_against_updates$|table|figure|cifar10' | side_by_side 2
dvc repro
