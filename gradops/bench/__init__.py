"""`python -m gradops bench`: the whole optimizer phase, gradops beside torch's recipes, on the user's machine."""
