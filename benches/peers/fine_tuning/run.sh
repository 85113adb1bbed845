#!/bin/sh
# Fine-tuning against transformers and PyTorch. Sets the peer up in a private venv (once), builds our
# side, and prints the ratios.
set -eu
cd "$(dirname "$0")/../../.."
venv="${SIMFLUENCE_CACHE:-$HOME/.cache/simfluence}/fine-tuning-peer"
if ! cmp -s benches/peers/fine_tuning/requirements.txt "$venv/requirements.txt"; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --requirement benches/peers/fine_tuning/requirements.txt
    cp benches/peers/fine_tuning/requirements.txt "$venv/requirements.txt"
fi
cargo build --release --features torch -p simfluence -p simfluence-models --example fine_tuning_peer
exec "$venv/bin/python" benches/peers/fine_tuning/run.py \
    "${CARGO_TARGET_DIR:-target}/release/examples/fine_tuning_peer" "$@"
