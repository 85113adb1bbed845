#!/bin/sh
# Sets up the peers in a private venv (once), builds our side, and prints the ratios.
set -eu
cd "$(dirname "$0")/../.."
venv="${SIMFLUENCE_CACHE:-$HOME/.cache/simfluence}/peers"
if [ ! -x "$venv/bin/python" ]; then
    python3 -m venv "$venv"
fi
if ! cmp -s benches/peers/requirements.txt "$venv/requirements.txt"; then
    "$venv/bin/pip" install --quiet --requirement benches/peers/requirements.txt
    cp benches/peers/requirements.txt "$venv/requirements.txt"
fi
cargo build --release --package simfluence-fitter --example peer --example scale
exec "$venv/bin/python" benches/peers/run.py --rust "${CARGO_TARGET_DIR:-target}/release/examples" "$@"
