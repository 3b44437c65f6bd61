"""The record of a training run: what it holds, how it is taken, and what it says."""
