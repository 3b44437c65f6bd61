"""What a tensor must be to be stepped: csrc/checks.cpp for the backends in Python."""

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def check_tensor(tensor: Tensor, device: torch.device, role: str, name: str) -> None:
    """Refuses what no kernel can read.

    Args:
        tensor: parameter, gradient or moment.
        device: where it must be.
        role: what it is, for the message.
        name: of the parameter that it belongs to.

    Raises:
        RuntimeError: the tensor is sparse, a subclass, a lazy view, elsewhere, of another dtype or without memory.
    """
    of = f"gradops: {role} of '{name}'"
    if tensor.layout != torch.strided:
        raise RuntimeError(f"{of} is {_word(tensor.layout)}; only dense (strided) tensors are supported")
    if _is_lazy(tensor):
        raise RuntimeError(f"{of} is a tensor subclass or a lazy view; only plain tensors are supported")
    if tensor.device != device:
        raise RuntimeError(f"{of} is on {tensor.device}; expected {device}")
    if tensor.dtype not in DTYPES:
        raise RuntimeError(f"{of} is {_word(tensor.dtype)}; expected {', '.join(map(_word, DTYPES))}")
    if tensor.numel() and tensor.untyped_storage().data_ptr() == 0:
        raise RuntimeError(f"{of} has no memory; its storage was freed")


def check_like(tensor: Tensor, param: Tensor, role: str, name: str) -> None:
    """Also refuses a tensor of another shape than its parameter's."""
    check_tensor(tensor, param.device, role, name)
    if tensor.shape != param.shape:
        shapes = f"{list(tensor.shape)}, its parameter {list(param.shape)}"
        raise RuntimeError(f"gradops: {role} of '{name}' has shape {shapes}")


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
