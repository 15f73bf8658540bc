"""Makes a Python environment of its own for a program whose packages do not fit beside those of this project.

The environment lies in the cache folder of the user (`~/.cache/emocap/environments`, or in `$XDG_CACHE_HOME`). Its name
contains a digest of the packages and of the version of Python, so another list of packages is another environment. It
is made once, under a lock, and gets its name only when it is complete.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from emocap_shards.local_files import UnsafePath, locked, make_own_folder, open_own
from emocap_shards.mask import masked

from emocap_pretrain.errors import ConfigError

_LOCK_WAIT_S = 1800.0  # Another process may be installing the same packages.
_LAST_CHARACTERS = 300  # Of what a failed installation printed.


@dataclass(frozen=True, slots=True)
class IsolatedEnvironment:
    """Describes an environment: its name, the file with its packages, and the versions of Python that these run on.

    Attributes:
        name: First part of the name of its folder.
        packages: A file of requirements. Each names one version; the dependencies of a package are not followed.
        newest_python: The newest minor version of Python 3 for which the packages exist.
    """

    name: str
    packages: Path
    newest_python: int

    def digest(self) -> str:
        """Returns a digest of the packages with their versions, and of the version of Python."""
        return hashlib.sha256(self.packages.read_bytes() + sys.version.encode()).hexdigest()

    def folder(self) -> Path:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return cache / "emocap" / "environments" / f"{self.name}-{self.digest()[:16]}"

    def python(self, say: Callable[[str], object]) -> Path:
        """Returns the Python of the environment, which is made first if there is none.

        Args:
            say: Called with one sentence before an environment is made, because this takes about a minute.

        Raises:
            ConfigError: If the packages do not exist for this version of Python, cannot be installed, or if the folder
                is not safe or cannot be written.
        """
        folder = self.folder()
        interpreter = folder / "bin" / "python"
        if interpreter.exists():
            return interpreter
        if sys.version_info >= (3, self.newest_python + 1):
            cure = f"use Python 3.{self.newest_python} for this command"
            raise ConfigError(f"{self.packages.name} has no packages for Python {sys.version.split()[0]}: {cure}.")
        try:
            make_own_folder(folder.parent)
            lock = open_own(folder.parent / f"{self.name}.lock", os.O_RDWR | os.O_CREAT)
            try:
                if not locked(lock, wait_s=_LOCK_WAIT_S):
                    raise ConfigError(
                        f"{folder.parent} is locked by another process that makes an environment: end it."
                    )
                if not interpreter.exists():
                    say(f"Making an environment for {self.name} in {folder} (once; about 400 MB are installed).")
                    self._make(folder)
            finally:
                os.close(lock)
        except (OSError, UnsafePath) as error:
            raise ConfigError(
                f"no environment can be made in {folder.parent} ({error}): set XDG_CACHE_HOME."
            ) from error
        return interpreter

    def _make(self, folder: Path) -> None:
        unfinished = folder.with_name(f"{folder.name}.unfinished")
        if unfinished.exists():  # A process was killed.
            shutil.rmtree(unfinished)
        python = str(unfinished / "bin" / "python")
        install = [python, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary", ":all:"]
        try:
            _run([sys.executable, "-m", "venv", str(unfinished)], "is the Debian package python3-venv missing?")
            _run([*install, "--requirement", str(self.packages)], "PyPI or a mirror of it must be reachable")
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        unfinished.rename(folder)


def _run(command: Sequence[str], cure: str) -> None:
    done = subprocess.run(
        command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    if done.returncode:
        said = " ".join(masked(done.stderr or done.stdout).split())[-_LAST_CHARACTERS:]
        raise ConfigError(f"{Path(command[0]).name} {' '.join(command[1:3])} failed ({said}): {cure}.")
