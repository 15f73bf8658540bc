"""Measures the packages of this repository. There is a suite of measurements for each package, and a common harness.

A command appends its measurements as JSON lines to docs/benchmarks. The commands `plot` and `table` make the figures
and the tables of the docs from these lines alone (decision 27). `harness.suite` says what a suite is.
"""
