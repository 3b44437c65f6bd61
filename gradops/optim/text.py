"""What the docstrings of all optimizers say of their arguments."""

from gradops.settings_text import arguments

ARGUMENTS = f"""
    Args:
        params: parameters, named parameters or groups: float32, bfloat16 and float16 on one device, of any layout.
            With float64 among them, torch's own operations run the step, in float64 for these. A parameter is checked
            if it requires a gradient, or when its first one comes: whatever is frozen may stand among them.
{arguments()}

    Raises:
        TypeError: a keyword is of another kind.
        ValueError: a keyword is out of its range, a parameter stands twice in the groups, or `differentiable` is set.
        RuntimeError: a parameter cannot be stepped, or the backend cannot run; the message names it and says why.
"""
