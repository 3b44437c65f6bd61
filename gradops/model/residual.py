"""Where a model's residual branches end, from its graph."""

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx, nn

_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
# They pass their input on, all of it or nothing.
_PASSING = (nn.Identity, nn.modules.dropout._DropoutNd)
_PASSING_NAMES = ("DropPath", "StochasticDepth")


def last_norms(model: nn.Module, norms: tuple[type[nn.Module], ...]) -> list[nn.Module]:
    """The normalisations whose outputs are added to a shortcut.

    Of two summands the branch is the one with more layers behind the point from which both come. Parts of the model
    that `torch.fx` cannot trace are looked at piece by piece.

    Args:
        model: is not run.
        norms: the classes of normalisations.
    """
    tracer = _Tracer(norms)
    try:
        graph = tracer.trace(model)
    except Exception:  # whatever the model's own code raises when it is handed no tensors
        return [norm for child in model.children() for norm in last_norms(child, norms)]
    found = []
    for node in graph.nodes:
        if node.op in ("call_function", "call_method") and node.target in _ADDITIONS:
            branch = _branch(node.all_input_nodes)
            last = branch and _behind_passing(branch, model)
            if last and last.op == "call_module" and isinstance(norm := model.get_submodule(str(last.target)), norms):
                found.append(norm)
    return found


class _Tracer(fx.Tracer):
    def __init__(self, norms: tuple[type[nn.Module], ...]) -> None:
        super().__init__()
        self.norms = norms

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self.norms) or _passes(m) or super().is_leaf_module(m, module_qualified_name)


def _passes(module: nn.Module) -> bool:
    return isinstance(module, _PASSING) or type(module).__name__ in _PASSING_NAMES


def _branch(summands: list[fx.Node]) -> fx.Node | None:
    """The summand that is a residual branch; None where the sum has no shortcut."""
    if len(summands) != 2:
        return None
    first, second = (set(_upstream(node)) for node in summands)
    if not first & second:
        return None
    sizes = [sum(node.op == "call_module" for node in own) for own in (first - second, second - first)]
    if sizes[0] == sizes[1]:
        return None
    return summands[0] if sizes[0] > sizes[1] else summands[1]


def _upstream(node: fx.Node) -> Iterator[fx.Node]:
    """The node and everything that it is computed from."""
    seen: dict[fx.Node, Any] = {}
    waiting = [node]
    while waiting:
        current = waiting.pop()
        if current not in seen:
            seen[current] = None
            waiting += current.all_input_nodes
            yield current


def _behind_passing(node: fx.Node, model: nn.Module) -> fx.Node:
    while node.op == "call_module" and _passes(model.get_submodule(str(node.target))):
        node = node.all_input_nodes[0]
    return node
