"""Measures the packages of this repository: a harness, and a suite of measurements for each package."""
