"""`python -m docs.figures [NAME ...]`: draws all pictures or those named, and notes what was measured in facts.json."""

import json
import pathlib
import sys

import torch

from docs.figures import (
    activations,
    bad_batch,
    batch_size,
    batchnorm,
    clipping,
    exploded,
    half_precision,
    initialisation,
    lr_find,
    weight_decay,
)

FOLDER = pathlib.Path(__file__).parent
FACTS = FOLDER / "facts.json"
FIGURES = {
    "activations": activations.draw,
    "bad-batch": bad_batch.draw,
    "batch-size": batch_size.draw,
    "batchnorm": batchnorm.draw,
    "clipping": clipping.draw,
    "exploded": exploded.draw,
    "half-precision": half_precision.draw,
    "init": initialisation.draw,
    "lr-find": lr_find.draw,
    "weight-decay": weight_decay.draw,
}


def main(names: list[str]) -> None:
    """Draws the pictures of these names, all of them for none."""
    facts = json.loads(FACTS.read_text()) if FACTS.exists() else {}
    for name in names or FIGURES:
        torch.manual_seed(0)
        facts[name] = FIGURES[name](FOLDER / f"{name}.png")
        FACTS.write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
        print(name, json.dumps(facts[name]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
