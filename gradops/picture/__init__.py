"""Pictures of a recorded run: on paper, and as a page to explore."""

from gradops.picture.plot import plot

__all__ = ["plot"]
