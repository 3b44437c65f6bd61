"""What the docstrings of all optimizers say of their arguments."""

from gradops.settings_text import arguments


def arguments_with(own: str) -> str:
    """The sections on arguments and errors of a docstring.

    Args:
        own: lines on arguments between `params` and the settings, as they are to stand.
    """
    return f"""
    Args:
        params: parameters, named parameters or groups: float32, bfloat16 and float16 on one device, of any layout.
            With float64 among them, torch's own operations run the step, in float64 for these. Frozen ones may be of
            any kind: a parameter is checked if it requires a gradient, or when its first gradient comes.
{own}{arguments()}

    Raises:
        TypeError: a keyword is of another kind.
        ValueError: a keyword is out of its range, a parameter stands twice in the groups, or `differentiable` is set.
        RuntimeError: a parameter cannot be stepped, or the backend cannot run; the message names it and says why.
"""


ARGUMENTS = arguments_with("")
