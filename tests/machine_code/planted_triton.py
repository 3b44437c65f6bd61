"""Triton kernels with planted faults, each of which one gate must catch, and one without."""

import triton
import triton.language as tl

TILE = tl.constexpr(1024)


@triton.jit
def good_kernel(table, n):
    """Adds one array to another; their addresses come from a table."""
    x = tl.multiple_of(tl.load(table).to(tl.pointer_type(tl.float32)), 16)
    y = tl.multiple_of(tl.load(table + 1).to(tl.pointer_type(tl.float32)), 16)
    for tile in range(n):
        places = tile * TILE + tl.arange(0, TILE)
        total = tl.load(x + places, eviction_policy="evict_first") + tl.load(y + places, eviction_policy="evict_first")
        tl.store(x + places, total, eviction_policy="evict_first")


@triton.jit
def scalar_kernel(table, n):
    """The same without the hint that the addresses are aligned."""
    x = tl.load(table).to(tl.pointer_type(tl.float32))
    y = tl.load(table + 1).to(tl.pointer_type(tl.float32))
    for tile in range(n):
        places = tile * TILE + tl.arange(0, TILE)
        total = tl.load(x + places, eviction_policy="evict_first") + tl.load(y + places, eviction_policy="evict_first")
        tl.store(x + places, total, eviction_policy="evict_first")


@triton.jit
def scalar_store_kernel(table, n):
    """Only what is stored is not known to be aligned."""
    x = tl.multiple_of(tl.load(table).to(tl.pointer_type(tl.float32)), 16)
    y = tl.multiple_of(tl.load(table + 1).to(tl.pointer_type(tl.float32)), 16)
    z = tl.load(table + 2).to(tl.pointer_type(tl.float32))
    for tile in range(n):
        places = tile * TILE + tl.arange(0, TILE)
        total = tl.load(x + places, eviction_policy="evict_first") + tl.load(y + places, eviction_policy="evict_first")
        tl.store(z + places, total, eviction_policy="evict_first")


@triton.jit
def spilling_kernel(table, n):
    """Keeps 256 numbers a thread from before the loop until after it."""
    x = tl.multiple_of(tl.load(table).to(tl.pointer_type(tl.float32)), 16)
    y = tl.multiple_of(tl.load(table + 1).to(tl.pointer_type(tl.float32)), 16)
    kept_at = tl.arange(0, 128 * TILE)
    kept = tl.load(x + kept_at, eviction_policy="evict_first")
    for tile in range(n):
        places = tile * TILE + tl.arange(0, TILE)
        total = tl.load(x + places, eviction_policy="evict_first") + tl.load(y + places, eviction_policy="evict_first")
        tl.store(x + places, total, eviction_policy="evict_first")
    tl.store(y + kept_at, kept, eviction_policy="evict_first")
