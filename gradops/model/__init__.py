"""Models before training: their initial weights, and groups for weight decay."""
