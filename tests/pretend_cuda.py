"""Tensors that compute on the CPU and claim to lie on a GPU: they have values, unlike fake ones.

Code whose control flow reads values can so be run as on CUDA: operands on two devices are refused
as a GPU refuses them, and what is computed must equal the result on the CPU.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
CUDA = torch.device("cuda", 0)
MOVES = (aten._to_copy, aten.copy_)
INDEXED = (aten.index, aten.index_put_, aten.index_put, aten._index_put_impl_)
"""Their masks and indices may lie on the CPU."""


class Pretender(Tensor):
    """A tensor of the CPU, ``held``, that claims to be on CUDA."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Pretender":
        x = Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=CUDA
        )
        x.held = held
        return x

    def __repr__(self) -> str:  # tensor_contents would recurse
        return f"Pretender({self.held!r})"

    def tolist(self) -> list[Any]:  # which PyTorch does not dispatch
        return self.held.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class PretendCuda(TorchDispatchMode):
    """Create tensors with device="cuda" as pretenders inside the block."""

    _mode_key = torch._C._TorchDispatchModeKey.FAKE  # with it PyTorch does not initialise CUDA

    def __init__(self) -> None:
        super().__init__()
        if not torch.cuda.is_available():
            torch._C._ensureCUDADeviceGuardSet()  # as FakeTensorMode does

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Compute on the CPU; the result claims the device that CUDA would give it."""
    tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    device = kwargs.get("device")
    is_cuda = any(isinstance(x, Pretender) for x in tensors)
    if func.overloadpacket in (*MOVES, *INDEXED):
        is_cuda = isinstance(args[0], Pretender)
        if not is_cuda and func.overloadpacket in INDEXED:
            _refuse(func, [x for x in tensors if isinstance(x, Pretender)])
    elif is_cuda:
        _refuse(func, [x for x in tensors if not isinstance(x, Pretender) and x.ndim > 0])
    if device is not None:
        is_cuda = torch.device(device).type == "cuda"
        kwargs = kwargs | {"device": torch.device("cpu")}
    args, kwargs = tree_map(_held, (args, kwargs))
    result = func(*args, **kwargs)
    known = {id(_held(x)): x for x in tensors}
    wrap = Pretender if is_cuda else lambda x: x
    return tree_map(
        lambda x: known.get(id(x), wrap(x)) if isinstance(x, Tensor) else x, result
    )  # in-place operations return their operand


def _held(x: Any) -> Any:
    if isinstance(x, Pretender):
        return x.held
    return torch.device("cpu") if isinstance(x, torch.device) else x


def _refuse(func: Any, others: list[Tensor]) -> None:
    if others:
        raise RuntimeError(f"{func}: Expected all tensors to be on the same device")
