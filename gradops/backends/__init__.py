"""What carries out a step: native code, Triton, torch's own operations, or these over shards."""
