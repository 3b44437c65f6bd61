"""The specification of update rules, a file a rule.

Each has `MOMENTS`, the names of a state's entries; `SCALE_FREE`, whether the size of an update does not depend on that
of the gradients; `decouples`, whether a group's weight decay is decoupled; and `update`, which gives the new weights,
in float64, and moves the moments in place.
"""
