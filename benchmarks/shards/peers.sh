#!/usr/bin/env bash
# Makes the environment of the other data loaders and image decoders, whose pins (numpy < 2.2) are not ours:
#   bash benchmarks/shards/peers.sh [FOLDER]     (/tmp/peer-venv by default, some 3 GB)
# Two decoders need a library of the system: apt-get install libturbojpeg0 libavcodec59
set -euo pipefail
folder=${1:-/tmp/peer-venv}
[ -x "$folder/bin/pip" ] || "${PYTHON:-python3.11}" -m venv "$folder"
"$folder/bin/pip" install --quiet --disable-pip-version-check --no-input \
  torch==2.13.0 torchvision==0.28.0 \
  webdataset==1.0.2 mosaicml-streaming==0.13.0 litdata==0.2.76 \
  simplejpeg==1.9.0 orjson==3.13.0 psutil pillow==13.0.0 "PyTurboJPEG<2" \
  opencv-python-headless==5.0.0.93 spdl-io==0.8.0 torchcodec==0.17.0 setuptools
echo "The peers are in $folder."
