"""Update rules in torch's own operations, a file a rule.

Each has `coefs`, which makes what an update needs of a group's hyper-parameters, derived in the wide dtype and then
rounded, and `update`, which gives the new weights and moments.
"""

import importlib
from typing import Any

from gradops.update_rule import UpdateRule


def load(rule: UpdateRule) -> Any:
    """The rule's module."""
    return importlib.import_module(f"{__name__}.{rule.name}")
