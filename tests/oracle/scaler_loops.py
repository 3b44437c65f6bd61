"""Loops around a GradScaler, torch's or ours."""

import torch

import gradops

SCALERS = [torch.amp.GradScaler, gradops.GradScaler]

OPTIONS = {"init_scale": 1024.0, "growth_interval": 2}


def loop(scaler_cls, optimizer_cls, values, device, unscale=False, clip=None, **settings):
    """Steps with gradients of the given values; returns weights, scales and the optimizer."""
    param = torch.ones(4, device=device).requires_grad_()
    optimizer = optimizer_cls([param], lr=0.1, **settings)
    scaler, scales = scaler_cls(device.type, **OPTIONS), []
    for value in values:
        optimizer.zero_grad()
        scaler.scale((param * value).sum()).backward()
        if unscale:
            scaler.unscale_(optimizer)
            if clip:
                torch.nn.utils.clip_grad_norm_([param], clip)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return param.detach(), scales, optimizer
