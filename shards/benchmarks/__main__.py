"""Measures how samples are read beside other data loaders: `python shards/benchmarks`."""

import sys

from data_bench.command import main

if __name__ == "__main__":
    sys.exit(main())
