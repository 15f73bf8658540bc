"""Makes several hosts on one Linux machine, each with its own network, processes, mounts, shared memory and name.

    with Hosts(3, folder) as hosts:
        hosts.run(1, ["hostname"], env).wait()
        hosts.cut(2)                                    # all packets are lost, so no connection is reset
        hosts.power_off(3)                              # its processes end at once, and its /tmp is lost

The hosts `node1`, `node2`, ... have the addresses 10.231.N.1, 10.231.N.2, ... on a bridge. N is a number that is free
on this machine. The process that made the hosts has the address 10.231.N.254 and is called `outside`. All hosts see the
file system of this machine, except for /tmp: each host has an empty /tmp of its own, which is lost when the host is
switched off. All hosts see `folder` at the same path. They cannot reach the internet.

The hosts end with this process, also if it is killed. After a kill the bridge can remain; the next `Hosts` removes it.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import psutil

PREFIX = "emodrill"
CHECKOUT = Path(__file__).parents[2]  # Below /tmp it would be hidden by the hosts' own.
OUTSIDE = 254
READY_LIMIT_S = 20.0
NAMESPACES = ("--net", "--pid", "--fork", "--mount", "--uts", "--ipc", "--mount-proc", "--kill-child")
# Bash, because the first process of a host must take in the orphans; it ends when our end of its input closes.
INIT = r"""
set -eu
hostname "$NAME"
exec 3<"$SHARED" 4<"$CHECKOUT"
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /tmp
mkdir -p "$SHARED" "$CHECKOUT"
mount --no-canonicalize --bind /proc/self/fd/3 "$SHARED"
mount --no-canonicalize --bind /proc/self/fd/4 "$CHECKOUT"
exec 3<&- 4<&-
mount --bind "$SHARED/hosts" /etc/hosts
mount --bind /dev/null /etc/resolv.conf
echo up
read -r _
"""


def missing() -> str:
    """Returns why there can be no hosts here, or ""."""
    if os.geteuid() != 0:
        return "hosts need root"
    programs = [name for name in ("ip", "unshare", "nsenter", "mount", "bash") if shutil.which(name) is None]
    if programs:
        return f"hosts need {' '.join(programs)} (apt-get install iproute2 util-linux)"
    tried = subprocess.run(["unshare", *NAMESPACES, "true"], check=False, capture_output=True, text=True)
    return "" if tried.returncode == 0 else f"hosts need namespaces: {tried.stderr.strip()}"


@dataclass(frozen=True, slots=True)
class Process:
    """Holds a command that runs on a host. Its output is in `log`. `entry` is the process that entered the host; the
    program is a child of it."""

    entry: subprocess.Popen[bytes]
    log: Path

    def wait(self, limit_s: float) -> int:
        return self.entry.wait(limit_s)

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def send(self, number: int) -> None:
        """Sends a signal to the program. If the program has ended, nothing happens."""
        with suppress(psutil.NoSuchProcess):
            for program in psutil.Process(self.entry.pid).children():
                program.send_signal(number)


class Hosts:
    """Makes the hosts when its context is entered, and removes them at its end. Hosts are numbered from 1."""

    def __init__(self, count: int, folder: Path) -> None:
        self.folder = folder
        self.numbers = range(1, count + 1)
        self._net = -1
        self._on: dict[int, subprocess.Popen[bytes]] = {}
        self._entries: dict[int, list[subprocess.Popen[bytes]]] = {number: [] for number in self.numbers}
        self._started = 0

    def __enter__(self) -> Self:
        _remove_leftovers()
        self._net = _claimed()
        names = [f"{self.address(number)} {self.name(number)}" for number in self.numbers]
        names += [f"{self.outside} outside", "127.0.0.1 localhost"]
        (self.folder / "hosts").write_text("\n".join(names) + "\n")
        try:
            # By itself a bridge has the hardware address of one of its lines, and another when that is gone.
            own = f"link set {self._bridge} address {_hardware(OUTSIDE)}"
            _ip(own, f"address add {self.outside}/24 dev {self._bridge}", f"link set {self._bridge} up")
            for number in self.numbers:
                self.power_on(number)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for number in list(self._on):
            self.power_off(number)
        _ip(f"link delete {self._bridge}")

    def name(self, number: int) -> str:
        return f"node{number}"

    def address(self, number: int) -> str:
        return f"10.231.{self._net}.{number}"

    @property
    def outside(self) -> str:
        """Returns the address at which the hosts reach servers of this process."""
        return self.address(OUTSIDE)

    def power_on(self, number: int) -> None:
        """Switches on a host that is off. Its /tmp is empty."""
        env = {
            "PATH": os.environ["PATH"],
            "NAME": self.name(number),
            "SHARED": str(self.folder),
            "CHECKOUT": str(CHECKOUT),
        }
        command = ["unshare", *NAMESPACES, "bash", "-c", INIT]
        with (self.folder / f"{self.name(number)}.log").open("ab") as log:
            process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
        self._on[number] = process
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n", f"{self.name(number)} did not start"
        line, init = self._line(number), self._init(number)
        _ip(
            # The same as before a power cut: others remember it.
            f"link add {line} type veth peer name eth0 address {_hardware(number)} netns {init}",
            f"link set {line} master {self._bridge}",
            f"link set {line} up",
        )
        inside = ("link set lo up", f"address add {self.address(number)}/24 dev eth0", "link set eth0 up")
        _ip(*inside, within=("nsenter", f"--target={init}", "--net"))

    def power_off(self, number: int) -> None:
        """Switches a host off. Its network is cut before its processes are killed, so other hosts get no reset."""
        process = self._on.pop(number)
        self.cut(number)
        with suppress(ProcessLookupError, IndexError):
            os.kill(_child(process.pid), signal.SIGKILL)
        process.wait(READY_LIMIT_S)
        for entry in self._entries[number]:
            entry.wait(READY_LIMIT_S)
        self._entries[number].clear()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
        _ip(f"link delete {self._line(number)}", may_fail=True)  # The kernel may have been quicker.

    def cut(self, number: int) -> None:
        _ip(f"link set {self._line(number)} down", may_fail=number not in self._on)

    def heal(self, number: int) -> None:
        _ip(f"link set {self._line(number)} up")

    def run(self, number: int, command: Sequence[str], env: Mapping[str, str], *, cwd: Path | None = None) -> Process:
        """Starts a command on a host with exactly this environment."""
        self._started += 1
        log = self.folder / f"{self.name(number)}-{self._started:03d}.log"
        enter = ["nsenter", f"--target={self._init(number)}", "--all", f"--wdns={cwd or self.folder}", "--"]
        with log.open("wb") as out:
            entry = subprocess.Popen(
                [*enter, *command], env=dict(env), stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
            )
        self._entries[number].append(entry)
        return Process(entry, log)

    def processes(self, number: int, words: str = "") -> list[psutil.Process]:
        """Returns a host's processes, oldest first. With `words`, only those with these words in their command line."""
        place = Path(f"/proc/{self._init(number)}/ns/pid").readlink()
        found: list[psutil.Process] = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if Path(f"/proc/{process.pid}/ns/pid").readlink() == place and words in " ".join(process.cmdline()):
                    found.append(process)
        return sorted(found, key=lambda each: each.create_time())

    def is_on(self, number: int) -> bool:
        return number in self._on

    @property
    def _bridge(self) -> str:
        return f"{PREFIX}{self._net}"

    def _line(self, number: int) -> str:
        return f"{PREFIX}{self._net}-{number}"

    def _init(self, number: int) -> int:
        return _child(self._on[number].pid)


def _hardware(number: int) -> str:
    return f"02:00:00:00:00:{number:02x}"


def _child(pid: int) -> int:
    return psutil.Process(pid).children()[0].pid


def _claimed() -> int:
    """Makes a bridge with a number that is free, and returns the number. The system lets only one process make it."""
    for net in range(1, 255):
        name = f"{PREFIX}{net}"
        if _ip(f"link add {name} type bridge", may_fail=True):
            _ip(f"link set {name} alias {os.getpid()}")
            return net
    raise RuntimeError(f"all bridges {PREFIX}1 to {PREFIX}254 exist; remove some with `ip link delete`.")


def _remove_leftovers() -> None:
    """Deletes the bridges of killed processes: their hosts end with them, but network links may outlast them."""
    for bridge in Path("/sys/class/net").glob(f"{PREFIX}*/bridge"):
        alias = (bridge.parent / "ifalias").read_text().strip()
        if alias and not psutil.pid_exists(int(alias)):
            for line in [*bridge.parent.glob("brif/*"), bridge.parent]:
                _ip(f"link delete {line.name}", may_fail=True)


def _ip(*lines: str, within: Sequence[str] = (), may_fail: bool = False) -> bool:
    """Runs `ip` commands in one batch; returns whether all succeeded."""
    done = subprocess.run(
        [*within, "ip", "-batch", "-"], check=False, input="\n".join(lines) + "\n", capture_output=True, text=True
    )
    if done.returncode and not may_fail:
        raise RuntimeError(f"ip could not {'; '.join(lines)}: {done.stderr.strip()}")
    return done.returncode == 0
