"""Packs the FER+ set with captions: `python -m emocap_pretrain.captions.ferplus`."""

import argparse
import sys

from emocap_shards.writer import write_shards

from emocap_pretrain.captions.ferplus.dataset import SPLITS, load, records


def main(arguments: list[str] | None = None) -> None:
    """Runs the command with `arguments`, or with the arguments of the process if None."""
    parser = argparse.ArgumentParser(
        prog="python -m emocap_pretrain.captions.ferplus",
        description="Packs the FER+ set with captions into the datasets train, valid and test.",
    )
    parser.add_argument("--npz", required=True, help="images, votes, usage and names")
    parser.add_argument("--landmarks", required=True, help="the file that `emocap landmarks` wrote for these images")
    parser.add_argument("--out", required=True, help="folder or URL in which the three datasets are written")
    chosen = parser.parse_args(arguments)
    faces = load(chosen.npz, chosen.landmarks)
    for split in SPLITS:
        manifest = write_shards(records(faces, split), f"{chosen.out.rstrip('/')}/{split}")
        sys.stderr.write(f"{split}: {manifest.samples} samples\n")


if __name__ == "__main__":
    main()
