"""Compiling the native code: `gradops build` into the user's cache, and setup.py into a wheel or a working tree."""
