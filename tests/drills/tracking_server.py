"""Runs a real MLflow server that can be killed and started again, and reads the metrics of a run from it."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

START_LIMIT_S = 120.0


class MlflowServer:
    """Runs a server at one address, with SQLite and artifacts below `folder`, while its context is open."""

    def __init__(self, folder: Path, host: str, port: int = 5000) -> None:
        self.folder = folder
        self.uri = f"http://{host}:{port}"
        self._host, self._port = host, port
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.spawn()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def spawn(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "mlflow", "server", "--host", self._host, "--port", str(self._port)]
        command += ["--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "DO_NOT_TRACK": "1"}
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)

    def wait(self) -> None:
        """Waits until the server answers."""
        assert self._process is not None, "start it first"
        deadline = time.monotonic() + START_LIMIT_S
        while not self._answers():
            text = (self.folder / "server.log").read_text()
            assert self._process.poll() is None, f"no MLflow server: {text[-2000:]}"
            assert time.monotonic() < deadline, f"no MLflow server in {START_LIMIT_S:g} s: {text[-2000:]}"
            time.sleep(0.1)

    def kill(self) -> None:
        """Kills the server and the processes that it has started, as a power cut would. The database remains."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def points(self, run_id: str, metric: str) -> list[tuple[int, float]]:
        """Returns step and value of every point; a point that was logged twice occurs twice."""
        answer = self._get("metrics/get-history", {"run_id": run_id, "metric_key": metric})
        return sorted((int(point["step"]), float(point["value"])) for point in answer.get("metrics", []))

    def run(self, run_id: str) -> dict[str, Any]:
        return self._get("runs/get", {"run_id": run_id})["run"]

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                return True
        except OSError:
            return False

    def _get(self, what: str, query: Mapping[str, str]) -> dict[str, Any]:
        url = f"{self.uri}/api/2.0/mlflow/{what}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=30) as answer:
            return json.load(answer)
