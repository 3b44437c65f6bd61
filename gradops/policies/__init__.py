"""What the values of settings may be that are more than a number: how a loss scale moves, what caps a step."""
