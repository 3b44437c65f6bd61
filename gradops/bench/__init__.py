"""`python -m gradops bench`: the whole optimizer phase, gradops beside every native recipe, on the user's machine."""
