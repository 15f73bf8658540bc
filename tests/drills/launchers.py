"""Starts runs under launchers that need no cluster: torchrun, deepspeed over ssh, and the variables that srun sets."""

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from hosts import Process
from testbed import HOSTS, LIMIT_S, ROOT, Run, Testbed, shown

RENDEZVOUS = 29_500
SSHD = "/usr/sbin/sshd"
MODULE = ("-m", "emocap_pretrain.run")
AGAIN = ("emocap", "restart", "--")


def srun(testbed: Testbed, run: Run, *, on: Sequence[int] = (1, 2, 3), job: int = 1) -> list[Process]:
    """Starts one task on each of these hosts, with the variables that SLURM sets."""
    layout, nodes = f"1(x{len(on)})", f"node[{','.join(str(number) for number in on)}]"
    tasks: list[Process] = []
    for rank, number in enumerate(on):
        env = {
            "SLURM_JOB_ID": str(job),
            "SLURM_STEP_ID": "0",
            "SLURM_PROCID": str(rank),
            "SLURM_LOCALID": "0",
            "SLURM_NODEID": str(rank),
            "SLURM_NTASKS": str(len(on)),
            "SLURM_NNODES": str(len(on)),
            "SLURM_TASKS_PER_NODE": layout,
            "SLURM_JOB_NODELIST": nodes,
            "SLURM_STEP_NUM_TASKS": str(len(on)),
            "SLURM_STEP_NUM_NODES": str(len(on)),
            "SLURM_STEP_TASKS_PER_NODE": layout,
            "SLURM_STEP_NODELIST": nodes,
            "SLURMD_NODENAME": testbed.hosts.name(number),
            "SLURM_LAUNCH_NODE_IPADDR": testbed.hosts.address(on[0]),
        }
        tasks.append(testbed.hosts.run(number, ["python", *MODULE, str(run.config)], {**testbed.env, **env}))
    return tasks


def torchrun(testbed: Testbed, run: Run, *, on: Sequence[int] = (1, 2, 3), under: Sequence[str] = ()) -> list[Process]:
    """Starts torchrun with one rank on each of these hosts. `under` is a command that starts each torchrun."""
    agents: list[Process] = []
    for rank, number in enumerate(on):
        command = ["torchrun", "--nnodes", str(len(on)), "--node-rank", str(rank), "--nproc-per-node", "1"]
        command += ["--master-addr", testbed.hosts.name(on[0]), "--master-port", str(RENDEZVOUS)]
        agents.append(testbed.hosts.run(number, [*under, *command, *MODULE, str(run.config)], testbed.env))
    return agents


def deepspeed(testbed: Testbed, run: Run) -> Process:
    """Starts deepspeed on node1. It starts a rank on every host, including node1, through pdsh and ssh."""
    hostfile = testbed.folder / "hostfile"
    hostfile.write_text("".join(f"{testbed.hosts.name(number)} slots=1\n" for number in testbed.hosts.numbers))
    command = ["deepspeed", "--hostfile", str(hostfile), "--num_nodes", str(HOSTS), "--num_gpus", "1"]
    command += ["--master_addr", testbed.hosts.address(1), str(ROOT / "launch" / "pretrain.py"), str(run.config)]
    return testbed.hosts.run(1, command, {**testbed.env, "PDSH_RCMD_TYPE": "ssh"}, cwd=run.config.parent)


def ssh_servers(testbed: Testbed, on: Sequence[int] = (1, 2, 3)) -> None:
    """Starts an ssh server on each of these hosts, and puts an `ssh` into PATH that logs in without a question."""
    folder = testbed.folder
    for name in ("key", "host_key"):
        if not (folder / name).exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    (folder / "sshd_config").write_text(_server_config(folder, testbed.env))
    (folder / "sshd_config").chmod(0o600)
    # An end of the line without a word is noticed; by default it never is.
    (folder / "ssh_config").write_text(
        f"Host *\n  IdentityFile {folder}/key\n  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n"
        "  LogLevel ERROR\n  ServerAliveInterval 2\n  ServerAliveCountMax 5\n"
    )
    (folder / "bin").mkdir(exist_ok=True)
    wrapper = folder / "bin" / "ssh"
    wrapper.write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {folder}/ssh_config "$@"\n')
    wrapper.chmod(0o755)
    Path("/run/sshd").mkdir(exist_ok=True)
    for number in on:
        testbed.hosts.run(number, [SSHD, "-D", "-e", "-f", str(folder / "sshd_config")], testbed.env)


def _server_config(folder: Path, env: Mapping[str, str]) -> str:
    """Returns the configuration of the ssh server. It sets the environment of a session, as an administrator would."""
    given = " ".join(f'"{name}={value}"' for name, value in env.items())
    return (
        f"HostKey {folder}/host_key\nAuthorizedKeysFile {folder}/key.pub\nPermitRootLogin prohibit-password\n"
        f"StrictModes no\nUsePAM no\nPidFile none\nMaxStartups 100\nUseDNS no\nSetEnv {given}\n"
    )


def codes(processes: Sequence[Process], limit_s: float = LIMIT_S) -> list[int]:
    """Waits until all have ended and returns their exit codes.

    Raises:
        AssertionError: If a process still runs after `limit_s`. The message has the last lines of all processes.
    """
    try:
        return [process.wait(limit_s) for process in processes]
    except subprocess.TimeoutExpired as error:
        command = shlex.join(str(word) for word in error.cmd)
        raise AssertionError(f"still runs after {limit_s:g} s: {command}\n{shown(list(processes))}") from None


def succeed(processes: Sequence[Process], limit_s: float = LIMIT_S) -> None:
    ends = codes(processes, limit_s)
    assert not any(ends), f"ended with {ends}\n{shown(list(processes))}"
