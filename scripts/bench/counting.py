"""Operations of a network and the bytes that they move, counted without computing them."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
PRODUCTS = (aten.convolution, aten.mm, aten.bmm, aten.addmm, aten.baddbmm,
            aten.scaled_dot_product_attention, aten._scaled_dot_product_flash_attention,
            aten._scaled_dot_product_efficient_attention)  # fmt: skip
ALLOCATIONS = (aten.empty, aten._unsafe_view, aten.detach)  # they move nothing


class Traffic(TorchDispatchMode):
    """Count operations and the bytes that they read and write, those of products apart.

    Every operation reads its inputs from memory and writes its outputs; views move nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace != "aten":  # a question for the device
            return func(*args, **kwargs)
        if func.overloadpacket not in PRODUCTS:  # attention is one, which stores no scores
            with self:  # inference mode does not decompose operations, and some of them are views
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if not func.is_view and func.overloadpacket not in ALLOCATIONS:
            kind = "products" if func.overloadpacket in PRODUCTS else "others"
            tensors = [x for x in tree_leaves((args, result)) if isinstance(x, Tensor)]
            self.operations[kind] += 1
            self.bytes[kind] += sum(x.numel() * x.element_size() for x in tensors)
        return result
