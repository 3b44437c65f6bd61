"""The processes that tests of several ranks share."""

from workers import workers  # noqa: F401
