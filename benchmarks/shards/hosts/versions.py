"""Prints the versions of this Python and of the distributions that the command line names, as JSON."""

import json
import platform
import sys
from importlib.metadata import PackageNotFoundError, version


def installed(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    found = {"python": platform.python_version(), **{name: installed(name) for name in sys.argv[1:]}}
    sys.stdout.write(json.dumps(found))
