"""Benchmarks of gradops; performance is measured here and nowhere else."""
