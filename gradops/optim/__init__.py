"""The optimizers, and `wrap`, which makes them of torch's own in place."""

from gradops.optim.adagrad import Adagrad
from gradops.optim.adam import Adam, AdamW
from gradops.optim.adamax import Adamax
from gradops.optim.lars import LARS
from gradops.optim.lion import Lion
from gradops.optim.nadam import NAdam
from gradops.optim.radam import RAdam
from gradops.optim.rmsprop import RMSprop
from gradops.optim.sgd import SGD
from gradops.optim.wrap import unwrap, wrap

__all__ = ["LARS", "SGD", "Adagrad", "Adam", "AdamW", "Adamax", "Lion", "NAdam", "RAdam", "RMSprop", "unwrap", "wrap"]
