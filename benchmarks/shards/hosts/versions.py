"""Prints the versions of this Python and of the distributions that the command line names, as JSON."""

import json
import sys

from benchmarks.harness.machine import versions

if __name__ == "__main__":
    sys.stdout.write(json.dumps(versions(sys.argv[1:])))
