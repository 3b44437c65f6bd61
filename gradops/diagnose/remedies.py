"""What can be done, each with its section of the guide."""

from typing import NamedTuple


class Remedy(NamedTuple):
    """What to do, and the guide's section that says how and why: its anchor, its heading, and what it says in short."""

    advice: str
    anchor: str
    heading: str
    why: str

    @property
    def command(self) -> str:
        """Shows the section."""
        return f"python -m gradops guide {self.anchor}"


REMEDIES = {
    "lower lr": Remedy(
        "Lower the peak learning rate (lr_max) three to ten times.",
        "lower-the-peak-learning-rate",
        "Lower the peak learning rate",
        "A spike some eighty steps in often is the top of the schedule: fit_one_cycle reaches lr_max after a "
        "quarter of its steps, OneCycleLR after three tenths. If the spike moves when the run's length does, it "
        "is the rate and not the data. gradops.lr_find(model, optimizer, loss_fn, loader) suggests a careful "
        "rate.",
    ),
    "cap": Remedy(
        "Cap the relative step: max_relative_step=gradops.RelativeStepCap(0.1, warmup_steps=100).",
        "cap-the-relative-step",
        "Cap the relative step",
        "An Adam update has about the same size whatever the gradient's, so that a norm clip does not bound it. "
        "What explodes first is the step beside the weight. The cap bounds each tensor's learning rate by the "
        "size of its weights. It does not replace a good rate.",
    ),
    "init": Remedy(
        "Initialise for the non-linearity (Kaiming's for ReLU).",
        "initialise",
        "Initialise",
        "Kaiming's initialisation keeps the size of activations through ReLU layers. gradops.init_cnn_(model) "
        "also lets each residual block begin as its shortcut.",
    ),
    "normalise": Remedy(
        "Normalise: the inputs, and between the layers (BatchNorm, LayerNorm).",
        "normalise",
        "Normalise",
        "Behind BatchNorm the weights' size does not matter, so that layers cannot blow each other up. It does "
        "not bound the step and does not protect layers that have none. With a few images a batch, take "
        "GroupNorm.",
    ),
    "protect": Remedy(
        "Give wrap the model (protect=model): a skipped step then leaves running statistics as they were. Those "
        "that are spoilt come back with a checkpoint, or with reset_running_stats() and some batches in training "
        "mode.",
        "skipped-steps-and-running-statistics",
        "Skipped steps and running statistics",
        "A skipped step leaves weights, moments and counters. The forward pass of its batch has by then written "
        "running_mean and running_var. protect=model puts them back.",
    ),
    "targets": Remedy(
        "Look at the targets and at the loss function: NaN or missing targets, classes out of range, a logarithm "
        "or root of 0, a mean over nothing.",
        "a-loss-that-alone-is-no-number",
        "A loss that alone is no number",
        "The network's outputs were finite and the loss was not, so that no learning rate makes or cures it: look"
        " at targets and loss function.",
    ),
    "scaled clipping": Remedy(
        "Leave out clip_grad_norm_ and give wrap max_norm, which clips unscaled gradients; or call "
        "optimizer.unscale_ before you clip.",
        "clipping",
        "Clipping",
        "A clip before unscaling compares max_norm with a norm that carries the loss scale, and leaves gradients "
        "that are much too small. The step's own max_norm comes after unscaling.",
    ),
    "weight decay": Remedy(
        "Keep weights from growing with decoupled weight decay.",
        "weight-decay",
        "Weight decay",
        "Decoupled decay keeps weights from growing without bound. It is no cure for a rate that is too high: "
        "against smaller weights the same step is larger.",
    ),
    "loss scale": Remedy(
        "Change the loss scale's policy, or take bfloat16, which needs none.",
        "loss-scale",
        "Loss scale",
        "A dynamic scale doubles until something overflows, skips that step and halves: a skip now and then is "
        "its normal work, skips one after another are not. If activations themselves overflow 65,504 no loss "
        "scale helps; bfloat16 does.",
    ),
    "clipping": Remedy(
        "Know what a norm clip does for Adam, and what it does not.",
        "clipping",
        "Clipping",
        "Adam divides by the gradient's size, so that a norm clip bounds its second moment and not its step. By "
        "norm the gradient keeps its direction, by value it turns.",
    ),
    "guard": Remedy(
        "Guard against single bad batches (guard=gradops.SpikeGuard()), and look at the batch itself.",
        "single-bad-batches",
        "Single bad batches",
        "One huge norm between usual ones is a corrupt batch. The guard compares each norm with the run's own "
        "usual one, clips or skips the step, and lowers the learning rate for a while. Look at the data first.",
    ),
    "dead": Remedy(
        "Revive dead layers: smaller steps, sane biases, or a leaky non-linearity.",
        "dead-layers",
        "Dead layers",
        "A unit that is negative for every input has no gradient and stays so. Go back to a checkpoint from "
        "before the spike with a lower peak or a cap, or begin again with an initialisation that fits.",
    ),
    "max_norm": Remedy(
        "Set max_norm well above the usual norm, or leave it out.",
        "max-norm",
        "Max norm",
        "A clip that binds in nearly every step has made the gradient's length irrelevant. Look at the norms of a"
        " run without one, and set max_norm to some three times the usual norm.",
    ),
}

# In their place for optimizers whose updates have the size of the gradient, as SGD's have.
BY_GRADIENT = {
    "cap": Remedy(
        "Cap the relative step: max_relative_step=gradops.RelativeStepCap(0.01, warmup_steps=100).",
        "cap-the-relative-step",
        "Cap the relative step",
        "The update is the rate times the gradient, and momentum adds up ten of them and more. The cap bounds each "
        "tensor's learning rate by the size of its weights over that of its gradient. It does not replace a good rate.",
    ),
    "clipping": Remedy(
        "Clip by norm (max_norm), which bounds the step; a rate that is too high still is.",
        "clipping",
        "Clipping",
        "A step is no longer than the rate times max_norm, before momentum adds up ten of them and more. By norm the "
        "gradient keeps its direction, by value it turns.",
    ),
}


def remedies_for(by_gradient: bool) -> dict[str, Remedy]:
    """The remedies for an optimizer, by whether its updates have the size of the gradient."""
    return REMEDIES | BY_GRADIENT if by_gradient else REMEDIES
