"""Runs a real MLflow server on loopback that can be killed and started again."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Self

START_LIMIT_S = 120.0


class MlflowServer:
    """Runs `mlflow server` on SQLite in `folder`, with the same port at every start, while its context is open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            # The kernel gives ports above 32,768 to clients, so no client takes this port during a restart.
            self.port = 22_000 + probe.getsockname()[1] % 10_000
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        places = ["--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}"]
        places += ["--artifacts-destination", str(self.folder / "artifacts")]
        listens = ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        with (self.folder / "mlflow.log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(Path(sys.executable).with_name("mlflow")), "server", *places, *listens],
                env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_LIMIT_S
        while not self.answers():
            assert self._process.poll() is None, (self.folder / "mlflow.log").read_text()[-2000:]
            assert time.monotonic() < deadline, "mlflow server did not come up"
            time.sleep(0.2)

    def kill(self) -> None:
        """Kills all processes of the server with SIGKILL."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False
