"""Writes claims about rendered faces as JSON lines: `python -m benchmarks.checking --faces 200 --seed 0`.

Each line is a `WrittenClaim`, together with the seed and the index from which `sample_face` draws the face.
"""

import argparse
import json
import sys

from benchmarks.checking.falsifier import TrueUnits, written_claims
from benchmarks.harness.suite import count
from emocap_pretrain.captions.rendered.captioner import caption
from emocap_pretrain.captions.rendered.dataset import sample_face


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checking", description=__doc__)
    parser.add_argument("--faces", type=count, default=200, help="number of faces (200)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the faces and of the wordings (0)")
    options = parser.parse_args()
    for index in range(options.faces):
        face = sample_face(options.seed, index)
        truth = TrueUnits.symmetric(face.actions.strength)
        for claim in written_claims(f"{options.seed}-{index}", caption(face), truth, options.seed):
            row = {"seed": options.seed, "index": index, **claim.row()}
            sys.stdout.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
