"""Tests the hosts of the drills: whatever a drill assumes about them."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hosts import PREFIX, Hosts, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "there can be hosts")

ENV = {"PATH": os.environ["PATH"]}
LIMIT_S = 20.0
ECHO = """
import socket
server = socket.create_server(("", 5000))
print("listening", flush=True)
line, _ = server.accept()
while data := line.recv(100):
    line.sendall(data)
"""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with Hosts(2, tmp_path_factory.mktemp("hosts")) as running:
        yield running


def said(hosts: Hosts, number: int, script: str) -> str:
    process = hosts.run(number, ["bash", "-c", script], ENV)
    assert process.wait(LIMIT_S) == 0, process.text
    return process.text.strip()


def test_hosts_have_names_and_find_each_other_by_them(hosts: Hosts) -> None:
    assert said(hosts, 2, "hostname") == "node2"
    assert said(hosts, 2, "getent hosts node1 outside").split() == [hosts.address(1), "node1", hosts.outside, "outside"]


def test_a_host_sees_its_own_processes_and_tmp_and_the_folder_of_all(hosts: Hosts, tmp_path: Path) -> None:
    (hosts.folder / "note").write_text("for all")
    assert said(hosts, 1, f"touch /tmp/mine; ls -d /tmp/mine; cat {hosts.folder}/note") == "/tmp/mine\nfor all"
    assert said(hosts, 2, "ls /tmp/mine 2>/dev/null || echo nothing") == "nothing"
    assert not Path("/tmp/mine").exists()
    assert int(said(hosts, 1, "ls -d /proc/[0-9]* | wc -l")) < 10


def test_a_signal_reaches_the_program_and_not_only_the_way_into_the_host(hosts: Hosts) -> None:
    script = "trap 'echo asked; exit 3' TERM; echo ready; while :; do sleep 0.05; done"
    process = hosts.run(1, ["bash", "-c", script], ENV)
    until(lambda: "ready" in process.text)
    process.send(signal.SIGTERM)
    assert process.wait(LIMIT_S) == 3
    assert "asked" in process.text


def test_a_cut_network_link_gives_no_error_and_loses_nothing_once_it_is_restored(hosts: Hosts) -> None:
    server = hosts.run(1, [sys.executable, "-c", ECHO], ENV)
    until(lambda: "listening" in server.text)
    with closing(socket.create_connection((hosts.address(1), 5000), timeout=1)) as line:
        line.sendall(b"before")
        assert line.recv(100) == b"before"
        hosts.cut(1)
        line.sendall(b"during")
        with pytest.raises(TimeoutError):
            line.recv(100)
        hosts.heal(1)
        line.settimeout(LIMIT_S)
        assert line.recv(100) == b"during"
    server.wait(LIMIT_S)


def test_power_off_ends_all_processes_silently_and_deletes_tmp(hosts: Hosts) -> None:
    server = hosts.run(2, [sys.executable, "-c", ECHO], ENV)
    said(hosts, 2, "touch /tmp/lost")
    until(lambda: "listening" in server.text)
    with closing(socket.create_connection((hosts.address(2), 5000), timeout=0.3)) as line:
        hosts.power_off(2)
        with pytest.raises(TimeoutError):  # A process that is merely killed would reset the line.
            line.recv(100)
    assert server.wait(LIMIT_S) != 0
    hosts.power_on(2)
    assert said(hosts, 2, "ls /tmp/lost 2>/dev/null || echo nothing") == "nothing"


def test_the_outside_network_survives_a_power_cut_of_another_host(hosts: Hosts) -> None:
    with socket.create_server((hosts.outside, 0)) as server:
        place = (hosts.outside, server.getsockname()[1])
        for number in hosts.numbers:
            other = 3 - number
            assert tried(hosts, other, *place) == "connected"
            hosts.power_off(number)
            assert tried(hosts, other, *place) == "connected"
            hosts.power_on(number)


def test_a_host_is_found_at_once_when_it_is_back(hosts: Hosts) -> None:
    for _ in range(2):
        assert tried(hosts, 1, hosts.address(2), 5001) == "ConnectionRefusedError"
        hosts.power_off(2)
        hosts.power_on(2)
    assert tried(hosts, 1, hosts.address(2), 5001) == "ConnectionRefusedError"


def test_leftovers_of_a_killed_owner_are_removed_by_the_next_one(hosts: Hosts, tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from hosts import Hosts\n"
        "with Hosts(1, Path(sys.argv[1])) as hosts:\n"
        "    hosts.run(1, ['sleep', '50'], {})\n"
        "    print(hosts.outside.split('.')[2], flush=True)\n"
        "    time.sleep(50)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    folder = Path(__file__).parent
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**ENV, "PYTHONPATH": str(folder)}) as owner:
        assert owner.stdout is not None
        net = int(owner.stdout.readline())
        bridge = Path(f"/sys/class/net/{PREFIX}{net}")
        assert bridge.exists()
        owner.kill()
    (tmp_path / "next").mkdir()
    with Hosts(1, tmp_path / "next") as after:
        assert after.outside != hosts.outside
        assert bridge.exists() == (after.outside.split(".")[2] == str(net))
    assert not bridge.exists()
    assert said(hosts, 1, "hostname") == "node1"


def tried(hosts: Hosts, number: int, address: str, port: int) -> str:
    """Returns the outcome of a connection from a host within a second."""
    script = (
        "import sys, socket\n"
        "try: socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1)\n"
        "except OSError as error: print(type(error).__name__)\n"
        "else: print('connected')"
    )
    process = hosts.run(number, [sys.executable, "-c", script, address, str(port)], ENV)
    assert process.wait(LIMIT_S) == 0, process.text
    return process.text.strip()


def until(ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not ready():
        assert time.monotonic() < deadline
        time.sleep(0.02)
