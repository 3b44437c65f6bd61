"""The optimizers, and `wrap`, which makes them of torch's own in place."""

from gradops.optim.adam import Adam, AdamW
from gradops.optim.sgd import SGD
from gradops.optim.wrap import unwrap, wrap

__all__ = ["SGD", "Adam", "AdamW", "unwrap", "wrap"]
