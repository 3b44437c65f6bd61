"""What a tensor must be to be stepped: csrc/host/checks.cpp for the backends in Python."""

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_WAYS_OUT = {
    **dict.fromkeys(("master", "compensation", "ema"), "; delete this entry of its state, so that it is made anew"),
    "grad": "",
}
_WAY_OUT_OF_MOMENTS = "; give it the parameter's shape, or clear this parameter's state"


def takes_part(param: Tensor) -> bool:
    """Whether a parameter is to be trained, or has a gradient all the same."""
    return param.requires_grad or param.grad is not None


def check_tensor(
    tensor: Tensor, device: torch.device, role: str, name: str, dtypes: tuple[torch.dtype, ...] = DTYPES
) -> None:
    """Refuses what no kernel can read.

    Args:
        tensor: parameter, gradient or moment.
        device: where it must be.
        role: what it is, for the message.
        name: of the parameter that it belongs to.
        dtypes: those that can be read.

    Raises:
        RuntimeError: the tensor is sparse, a subclass, a lazy view, elsewhere, of another dtype or without memory.
    """
    of = f"gradops: {role} of '{name}'"
    if tensor.layout != torch.strided:
        raise RuntimeError(f"{of} is {_word(tensor.layout)}; only dense (strided) tensors are supported")
    if _is_lazy(tensor):
        raise RuntimeError(f"{of} is a tensor subclass or a lazy view; only plain tensors are supported")
    if tensor.is_meta and role == "parameter":
        raise RuntimeError(f"{of} is on meta; wrap after materialising it")
    if tensor.device != device:
        raise RuntimeError(f"{of} is on {tensor.device}; expected {device}")
    if tensor.dtype not in dtypes:
        raise RuntimeError(f"{of} is {_word(tensor.dtype)}; expected {', '.join(map(_word, dtypes))}")
    if tensor.numel() and tensor.untyped_storage().data_ptr() == 0:
        raise RuntimeError(f"{of} has no memory; its storage was freed")


def check_like(tensor: Tensor, param: Tensor, role: str, name: str) -> None:
    """Also refuses a tensor of another shape than its parameter's, and float64 beside other parameters than such."""
    dtypes = (*DTYPES, torch.float64) if param.dtype == torch.float64 else DTYPES
    check_tensor(tensor, param.device, role, name, dtypes)
    if tensor.shape != param.shape:
        shapes = f"{list(tensor.shape)}, its parameter {list(param.shape)}"
        raise RuntimeError(f"gradops: {role} of '{name}' has shape {shapes}{_WAYS_OUT.get(role, _WAY_OUT_OF_MOMENTS)}")


def check_writable(tensor: Tensor, role: str, name: str) -> None:
    """Refuses what cannot be written element by element."""
    sizes_and_strides = zip(tensor.shape, tensor.stride(), strict=True)
    if tensor.numel() and any(size > 1 and stride == 0 for size, stride in sizes_and_strides):
        raise RuntimeError(
            f"gradops: {role} of '{name}' has elements that share memory (an expanded tensor?); clone it first"
        )
    if tensor.is_inference():
        raise RuntimeError(
            f"gradops: {role} of '{name}' is an inference tensor, which cannot be updated; clone it outside inference "
            "mode"
        )


def _is_lazy(tensor: Tensor) -> bool:
    """Whether the tensor's memory is not, or not simply, the values that it stands for."""
    keys = torch._C._dispatch_keys(tensor)
    return keys.has(torch._C.DispatchKey.Python) or tensor.is_neg() or tensor.is_conj() or tensor._is_zerotensor()


def _word(value: object) -> str:
    return str(value).removeprefix("torch.")
