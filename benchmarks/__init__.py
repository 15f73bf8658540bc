"""Measurements of this repository: a harness, and a suite of files for each package that is measured."""
