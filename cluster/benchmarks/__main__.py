"""Forecasts of large jobs, and measurements of starts, restarts and saves: `python cluster/benchmarks`."""

import sys

from cluster_bench.command import main

if __name__ == "__main__":
    sys.exit(main())
