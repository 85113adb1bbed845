#!/bin/sh
# Sets up the peers of the attribution methods in two private environments (once), makes the data,
# solves the reference system (once), and runs every peer; one JSON line for each timed part.
#
#   run.sh [run_peers.py's arguments]
#   run.sh --ratios [ratios.py's arguments]     ours and the peers in turn, and the ratios
#   run.sh --set-up                             environments only
set -eu
cd "$(dirname "$0")"
cache="${SIMFLUENCE_CACHE:-$HOME/.cache/simfluence}"
work="${ATTRIBUTION_PEERS_WORK:-$cache/attribution-peers-work}"

# set_up NAME REQUIREMENTS: pyDVL needs numpy < 2, the others do not, so there are two.
set_up() {
    venv="$cache/$1"
    if [ ! -x "$venv/bin/python" ]; then
        python3.11 -m venv "$venv"
    fi
    if ! cmp -s "$2" "$venv/requirements.txt"; then
        "$venv/bin/pip" install --quiet --requirement "$2"
        cp "$2" "$venv/requirements.txt"
    fi
}
set_up attribution-peers requirements.txt
set_up attribution-pydvl requirements-pydvl.txt
if [ "${1:-}" = "--set-up" ]; then
    exit 0
fi

python="$cache/attribution-peers/bin/python"
mkdir -p "$work/results"
if [ ! -f "$work/data/mlp_test.safetensors" ]; then
    "$python" data.py "$work/data" >&2
fi
if [ ! -f "$work/results/mlp_influence_reference.npy" ]; then
    "$python" reference.py "$work/data" "$work/results" 2 >&2
fi
if [ "${1:-}" = "--ratios" ]; then
    shift
    (cd ../../.. && cargo build --release --features torch --package simfluence-simulators --example attribution_peer)
    target="${CARGO_TARGET_DIR:-../../../target}"
    exec "$python" ratios.py --ours "$target/release/examples/attribution_peer" \
        --data "$work/data" --results "$work/results" "$@"
fi
exec "$python" run_peers.py --data "$work/data" --results "$work/results" "$@"
