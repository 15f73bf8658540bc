"""Connects to the Ray cluster on which a job runs: the cluster at RAY_ADDRESS, this user's cluster on this host, or a
new one.
"""

import logging
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import ray
from ray._private.state import state as ray_state  # pyright: ignore[reportPrivateUsage]
from ray.exceptions import RayActorError
from ray.util.debug import log_once
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from emocap_cluster.address import HERE, address_of_ray
from emocap_cluster.board import BoardState, start_board
from emocap_cluster.errors import NoCluster
from emocap_cluster.placement import Node, Placement
from emocap_cluster.security import LOOPBACK, check_token, make_token, on_loopback, private_folder

VITAL = ("gcs_server", "raylet")  # A cluster of one host ends with either of these processes.
BOARD_ANSWER_S = 5.0
# Ray starts the board's process with the first attempt. On 2 cores at a load of 12 this took longer than 25 s.
BOARD_START_S = 300.0
BOARD_SLOW_S = 30.0  # A healthy start takes less, so that it prints no line about the board.
BOARD_TRIES = 5

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Ray cluster to which this process is connected.

    Args:
        own: Whether the cluster was started for this process, and consists of this host alone.
        board: Handle of the job's `Board`.
        processes: If `own`, the processes whose end also ends the cluster, in the order of their names in `VITAL`.
            Otherwise empty.
    """

    own: bool
    board: Any
    processes: tuple[psutil.Process, ...] = ()

    def gone(self) -> list[str]:
        """Returns the names of the `processes` that have ended."""
        return [name for name, each in zip(VITAL, self.processes, strict=False) if not _runs(each)]

    def state(self) -> BoardState | None:
        """Returns the messages of the ranks. Returns None while Ray restarts the board's process, or if there is no
        timely answer.
        """
        try:
            answer: Any = ray.get(self.board.state.remote(), timeout=BOARD_ANSWER_S)
        except (RayActorError, TimeoutError):
            return None
        return answer

    def begin(self) -> None:
        """Clears the board before an attempt, because a stop request of the previous attempt would end the new one.

        Raises:
            NoCluster: If the board does not answer within `BOARD_START_S`, or if the job's own Ray ends before that.
        """
        waits = round(BOARD_START_S / BOARD_ANSWER_S)
        failed: Exception | None = None
        for _ in range(BOARD_TRIES):
            begun = self.board.begin.remote()
            while waits and not self.gone() and not ray.wait([begun], timeout=BOARD_ANSWER_S)[0]:
                waits -= 1
                if waits == round((BOARD_START_S - BOARD_SLOW_S) / BOARD_ANSWER_S):
                    _log.warning("Ray has started no process for the job's board yet; is this host busy? Waiting.")
            try:
                ray.get(begun, timeout=0)
            except TimeoutError as error:
                failed = error
                break
            except RayActorError as error:  # Ray restarts its process, which is then empty.
                failed = error
                continue
            return
        cure = "look at Ray's logs; the same command resumes the run"
        raise NoCluster(f"the job's board on this host does not answer: {cure}.") from failed

    def nodes(self) -> list[Node]:
        """Returns all nodes that Ray knows. For some seconds a node that has died may still be listed as alive."""
        draining = _draining()
        return [
            Node(
                id=node["NodeID"],
                address=node["NodeManagerAddress"],
                cpus=int(node["Resources"].get("CPU", 0)),
                gpus=int(node["Resources"].get("GPU", 0)),
                alive=node["Alive"],
                draining=node["NodeID"] in draining,
            )
            for node in ray.nodes()
        ]

    def has_free(self, more: int, placement: Placement) -> bool:
        """Returns whether the free resources suffice for `more` ranks, each with the resources of a rank in
        `placement`.
        """
        free = ray.available_resources()
        return all(free.get(name, 0.0) >= more * amount for name, amount in placement.held.items())

    def release(self) -> None:
        """Frees the devices of an attempt that has ended, in whichever way it ended.

        Ray Train keeps its placement group, which reserves the devices, if a rank dies during its start, or if Ray
        Train's controller is killed. Ray removes such a group only when the job ends, so the next attempt would wait
        for the devices of this attempt. Decision 19 says why the driver does this, and not an actor.
        """
        job: str = ray.get_runtime_context().get_job_id()
        groups: dict[str, dict[str, Any]] = placement_group_table()
        for number, group in groups.items():
            # The last bytes of a group's id are the id of its job. The groups of other jobs are kept.
            if number.endswith(job) and group["state"] != "REMOVED":
                remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(number))))


def _vital() -> tuple[psutil.Process, ...]:
    """Returns the processes with the names `VITAL`, in this order, of the cluster that this process has started."""
    by_name = {each.name(): each for each in psutil.Process().children() if _runs(each)}
    return tuple(by_name[name] for name in VITAL)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _draining() -> Mapping[str, int]:
    """Returns the ids of the nodes that will be removed soon, with their deadlines.

    Ray has no public function for this; Ray Train's own watcher uses the same private one.
    """
    return ray_state.get_draining_nodes()


@contextmanager
def connected(env: Mapping[str, str]) -> Generator[Cluster]:
    """Joins the cluster at `RAY_ADDRESS` or on this host, or starts one on this host for the time of the `with` block.

    A cluster that is started here listens on the loopback interface alone and requires a token. Only this user can read
    the token, and only this user can open the folder with the cluster's sockets and logs.

    At the end of the block the connection is closed, and a cluster that was started here has ended.

    Args:
        env: Environment variables of the ranks. Ray shows them in its dashboard, so they must not contain secrets.

    Raises:
        NoCluster: If Ray can neither be joined nor started.
    """
    address = address_of_ray()
    # Ray warns that a new cluster requires a token, which is intended.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    log_once("log_dedup_warning")  # Marks it as logged, so that Ray does not explain how it folds repeated lines.
    with _joined(address, env) if address != HERE else _started(env) as cluster:
        yield cluster


@contextmanager
def _joined(address: str, env: Mapping[str, str]) -> Generator[Cluster]:
    check_token()  # Before Ray reads the token and sends it to the cluster.
    # Helper processes of Ray Train look for a cluster on their host. If there are several, they must find this one.
    here = {name: os.environ[name] for name in ("RAY_ADDRESS",) if os.environ.get(name)}
    with _ray(f"Ray at {address} cannot be joined", address=address, env={**env, **here}):
        yield Cluster(own=False, board=start_board())


@contextmanager
def _started(env: Mapping[str, str]) -> Generator[Cluster]:
    make_token()
    check_token()
    folder = private_folder() / "ray"
    with (
        on_loopback(),
        # There is no dashboard, because its processes would use cores of the ranks, and because it opens a port.
        _ray(
            "Ray cannot be started here",
            address=HERE,
            # LOOPBACK comes first, so that an interface that the user has chosen takes precedence.
            env={**LOOPBACK, **env},
            include_dashboard=False,
            _temp_dir=str(folder),
        ),
    ):
        yield Cluster(own=True, board=start_board(), processes=_vital())


@contextmanager
def _ray(trouble: str, *, env: Mapping[str, str], **settings: Any) -> Generator[None]:
    """Connects to Ray for the time of the `with` block.

    Raises:
        NoCluster: If Ray can neither be joined nor started. The error's message begins with `trouble`.
    """
    try:
        ray.init(runtime_env={"env_vars": dict(env)}, logging_level=logging.WARNING, **settings)
    except Exception as error:  # On a busy host Ray gives up its own start with a plain Exception.
        raise NoCluster(f"{trouble}: {(str(error) or repr(error)).splitlines()[0]}") from error
    try:
        yield
    finally:
        ray.shutdown()
