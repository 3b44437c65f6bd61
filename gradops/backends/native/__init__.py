"""Steps in native code, on CPUs and NVIDIA GPUs."""
