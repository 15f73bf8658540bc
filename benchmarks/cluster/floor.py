"""Times the work that every start and restart of a run has to do: `python -m benchmarks.cluster.floor CONFIG ANSWER`.

The parts of this work are to start the process, to import the packages, to create the process group, and to build the
model and restore its state. torchrun starts this program, and rank 0 writes the seconds of each part to the file
ANSWER.
"""

import json
import sys
import time
from pathlib import Path

import psutil


def main() -> None:
    """Does on one rank what a restart does before the first step: joins the ranks, and restores the run of CONFIG.

    The run must be finished. Rank 0 writes the seconds of each part to the file ANSWER.
    """
    began, entered = psutil.Process().create_time(), time.time()
    from emocap_shards.store import open_store

    from emocap_pretrain.config.load import load
    from emocap_pretrain.ranks.join import joined
    from emocap_pretrain.ranks.runtime import EnvRuntime
    from emocap_pretrain.run_folder.attempts import Attempt
    from emocap_pretrain.training import loop
    from emocap_pretrain.training.session import open_session

    assert loop.pretrain, "the module of the training function imports everything that a rank needs"
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
