"""Shows synthetic faces, or measures their rate: `python -m emocap_pretrain.captions.rendered`."""

import argparse
import sys
from pathlib import Path

from emocap_pretrain.captions.rendered.preview import rate, save_sheet


def main(arguments: list[str] | None = None) -> None:
    """Parses `arguments` (those of the process if None) and does what they say."""
    parser = argparse.ArgumentParser(prog="python -m emocap_pretrain.captions.rendered", description=__doc__)
    parser.add_argument("--preview", type=Path, metavar="PNG", help="write a contact sheet with labels")
    parser.add_argument("--rate", action="store_true", help="print faces per second on one core")
    parser.add_argument("--count", type=int, default=49)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pixels", type=int, default=112)
    chosen = parser.parse_args(arguments)
    if chosen.preview is None and not chosen.rate:
        parser.error("there is nothing to do; give --preview PNG or --rate.")
    if chosen.preview is not None:
        save_sheet(chosen.preview, count=chosen.count, seed=chosen.seed, pixels=chosen.pixels)
    if chosen.rate:
        timed = rate(chosen.count, seed=chosen.seed, pixels=chosen.pixels)
        sys.stdout.write(f"drawn {timed.drawn:.0f} faces/s, recorded {timed.recorded:.0f} faces/s\n")


if __name__ == "__main__":
    main()
