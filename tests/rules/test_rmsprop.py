"""What RMSprop alone has: a variance that rounding may make negative."""

import torch
from beside import params_of

import gradops

PAIR = (gradops.RMSprop, torch.optim.RMSprop)


def test_a_gradient_that_stays_the_same_makes_no_nan(device):
    """The square of its average comes to be the average of its square, up to rounding to either side."""
    torch.manual_seed(0)
    grad = torch.randn(1000, device=device)
    made = [cls([torch.zeros_like(grad).requires_grad_()], centered=True, alpha=0.5, eps=1e-3) for cls in PAIR]
    for optimizer in made:
        for _ in range(60):
            for param in params_of(optimizer):
                param.grad = grad.clone()
            optimizer.step()
    (mine,), (theirs,) = map(params_of, made)
    assert theirs.isnan().any()
    assert mine.isfinite().all()
