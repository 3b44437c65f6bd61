"""What can be done, each linked to its section of the guide."""

from typing import NamedTuple

GUIDE = "docs/exploding-gradients.md"


class Remedy(NamedTuple):
    """What to do, and the anchor of the guide's section that says how and why."""

    advice: str
    anchor: str

    @property
    def link(self) -> str:
        return f"{GUIDE}#{self.anchor}"


REMEDIES = {
    "lower lr": Remedy("Lower the peak learning rate (lr_max) three to ten times.", "lower-the-peak-learning-rate"),
    "cap": Remedy(
        "Cap the relative step: max_relative_step=gradops.RelativeStepCap(0.1, warmup_steps=100).",
        "cap-the-relative-step",
    ),
    "init": Remedy("Initialise for the non-linearity (Kaiming's for ReLU).", "initialise"),
    "normalise": Remedy("Normalise: the inputs, and between the layers (BatchNorm, LayerNorm).", "normalise"),
    "protect": Remedy(
        "Give wrap the model (protect=model): a skipped step then leaves running statistics as they were. Those that "
        "are spoilt come back with a checkpoint, or with reset_running_stats() and some batches in training mode.",
        "skipped-steps-and-running-statistics",
    ),
    "targets": Remedy(
        "Look at the targets and at the loss function: NaN or missing targets, classes out of range, a logarithm or "
        "root of 0, a mean over nothing.",
        "a-loss-that-alone-is-no-number",
    ),
    "scaled clipping": Remedy(
        "Leave out clip_grad_norm_ and give wrap max_norm, which clips unscaled gradients; or call optimizer.unscale_ "
        "before you clip.",
        "clipping",
    ),
    "weight decay": Remedy("Keep weights from growing with decoupled weight decay.", "weight-decay"),
    "loss scale": Remedy("Change the loss scale's policy, or take bfloat16, which needs none.", "loss-scale"),
    "clipping": Remedy("Know what a norm clip does for Adam, and what it does not.", "clipping"),
    "guard": Remedy(
        "Guard against single bad batches (guard=gradops.SpikeGuard()), and look at the batch itself.",
        "single-bad-batches",
    ),
    "dead": Remedy("Revive dead layers: smaller steps, sane biases, or a leaky non-linearity.", "dead-layers"),
    "max_norm": Remedy("Set max_norm well above the usual norm, or leave it out.", "max-norm"),
}
