#!/usr/bin/env bash
# Installs the environment, makes a dataset of faces, and trains, tracks and evaluates a model on this machine.
# Arguments override settings of the recipe, such as `launch/quickstart.sh steps=500`.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/setup.sh

make_environment
echo "Faces in data/faces"
.venv/bin/emocap synth data/faces
echo "Training launch/recipes/tiny.yaml"
exec .venv/bin/python -m emocap_pretrain.run launch/recipes/tiny.yaml "$@"
