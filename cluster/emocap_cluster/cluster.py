"""The Ray cluster that a job runs on: the one of RAY_ADDRESS or of this host, or one of its own."""

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
from emocap_cluster.board import News, put_up
from emocap_cluster.errors import NoCluster
from emocap_cluster.placement import Node, Placement
from emocap_cluster.security import LOOPBACK, check_token, make_token, on_loopback, private_folder

VITAL = ("gcs_server", "raylet")
NEWS_S = 5.0
BOARD_TRIES = 5


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Ray that this process is connected to.

    Args:
        own: Whether it was started for this process, and has this host alone.
        board: Handle of the job's `Board`.
        processes: The processes that an own cluster cannot run without, in the order of `VITAL`; else empty.
    """

    own: bool
    board: Any
    processes: tuple[psutil.Process, ...] = ()

    def gone(self) -> list[str]:
        """Returns the names of its processes that have ended."""
        return [name for name, each in zip(VITAL, self.processes, strict=False) if not _runs(each)]

    def news(self) -> News | None:
        """What the ranks have said; None while the board's process is lost and comes back, or the host is slow."""
        try:
            answer: Any = ray.get(self.board.news.remote(), timeout=NEWS_S)
        except (RayActorError, TimeoutError):
            return None
        return answer

    def begin(self) -> None:
        """Clear the board of the words of the attempt before: an old request to stop would end the new one.

        Raises:
            NoCluster: If the board does not answer.
        """
        for _ in range(BOARD_TRIES):
            try:
                ray.get(self.board.begin.remote(), timeout=NEWS_S)
            except (RayActorError, TimeoutError):  # Its process is lost and comes back, empty.
                continue
            return
        raise NoCluster("the job's board on this host does not answer: look at Ray's logs; the same command goes on.")

    def nodes(self) -> list[Node]:
        """All nodes that Ray counts; a node that has just died may be among the living for some seconds."""
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
        """Whether `more` ranks like the placed ones could start beside what runs now."""
        free = ray.available_resources()
        return all(free.get(name, 0.0) >= more * amount for name, amount in placement.held.items())

    def release(self) -> None:
        """Free the devices of an attempt that has ended, however it ended.

        Ray Train keeps its placement group if a rank dies while it is started, or if the controller is killed. Ray
        removes such a group with the whole job only, so the next attempt would wait for the devices of the one before.
        """
        job: str = ray.get_runtime_context().get_job_id()
        groups: dict[str, dict[str, Any]] = placement_group_table()
        for number, group in groups.items():
            # The last bytes of a group's number are those of its job: other jobs of the cluster keep theirs.
            if number.endswith(job) and group["state"] != "REMOVED":
                remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(number))))


def _vital() -> tuple[psutil.Process, ...]:
    """The processes of the cluster that this process has started, in the order of `VITAL`."""
    by_name = {each.name(): each for each in psutil.Process().children() if _runs(each)}
    return tuple(by_name[name] for name in VITAL)


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _draining() -> Mapping[str, int]:
    """Nodes that are about to go. Ray's public functions do not tell; Ray Train's own watcher asks this one."""
    return ray_state.get_draining_nodes()


@contextmanager
def connected(env: Mapping[str, str]) -> Generator[Cluster]:
    """Join the cluster of `RAY_ADDRESS` or of this host, or start one on this host for as long as the block lasts.

    One that is started here listens on the loopback interface alone, asks for a token that only this user can read, and
    keeps its sockets and logs in a folder that only this user can open.

    Args:
        env: Environment variables for the ranks. Ray shows them in its dashboard, so there are no secrets among them.

    Raises:
        NoCluster: If Ray can neither be joined nor started.
    """
    address = address_of_ray()
    # That a new cluster asks for a token is how it should be, and no warning.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    log_once("log_dedup_warning")  # Said already, so that Ray does not explain the folding of repeated lines.
    with _joined(address, env) if address != HERE else _started(env) as cluster:
        yield cluster


@contextmanager
def _joined(address: str, env: Mapping[str, str]) -> Generator[Cluster]:
    check_token()
    # Helpers of Ray Train look for "the" cluster of their host; where there are several it must be this one.
    here = {name: os.environ[name] for name in ("RAY_ADDRESS",) if os.environ.get(name)}
    with _ray(f"Ray at {address} cannot be joined", address=address, env={**env, **here}):
        yield Cluster(own=False, board=put_up())


@contextmanager
def _started(env: Mapping[str, str]) -> Generator[Cluster]:
    make_token()
    check_token()
    folder = private_folder() / "ray"
    with (
        on_loopback(),
        # No dashboard: its processes would take cores from the ranks, and it is one more open port.
        _ray(
            "Ray cannot be started here",
            address=HERE,
            env={**LOOPBACK, **env},
            include_dashboard=False,
            _temp_dir=str(folder),
        ),
    ):
        yield Cluster(own=True, board=put_up(), processes=_vital())


@contextmanager
def _ray(trouble: str, *, env: Mapping[str, str], **settings: Any) -> Generator[None]:
    """Connected to Ray for as long as the block lasts; `trouble` begins the message if that fails."""
    try:
        ray.init(runtime_env={"env_vars": dict(env)}, logging_level=logging.WARNING, **settings)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise NoCluster(f"{trouble}: {str(error).splitlines()[0]}") from error
    try:
        yield
    finally:
        ray.shutdown()
