"""Numbers as people read them."""


def duration(seconds: float) -> str:
    """In s, ms, µs or ns, whichever gives one to three digits before the point."""
    for name, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {name}"
    return f"{seconds * 1e9:.3g} ns"


def memory(count: float) -> str:
    """Bytes in GiB, MiB, KiB or B."""
    for name, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.3g} {name}"
    return f"{count:.0f} B"
