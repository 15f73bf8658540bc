"""Maps functions over items on a Ray cluster of its own, and prints one JSON line for each case.

It is started as `mapping_script.py FOLDER`, in a separate process, because Ray leaves state in its process.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from emocap_cluster.cluster import connected
from emocap_cluster.errors import WorkerFailed
from emocap_cluster.mapping import WorkerResources, map_items

FOLDER = sys.argv[1]


def start() -> Callable[[int], tuple[int, str, str]]:
    """Returns a function that kills its process at the first call with item 3, and raises an error for item 99."""
    Path(FOLDER, f"started-{os.getpid()}").touch()

    def act(item: int) -> tuple[int, str, str]:
        marker = Path(FOLDER, "killed")
        if item == 3 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if item == 99:
            raise ValueError("99 is wrong")
        return item, os.environ["SECRET"], os.environ["OMP_NUM_THREADS"]

    return act


def fail() -> Callable[[int], int]:
    raise LookupError("there is no model")


def tell(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")


def main() -> None:
    with connected({}) as cluster:
        two = WorkerResources.of(cluster.nodes(), workers=2, use_gpus=True)
        tell(name="all", found=sorted(map_items(start, iter(range(12)), two, env={"SECRET": "hidden"})))
        tell(name="none", found=list(map_items(start, iter(()), two, env={})))
        for name, function in (("wrong item", start), ("no start", fail)):
            try:
                list(map_items(function, iter((98, 99)), two, env={"SECRET": ""}))
            except WorkerFailed as error:
                tell(name=name, said=str(error), cause=type(error.cause).__name__)


if __name__ == "__main__":
    main()
