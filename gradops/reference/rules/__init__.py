"""The specification of update rules, a file a rule.

Each has `MOMENTS`, the names of a state's entries; `SCALE_FREE`, whether the size of no update depends on that of the
gradients (where that of some does, `adapts` says of which it does not); `decouples`, whether a group's weight decay is
decoupled; and `update`, which gives the new weights, in float64, and moves the moments in place. A rule may have
`SCALARS`: by its name the value before the first update of an entry that is one float32; `update` finds and moves it
among the moments. Moments begin at 0, or where `start(name, group)` says. One that scales gradients by norms has
`grad_factor`, too: of a group, its rate, and the norms of weights and clipped gradient, what the regularised gradient
is multiplied by.
"""
