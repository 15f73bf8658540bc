"""Times what a restart cannot do without, timed in each rank: `torchrun -m benchmarks.cluster.floor CONFIG ANSWER`.

Nothing of ours decides these: the process, its imports, the process group, and the model with what is restored.
"""

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from .job import Site, Size


def parts(config: Path, place: "Site", size: "Size") -> dict[str, float]:
    """Returns the seconds of each part on rank 0, for the run of `config`, which must have ended.

    Raises:
        JobError: If they cannot be timed.
    """
    from .job import free_port, started

    answer = config.parent / "floor.json"
    ranks = ("--nproc_per_node", str(size.ranks), "--master_port", free_port())
    command = ["torchrun", *ranks, "-m", __name__, str(config), str(answer)]
    with started(command, place, config.parent) as job:
        job.wait()
    return json.loads(answer.read_text())


def main() -> None:
    began, entered = psutil.Process().create_time(), time.time()
    from emocap_shards.store import open_store

    from emocap_pretrain.config.load import load
    from emocap_pretrain.ranks.join import joined
    from emocap_pretrain.ranks.runtime import EnvRuntime
    from emocap_pretrain.run_folder.attempts import Attempt
    from emocap_pretrain.training import loop
    from emocap_pretrain.training.session import open_session

    assert loop.pretrain, "the training function brings all that a rank imports"
    imported = time.time()
    config = load(Path(sys.argv[1]), [])
    runtime = EnvRuntime.from_environment("cpu")
    with joined(config.cluster, runtime) as world:
        met = time.time()
        store = open_store(config.url)
        number = world.run_on_main(lambda: Attempt.begin(store, ranks=world.world_size).number)
        with open_session(config, world, Attempt(store, number), world.patient("opening")):
            restored = time.time()
    if runtime.rank_info.rank == 0:
        marks = {
            "process_s": entered - began,
            "imports_s": imported - entered,
            "process_group_s": met - imported,
            "model_and_restore_s": restored - met,
        }
        Path(sys.argv[2]).write_text(json.dumps(marks))


if __name__ == "__main__":
    main()
