#!/usr/bin/env bash
# Execute a cleaned notebook and strip what differs from run to run.
#   bash notebooks/run.sh NAME OUTPUT [papermill arguments]     cleans first if the cleaned copy is not there
#   bash notebooks/run.sh --clean NAME                          only writes notebooks/.clean/NAME.ipynb
# Run from the repository's root. Stages depend on the cleaned copy, so that saving a notebook in Jupyter does
# not make results stale, and two runs of one notebook give the same bytes.
set -euo pipefail

clean() {
    mkdir -p notebooks/.clean
    nbstripout -t --extra-keys metadata.language_info <"notebooks/$1.ipynb" >"notebooks/.clean/$1.ipynb"
}

if [ "$1" = --clean ]; then
    clean "$2"
    exit
fi
name=$1 output=$2
shift 2
[ -e "notebooks/.clean/$name.ipynb" ] || clean "$name"
mkdir -p "$(dirname "$output")"
partial="$output.partial.ipynb"
trap 'rm -f "$partial"' EXIT
# a fixed cell name keeps process ids out of warnings
export IPYKERNEL_CELL_NAME="<cell>" PYDEVD_DISABLE_FILE_VALIDATION=1
papermill -k python3 --no-progress-bar --log-level WARNING "notebooks/.clean/$name.ipynb" "$partial" "$@"
nbstripout --keep-output --keep-count \
    --extra-keys "metadata.papermill cell.metadata.papermill cell.metadata.execution" "$partial"
mv "$partial" "$output"
