"""What a step does besides its rule: settings, state, loss scale, checkpoints, clipping, and one call of a plan."""
