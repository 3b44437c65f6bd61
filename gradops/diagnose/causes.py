"""Which findings, together, mean what: the table from findings to causes and from causes to remedies."""

from dataclasses import dataclass

from gradops.diagnose.finding import Finding


@dataclass(frozen=True)
class Cause:
    """A cause is named when one of `needs` was found together with all of `with_` and none of `without`.

    Attributes:
        title: the cause, as the report states it; `{layer}`, `{name}` and `{step}` are those of the finding named
            first, the layer with the word and without it.
        remedies: keys of `REMEDIES`, the fittest first.
    """

    name: str
    title: str
    needs: tuple[str, ...]
    with_: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    remedies: tuple[str, ...] = ()

    def fits(self, kinds: set[str]) -> bool:
        return bool(kinds & set(self.needs)) and kinds >= set(self.with_) and not kinds & set(self.without)

    def source(self, findings: list[Finding]) -> Finding:
        """The finding that the cause stands on: the first of `needs` that was found."""
        return next(finding for kind in self.needs for finding in findings if finding.kind == kind)


# What each of these found comes before an explosion, not from it.
BEGINNINGS = (
    "odd batch",
    "bad targets",
    "bad loss",
    "nonfinite start",
    "large init",
    "small init",
    "unnormalised depth",
    "scaled clipping",
)
HARM = ("explosion", "loss explosion", "dead layer", "worse loss", "nonfinite activation", "nonfinite gradient")

# In the order in which they are to be believed: the report names the first as the cause, the others as further ones.
CAUSES = (
    Cause(
        "bad loss",
        "The loss function or the targets: the loss is no number from the first step on",
        ("bad loss",),
        remedies=("targets",),
    ),
    Cause(
        "bad start",
        "Inf or NaN in {layer} at the first step",
        ("nonfinite start",),
        without=("odd batch", "bad loss"),
        remedies=("normalise", "init"),
    ),
    Cause(
        "scaled clipping",
        "Gradients are clipped while they still carry the loss scale",
        ("scaled clipping",),
        remedies=("scaled clipping",),
    ),
    Cause("corrupt batch", "A corrupt batch at step {step}", ("odd batch",), remedies=("guard", "normalise")),
    Cause(
        "bad loss",
        "Bad targets, or a loss function that fails on them, at step {step}",
        ("bad targets",),
        without=("odd batch", "bad loss"),
        remedies=("targets",),
    ),
    Cause(
        "corrupt batch",
        "A single bad batch at step {step}",
        ("single spike", "odd loss"),
        without=("large steps", "dead layer", "worse loss", "explosion", *BEGINNINGS),
        remedies=("guard",),
    ),
    Cause(
        "bad init", "A bad initialisation: {layer} begins too large", ("large init",), remedies=("init", "normalise")
    ),
    Cause("bad init", "A bad initialisation: gradients fade", ("small init",), remedies=("init", "normalise")),
    Cause(
        "no normalisation",
        "Missing normalisation: outputs grow from layer to layer",
        ("unnormalised depth",),
        remedies=("normalise", "init", "lower lr"),
    ),
    Cause(
        "float16 overflow",
        "float16 overflow in {layer}",
        ("float16 overflow",),
        without=("explosion", "odd batch", *BEGINNINGS),
        remedies=("normalise", "loss scale", "weight decay"),
    ),
    Cause(
        "high lr",
        "A learning rate too high: steps too large beside the weights",
        HARM,
        with_=("large steps",),
        without=BEGINNINGS,
        remedies=("lower lr", "cap", "normalise", "clipping"),
    ),
    Cause(
        "dead layer",
        "A dead layer: {name}",
        ("dead layer",),
        without=("large steps", "explosion", *BEGINNINGS),
        remedies=("dead", "init"),
    ),
    Cause(
        "scale at floor",
        "The loss scale's floor is too high for these gradients",
        ("scale at floor",),
        without=("float16 overflow", "explosion", *BEGINNINGS),
        remedies=("loss scale",),
    ),
)
# Trouble that no cause explains is still trouble.
UNKNOWN = Cause("unknown", "Trouble, whose cause the record does not show", HARM, remedies=("lower lr", "cap", "guard"))
NOTES = {
    "spoilt statistics": ("protect",),
    "large steps": ("lower lr", "cap"),
    "clipping binds": ("max_norm", "clipping"),
    "large inputs": ("normalise",),
    "weight growth": ("weight decay",),
    "scale at floor": ("loss scale",),
    "dead layer": ("dead",),
    "clipped before": ("scaled clipping",),
}
