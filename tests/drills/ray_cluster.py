"""Runs Ray on several hosts: a raylet on each, the head on node1, and jobs that are submitted from outside."""

import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from hosts import Process
from launchers import MODULE
from testbed import BIN, LIMIT_S, Run, Testbed, until

HEAD, PORT, DASHBOARD = 1, 6379, 8265
# A node that is gone is noticed within about 8 s instead of half a minute; less, and a busy machine loses live ones.
# `ray job stop` gives the ranks a minute to save, instead of 3 s.
NODE = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_JOB_STOP_WAIT_TIME_S": "60",
}
RANK = "ray::RayTrainWorker"  # What Ray calls the process of a rank.


@dataclass(frozen=True, slots=True)
class Job:
    """Holds a `ray job submit`, which waits for its job and prints the job's output, as a user sees it."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, limit_s: float = LIMIT_S) -> int:
        """Waits until the command ends, and returns its exit code.

        Raises:
            AssertionError: If it takes longer than `limit_s`. The message has the output so far.
        """
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs after {limit_s:g} s:\n{self.text[-6000:]}") from None

    def succeed(self, limit_s: float = LIMIT_S) -> str:
        code = self.wait(limit_s)
        assert code == 0, f"{self.name} ended with {code}:\n{self.text[-6000:]}"
        return self.text

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(LIMIT_S)


@dataclass(slots=True)
class RayCluster:
    """Runs Ray on the hosts of the testbed: one cluster, in which each host has one CPU."""

    testbed: Testbed
    raylets: dict[int, Process] = field(default_factory=dict[int, Process])
    jobs: list[Job] = field(default_factory=list[Job])

    @property
    def env(self) -> dict[str, str]:
        return {**self.testbed.env, **NODE}

    @property
    def dashboard(self) -> str:
        return f"http://{self.testbed.hosts.address(HEAD)}:{DASHBOARD}"

    def up(self) -> None:
        """Switches all hosts on and makes them members of the cluster, unless they are already."""
        self.join(HEAD)
        until("dashboard", lambda: self._get("/api/version"), hint=lambda: self.raylets[HEAD].text)
        for number in self.testbed.hosts.numbers:
            self.join(number)
        everyone = len(self.testbed.hosts.numbers)
        until("cluster of all hosts", lambda: len(self.nodes()) == everyone, hint=lambda: str(self.nodes()))

    def join(self, number: int) -> None:
        hosts = self.testbed.hosts
        if not hosts.is_on(number):
            hosts.power_on(number)
        elif number in self.raylets and self.raylets[number].entry.poll() is None:
            return
        command = ["ray", "start", "--block", "--node-ip-address", hosts.address(number), "--num-cpus", "1"]
        command += ["--object-store-memory", "100000000", "--disable-usage-stats"]
        if number == HEAD:
            command += ["--head", "--port", str(PORT)]
            command += ["--dashboard-host", hosts.address(HEAD), "--dashboard-port", str(DASHBOARD)]
        else:
            command += ["--address", f"{hosts.address(HEAD)}:{PORT}"]
        self.raylets[number] = hosts.run(number, command, self.env)

    def submit(self, run: Run, *, under: Sequence[str] = ()) -> Job:
        """Submits a run with `ray job submit`; `under` is a command that wraps it."""
        name = f"{run.name}-{len(self.jobs)}"
        log = self.testbed.folder / f"job-{name}.log"
        command = [*under, "ray", "job", "submit", "--address", self.dashboard, "--submission-id", name, "--"]
        command += [str(BIN / "python"), *MODULE, str(run.config)]
        with log.open("wb") as out:
            process = subprocess.Popen(command, env=self._outside(), stdout=out, stderr=out, start_new_session=True)
        self.jobs.append(Job(name, process, log))
        return self.jobs[-1]

    def stop(self, job: Job) -> None:
        """Stops a job with `ray job stop`."""
        command = ["ray", "job", "stop", "--address", self.dashboard, job.name]
        subprocess.run(command, env=self._outside(), check=True, capture_output=True, timeout=LIMIT_S)

    def drain(self, number: int, *, deadline_s: int) -> None:
        """Announces the loss of a host, as a cloud does for a spot machine."""
        hosts = self.testbed.hosts
        command = ["ray", "drain-node", "--address", f"{hosts.address(HEAD)}:{PORT}"]
        command += ["--node-id", self.nodes()[hosts.address(number)], "--reason", "DRAIN_NODE_REASON_PREEMPTION"]
        command += ["--reason-message", "drill", "--deadline-remaining-seconds", str(deadline_s)]
        done = hosts.run(HEAD, command, self.env)
        assert done.wait(LIMIT_S) == 0, done.text

    def nodes(self) -> dict[str, str]:
        """Returns the addresses and ids of the nodes that are alive."""
        answer = self._get("/api/v0/nodes")
        rows = answer["data"]["result"]["result"] if answer else []
        return {row["node_ip"]: row["node_id"] for row in rows if row["state"] == "ALIVE"}

    def rank_on(self, number: int) -> psutil.Process:
        found = self.testbed.hosts.processes(number, RANK)
        assert len(found) == 1, f"{len(found)} ranks on {self.testbed.hosts.name(number)}"
        return found[0]

    def kill_raylet(self, number: int) -> None:
        for process in self.testbed.hosts.processes(number, "raylet/raylet"):
            process.kill()
        self.raylets[number].wait(LIMIT_S)

    def down(self) -> None:
        for job in self.jobs:
            job.kill()
        self.testbed.empty()

    def _outside(self) -> dict[str, str]:
        return {**self.env, "HOME": str(self.testbed.folder)}

    def _get(self, path: str) -> dict[str, Any] | None:
        headers = {"Authorization": f"Bearer {self.env['RAY_AUTH_TOKEN']}"}
        request = urllib.request.Request(self.dashboard + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return dict(json.load(answer))
        except OSError:
            return None


@contextmanager
def ray_cluster(testbed: Testbed) -> Generator[RayCluster]:
    cluster = RayCluster(testbed)
    try:
        cluster.up()
        yield cluster
    finally:
        cluster.down()
