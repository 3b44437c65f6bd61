"""Steps in Triton kernels."""
