"""Which findings, together, mean what: the table from findings to causes and from causes to remedies."""

from dataclasses import dataclass

from gradops.diagnose.finding import Finding


@dataclass(frozen=True)
class Cause:
    """A cause is named when one of `needs` was found together with all of `with_` and none of `without`.

    Attributes:
        title: the cause, as the report states it; `{layer}` and `{step}` are those of the finding named first.
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
BEGINNINGS = ("odd batch", "large init", "small init", "unnormalised depth")
HARM = ("explosion", "dead layer", "worse loss", "nonfinite activation", "nonfinite gradient")

# In the order in which they are to be believed: the report names the first as the cause, the others as further ones.
CAUSES = (
    Cause("corrupt batch", "A corrupt batch at step {step}", ("odd batch",), remedies=("guard", "normalise")),
    Cause(
        "corrupt batch",
        "A single bad batch at step {step}",
        ("single spike", "odd loss"),
        without=("large steps", "dead layer", *BEGINNINGS),
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
        "A dead layer: {layer}",
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
    "large steps": ("lower lr", "cap"),
    "clipping binds": ("max_norm", "clipping"),
    "large inputs": ("normalise",),
    "weight growth": ("weight decay",),
    "scale at floor": ("loss scale",),
    "dead layer": ("dead",),
}
