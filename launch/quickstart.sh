#!/usr/bin/env bash
# From nothing to a trained, tracked and evaluated model on this machine: environment, faces, training.
# Further arguments override the recipe, such as `launch/quickstart.sh steps=500`.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/setup.sh

make_environment
echo "Faces in data/faces"
.venv/bin/emocap synth data/faces
echo "Training launch/recipes/tiny.yaml"
exec .venv/bin/python -m emocap_pretrain.run launch/recipes/tiny.yaml "$@"
