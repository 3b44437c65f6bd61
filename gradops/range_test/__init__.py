"""The learning-rate range test: what trains and puts everything back, the curve it leaves, and its picture."""
