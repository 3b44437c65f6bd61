"""The specification of update rules, a file a rule.

Each has `MOMENTS`, the names of a state's entries, and `update`, which gives the new weights, in float64, and moves the
moments in place.
"""
