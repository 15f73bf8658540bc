"""The Ray cluster that a job runs on: the one of RAY_ADDRESS or of this host, or one of its own."""

import logging
import os
import socket
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray
from ray._private.state import state as ray_state  # pyright: ignore[reportPrivateUsage]
from ray.exceptions import RayActorError
from ray.util.debug import log_once
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group

from emocap_cluster.board import News, put_up
from emocap_cluster.errors import NoCluster
from emocap_cluster.placement import Node, Placement

ANSWER_S, NEWS_S = 10.0, 5.0
BOARD_TRIES = 5


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Ray that this process is connected to. `own` ones were started for it and have this host alone."""

    own: bool
    board: Any

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


def _draining() -> Mapping[str, int]:
    """Nodes that are about to go. Ray's public functions do not tell; Ray Train's own watcher asks this one."""
    return ray_state.get_draining_nodes()


@contextmanager
def connected(env: Mapping[str, str]) -> Generator[Cluster]:
    """Join the cluster of `RAY_ADDRESS` or of this host, or start one on this host for as long as the block lasts.

    One that is started here asks for a token and listens on this host alone (Ray's defaults since 2.60).

    Args:
        env: Environment variables for the ranks. Ray shows them in its dashboard, so there are no secrets among them.

    Raises:
        NoCluster: If Ray can neither be joined nor started.
    """
    _refuse_silence(os.environ.get("RAY_ADDRESS", ""))
    # That a new cluster asks for a token is how it should be, and no warning.
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
    log_once("log_dedup_warning")  # Said already, so that Ray does not explain the folding of repeated lines.
    # Helpers of Ray Train look for "the" cluster of their host; where there are several it must be this one.
    here = {name: os.environ[name] for name in ("RAY_ADDRESS",) if os.environ.get(name)}
    try:
        # A cluster of our own has no dashboard: its processes would take cores from the ranks, and it is an open port.
        ray.init(
            _local_instead_of_dead(),
            runtime_env={"env_vars": {**env, **here}},
            include_dashboard=False,
            logging_level=logging.WARNING,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        address = os.environ.get("RAY_ADDRESS")
        raise NoCluster(
            f"Ray {f'at RAY_ADDRESS={address} cannot be joined' if address else 'cannot be started here'}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    try:
        yield Cluster(_started_here(), put_up())
    finally:
        ray.shutdown()


def _started_here() -> bool:
    """Whether the cluster's head was started by this process, and so goes with it."""
    return any(child.name() == "gcs_server" for child in psutil.Process().children())


def _local_instead_of_dead() -> str | None:
    """`local` where this host remembers a cluster that is gone (its head was killed); None leaves the choice to Ray.

    What it remembers is deleted, as `ray stop` would: Ray's own helpers would ask the dead one too, for minutes.
    """
    if os.environ.get("RAY_ADDRESS"):
        return None
    remembered = Path(os.environ.get("RAY_TMPDIR", "/tmp"), "ray", "ray_current_cluster")  # noqa: S108
    try:
        _knock(remembered.read_text(encoding="utf-8").strip())
    except FileNotFoundError:
        return None
    except OSError:
        with suppress(PermissionError):  # Another user's.
            remembered.unlink()
        return "local"
    return None


def _refuse_silence(address: str) -> None:
    """Ray tries an address for minutes where nobody answers."""
    try:
        _knock(address)
    except OSError as error:
        raise NoCluster(f"nobody answers at RAY_ADDRESS={address} ({error}): correct it, or unset it.") from error


def _knock(address: str) -> None:
    """Raises OSError where nobody answers; an address without a port, such as `auto`, is Ray's own."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if port.isdigit():
        socket.create_connection((host, int(port)), timeout=ANSWER_S).close()
