"""Measurements: run as ``PYTHONPATH=. python benchmarks/NAME.py --out FILE``."""
