"""What becomes of jobs on a Ray of their own, one JSON line each; a process of its own, as Ray leaves things behind."""

import json
import os
import sys
from pathlib import Path

from emocap_cluster.errors import ClusterError
from emocap_cluster.ranks import Resources, connected, on_every_rank
from emocap_cluster.runtime import RayRuntime


def tell(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def run(name: str, function: object, resources: Resources) -> None:
    try:
        on_every_rank(function, ranks=2, on_gpu=False, resources=resources, timeout_s=60)  # type: ignore[arg-type]
        tell(name=name)
    except ClusterError as error:
        cause = getattr(error, "cause", None)
        tell(name=name, kind=type(error).__name__, message=str(error), cause=type(cause).__name__, why=str(cause))


def jobs(folder: str, resources: Resources) -> None:
    def sees(runtime: RayRuntime) -> None:
        import torch.distributed as dist

        place = runtime.place
        numbers = [None] * place.world
        dist.all_gather_object(numbers, place.rank * 10)
        seen = [place.rank, place.world, place.local_rank, place.local_world, runtime.device, os.environ["GREETING"]]
        Path(folder, str(place.rank)).write_text(json.dumps([*seen, numbers, runtime.should_stop()]))

    def fails_on(rank: int) -> object:
        def fails(runtime: RayRuntime) -> None:
            import torch.distributed as dist

            if runtime.place.rank == rank:
                raise ClusterError("the data ran out")
            dist.barrier()

        return fails

    def dies(runtime: RayRuntime) -> None:
        import torch.distributed as dist

        if runtime.place.rank == 1:
            os._exit(1)
        dist.barrier()

    run("sees", sees, resources)
    run("fails on 0", fails_on(0), resources)
    run("fails on 1", fails_on(1), resources)
    run("dies", dies, resources)


if __name__ == "__main__":
    try:
        with connected({"GREETING": "hello"}) as found:
            tell(name="connected", cpus=found.cpus, gpus=found.gpus)
            jobs(sys.argv[1], found)
    except ClusterError as error:
        tell(name="connected", kind=type(error).__name__, message=str(error))
