"""Steps in torch's own operations, which run everywhere."""
