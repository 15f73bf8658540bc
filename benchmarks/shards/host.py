"""Starts hosts: processes that each measure one system, in the Python environment of that system.

A system is a library that reads datasets. Ours is one of them, and the others are called peers. The peers require other
versions of packages than we do, so they have a Python environment of their own (`peers.sh`). A host reads its task as
JSON from standard input, and writes its measurements as JSON to standard output (`hosts.task`). The programs
`hosts.convert` and `hosts.pictures` are started in the same way, but their task is in their arguments.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness.machine import REPOSITORY, versions

LIMIT_S = 240.0
# litdata asks a package registry for its newest version unless this variable is set.
_ENVIRONMENT = {"LITDATA_DISABLE_VERSION_CHECK": "1"}


class HostError(Exception):
    """A process that `Pythons.call` started failed or took too long; the message contains the path of the log."""


@dataclass(frozen=True, slots=True)
class Pythons:
    """Runs processes with our Python interpreter or with that of the peers, the other libraries that read datasets.

    Attributes:
        peers: The Python interpreter of the peers, which have an environment of their own. The file may be missing.
        log: The file to which the standard error of all these processes is appended.
    """

    peers: Path
    log: Path

    @classmethod
    def of(cls, peer_environment: Path, log: Path) -> "Pythons":
        """Returns the interpreters and the log, and creates the folder of the log.

        `peer_environment` is the folder of the virtual environment in which the other libraries (peers) are installed.
        The folder may be missing.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        return cls(peer_environment / "bin" / "python", log)

    @property
    def has_peers(self) -> bool:
        return self.peers.exists()

    def command(self, module: str, words: Sequence[str] = (), *, is_peer: bool) -> list[str]:
        """Returns the command that runs a module of the package `hosts` with the arguments `words`.

        If `is_peer` is true, it runs in the Python environment of the other libraries (peers), and otherwise in ours.
        """
        python = str(self.peers) if is_peer else sys.executable
        return [python, "-m", f"benchmarks.shards.hosts.{module}", *words]

    def call(self, command: Sequence[str], environment: Mapping[str, str] | None = None, *, text: str = "") -> str:
        """Runs a command to its end and returns its standard output; `text` is its standard input.

        Raises:
            HostError: If the command fails or takes longer than LIMIT_S.
        """
        with self.log.open("a") as log:
            try:
                done = subprocess.run(
                    command,
                    cwd=REPOSITORY,
                    env={**os.environ, **_ENVIRONMENT, **(environment or {})},
                    input=text,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    timeout=LIMIT_S,
                    check=True,
                )
            except subprocess.SubprocessError as error:
                raise HostError(f"{command[2]} failed ({type(error).__name__}); read {self.log}") from error
        return done.stdout


@dataclass(frozen=True, slots=True)
class System:
    """One of the readers of a dataset that are compared: our package, another library, or a decoder alone.

    Attributes:
        name: Its name in the records.
        module: Its module in `hosts`.
        format: The name of the folder with the dataset in its format: tars, mds or lit.
        packages: The distributions whose versions are recorded.
        is_peer: Whether it runs in the Python environment of the other libraries (peers).
    """

    name: str
    module: str
    format: str
    packages: tuple[str, ...]
    is_peer: bool = True


OURS = System("emocap_shards", "ours", "tars", ("torch", "numpy", "simplejpeg"), is_peer=False)
BARE = System("libjpeg-turbo alone", "bare", "tars", ("simplejpeg", "numpy"), is_peer=False)
WEB_DATASET = System("webdataset", "web_dataset", "tars", ("webdataset", "torch", "numpy", "simplejpeg"))
MOSAIC = System("mosaicml-streaming", "mosaic", "mds", ("mosaicml-streaming", "torch", "numpy", "simplejpeg"))
LIT_DATA = System("litdata", "lit_data", "lit", ("litdata", "torch", "numpy", "simplejpeg"))


def systems(pythons: Pythons) -> tuple[System, ...]:
    """Returns our package and, if their Python environment exists, the other libraries that read datasets."""
    return (OURS, WEB_DATASET, MOSAIC, LIT_DATA) if pythons.has_peers else (OURS,)


def versions_of(system: System, pythons: Pythons) -> dict[str, str | None]:
    """Returns the version of the Python that runs a library, and the versions of the library's packages there."""
    if not system.is_peer:
        return versions(system.packages)
    program = "import json; from benchmarks.harness.machine import versions; print(json.dumps(versions({})))"
    return json.loads(pythons.call([str(pythons.peers), "-c", program.format(system.packages)]))
