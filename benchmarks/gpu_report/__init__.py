"""The GPU kit: everything that is to be known of a GPU, taken by one command in six stages; see docs/gpu.md."""
