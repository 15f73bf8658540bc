"""Runs jobs on Ray and prints one JSON line for each. It is a separate process, because Ray does not clean up its
state.

`rank_script.py FOLDER` starts its own Ray. `rank_script.py FOLDER nodes` starts a cluster to which nodes are added and
from which they are removed. `rank_script.py FOLDER moves` runs a job in that cluster.
"""

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
from emocap_cluster.cluster import Cluster, connected
from emocap_cluster.errors import ClusterError
from emocap_cluster.placement import ResourceRequest
from emocap_cluster.restarts import Cause, RestartBudget
from emocap_cluster.runtime import RayRuntime
from emocap_cluster.supervise import Job, supervise

PATIENCE_S = 2.0
FREE_S = 30.0


def tell(**facts: object) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


@dataclass
class FileRecord:
    """A run whose state is in files of a folder: `done`, `progress`, and one file for each failure."""

    folder: Path

    def done(self) -> bool:
        return (self.folder / "done").exists()

    def progress(self) -> int:
        file = self.folder / "progress"
        return int(file.read_text()) if file.exists() else 0

    def failures(self) -> Sequence[Cause]:
        file = self.folder / "failure"
        if not file.exists():
            return []
        found = [Cause(**json.loads(file.read_text()))]
        file.unlink()
        return found

    def asked_to_stop(self) -> bool:
        return False

    def cause_of(self, rank: int, error: Exception) -> Cause:
        lost = "gloo" in str(error)
        return Cause(type(error).__name__, str(error), rank, lost=lost, final=isinstance(error, ClusterError))


class Lines:
    def __init__(self) -> None:
        self.said: list[str] = []
        self.beats: list[list[object]] = []

    def say(self, line: str) -> None:
        self.said.append(line)

    def show_progress(self, *progress: object) -> None:
        self.beats.append(list(progress))


def run(
    name: str,
    folder: Path,
    cluster: Cluster,
    function: Callable[[Path, RayRuntime], None],
    *,
    ranks: int | None = 2,
) -> None:
    place = folder / name.replace(" ", "-")
    place.mkdir()
    screen = Lines()
    request = ResourceRequest(ranks, least=1, most=8, on_gpu=False)
    job = Job(
        lambda runtime: function(place, runtime),
        request,
        RestartBudget(3),
        PATIENCE_S,
        timeout_s=60,
        env={"SECRET": "hidden"},
    )
    try:
        story = supervise(job, cluster, FileRecord(place), screen)
        attempts = [[each.ranks, each.ended.how.value, str(each.ended.cause or "")] for each in story.attempts]
        tell(name=name, how=story.how.value, attempts=attempts, said=screen.said, beats=screen.beats)
    except ClusterError as error:
        tell(name=name, kind=type(error).__name__, message=str(error), cause=cause(error))


def cause(error: ClusterError) -> str:
    return type(getattr(error, "cause", None)).__name__


def first_time(place: Path, rank: int) -> bool:
    mark = place / f"tried-{rank}"
    before = mark.exists()
    mark.touch()
    return not before


def sees(place: Path, runtime: RayRuntime) -> None:
    import torch.distributed as dist

    at = runtime.rank_info
    numbers = [None] * at.world_size
    dist.all_gather_object(numbers, at.rank * 10)
    env = [os.environ["GREETING"], os.environ["SECRET"]]
    places = [at.rank, at.world_size, at.local_rank, at.local_world_size]
    seen = [*places, runtime.device, *env, numbers, runtime.should_stop()]
    (place / str(at.rank)).write_text(json.dumps(seen))
    sys.stderr.write(f"I am {at.rank}\n")
    if at.rank == 0:
        runtime.heartbeat(5, 5, "loss 1.0")
        time.sleep(2.0)
        (place / "done").touch()
    dist.barrier()


def is_killed(place: Path, runtime: RayRuntime) -> None:
    import torch.distributed as dist

    rank = runtime.rank_info.rank
    (place / f"began-{rank}-{time.time()}").touch()
    if first_time(place, rank):
        dist.barrier()  # Ray has started all ranks: an end before that is the job "starting".
        if rank == 1:
            (place / f"killed-{time.time()}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        dist.barrier()
    (place / "done").touch()


class DiesWhileItIsStarted:
    """A training function that kills the first rank that receives it, before Ray Train has started all ranks."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def __reduce__(self) -> tuple[Callable[[Path], object], tuple[Path]]:
        return received, (self._place,)

    def __call__(self, _place: Path, _runtime: RayRuntime) -> None:
        raise AssertionError("a rank calls what `received` returns")


def received(place: Path) -> Callable[[Path, RayRuntime], None]:
    try:
        (place / "received").touch(exist_ok=False)
    except FileExistsError:
        return is_done
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL cannot be survived")


def is_done(place: Path, _runtime: RayRuntime) -> None:
    (place / "done").touch()


def waits_at_first(place: Path, runtime: RayRuntime) -> None:
    if first_time(place, runtime.rank_info.rank):
        (place / "ready").touch()
        time.sleep(300.0)
    (place / "done").touch()


def kill(name: str) -> None:
    """Sends SIGKILL to the process of this cluster with this name. The system shows at least 15 characters of names."""
    family = psutil.Process().children(recursive=True)
    (found,) = [each for each in family if each.name().startswith(name)]
    found.kill()


def left_behind() -> dict[str, object]:
    """Returns the actors of ended attempts that are still alive and the free CPUs, after waiting for both to settle."""
    import ray  # Not before emocap_cluster, whose settings Ray reads when it is imported.
    from ray._private.state import actors as actor_table

    deadline = time.monotonic() + FREE_S
    while True:
        actors: list[str] = [each["ActorClassName"] for each in actor_table().values() if each["State"] != "DEAD"]
        left = sorted({*actors} - {"Board", "_AutoscalingCoordinatorActor"})
        free = ray.available_resources().get("CPU", 0.0)
        if (not left and free == ray.cluster_resources()["CPU"]) or time.monotonic() > deadline:
            return {"actors": left, "free": free, "cpus": ray.cluster_resources()["CPU"]}
        time.sleep(0.5)


def has_a_bug(place: Path, runtime: RayRuntime) -> None:
    import torch.distributed as dist

    if runtime.rank_info.rank == 1:
        (place / "failure").write_text(json.dumps({"kind": "ValueError", "message": "bad", "rank": 1, "step": 7}))
        raise ValueError("bad")
    dist.barrier()


def is_set_wrongly(_place: Path, runtime: RayRuntime) -> None:
    import torch.distributed as dist

    if runtime.rank_info.rank == 1:
        raise ClusterError("the data ran out")
    dist.barrier()


def waits_to_be_stopped(place: Path, runtime: RayRuntime) -> None:
    """Saves every half second, and once more when it is asked to stop."""
    step = int((place / "progress").read_text()) if (place / "progress").exists() else 0
    for now in range(step + 1, step + 200):
        stopping = stops(runtime)
        if runtime.rank_info.rank == 0:
            (place / "progress").write_text(str(now))
            (place / f"ready-{runtime.rank_info.world_size}").touch()
            runtime.committed("a checkpoint")
        if stopping:
            return
        time.sleep(0.5)


def stops(runtime: RayRuntime) -> bool:
    import torch
    import torch.distributed as dist

    flag = torch.tensor(int(runtime.should_stop()))
    dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


def when(file: Path, act: Callable[[], object]) -> None:
    """Calls `act` once the file exists."""

    def wait() -> None:
        while not file.exists():
            time.sleep(0.2)
        act()

    threading.Thread(target=wait, daemon=True).start()


def listeners() -> list[list[object]]:
    """Returns name and address of each socket on which this process, or a process that it has started, listens."""
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    seen: list[list[object]] = []
    for each in family:
        with suppress(psutil.NoSuchProcess):
            seen += [[each.name(), at.laddr.ip] for at in each.net_connections("inet") if at.status == "LISTEN"]
    return seen


def modes() -> dict[str, object]:
    """Returns the access modes of the files of a cluster that this process has started."""
    token = Path.home() / ".ray" / "auth_token"
    sockets = Path(os.environ["RAY_TMPDIR"], f"emocap-{os.getuid()}")
    paths = {"token": token, "token folder": token.parent, "sockets": sockets}
    return {name: f"{stat.S_IMODE(path.stat().st_mode):03o}" for name, path in paths.items()}


def on_one_node(folder: Path, cluster: Cluster) -> None:
    tell(name="files", **modes())
    when(folder / "sees" / "0", lambda: tell(name="listeners", seen=listeners()))
    run("sees", folder, cluster, sees)
    run("killed", folder, cluster, is_killed)
    run("bug", folder, cluster, has_a_bug)
    run("wrong", folder, cluster, is_set_wrongly)
    run("starting", folder, cluster, DiesWhileItIsStarted(folder / "starting"))
    tell(name="after starting", **left_behind())
    when(folder / "controller" / "ready", lambda: kill("ray::TrainContr"))
    run("controller", folder, cluster, waits_at_first)
    tell(name="after controller", **left_behind())
    when(folder / "stopped" / "ready-2", lambda: os.kill(os.getpid(), signal.SIGTERM))
    run("stopped", folder, cluster, waits_to_be_stopped)
    when(folder / "raylet" / "ready", lambda: kill("raylet"))
    run("raylet", folder, cluster, waits_at_first)  # Runs last, because it ends the cluster.


def on_nodes(folder: Path) -> None:
    """Runs a job on a head without CPUs and one node. Two nodes are added, so the job grows. Then one node is drained,
    and one of the other two is lost without notice.
    """
    from ray.cluster_utils import Cluster as Nodes

    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0})
    first = nodes.add_node(num_cpus=2)
    env = os.environ | {"RAY_ADDRESS": nodes.address}
    with subprocess.Popen([sys.executable, __file__, str(folder), "moves"], env=env) as job:
        there(folder / "moves" / "ready-2", job)
        added = [nodes.add_node(num_cpus=2) for _ in range(2)]
        there(folder / "moves" / "ready-3", job)
        command = [str(Path(sys.executable).with_name("ray")), "drain-node", "--address", nodes.address]
        command += ["--node-id", first.node_id, "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
        command += ["--reason-message", "spot", "--deadline-remaining-seconds", "60"]
        subprocess.run(command, check=True, capture_output=True)
        there(folder / "moves" / "ready-after-drain", job)
        nodes.remove_node(added[0], allow_graceful=False)
        there(folder / "moves" / "ready-after-loss", job)
        job.send_signal(signal.SIGTERM)
        job.wait(120)
    nodes.shutdown()


def there(file: Path, job: "subprocess.Popen[bytes]") -> None:
    while not file.exists() and job.poll() is None:
        time.sleep(0.2)


def moves(place: Path, runtime: RayRuntime) -> None:
    if runtime.rank_info.rank == 0 and (place / "ready-3").exists() and runtime.rank_info.world_size == 2:
        after_drain = place / "ready-after-drain"
        (place / "ready-after-loss" if after_drain.exists() else after_drain).touch()
    waits_to_be_stopped(place, runtime)


if __name__ == "__main__":
    try:
        if "nodes" in sys.argv:
            on_nodes(Path(sys.argv[1]))
        elif "moves" in sys.argv:
            with connected({}) as found:
                run("moves", Path(sys.argv[1]), found, moves, ranks=None)
        else:
            with connected({"GREETING": "hello"}) as found:
                tell(name="connected", own=found.own, cpus=found.nodes()[0].cpus)
                on_one_node(Path(sys.argv[1]), found)
    except ClusterError as error:
        tell(name="connected", kind=type(error).__name__, message=str(error))
