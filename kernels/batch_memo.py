"""What depends on a batch alone is made once: the layers of a model, forward and backward, share it.

tiles = memo.get((offsets, num_targets), (num_heads,), lambda: expensive(offsets, num_targets, num_heads))
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from torch import Tensor

T = TypeVar("T")


class BatchMemo(Generic[T]):
    """Remembers the last thing made, and hands it out for the very tensors it was made from while they are unchanged.

    It stays in memory until something else is made. A change that torch does not count (numpy writing into a tensor's
    memory) goes unnoticed.
    """

    def __init__(self) -> None:
        self._last: tuple[tuple[_Identity, ...], tuple[Hashable, ...], T] | None = None

    def get(self, tensors: tuple[Tensor | None, ...], values: tuple[Hashable, ...], make: Callable[[], T]) -> T:
        """Return what `make` returned for these tensors (the objects, not equal ones) and equal values."""
        last = self._last  # one reading: another thread may replace it
        if last is not None and last[1] == values and len(last[0]) == len(tensors):
            identities, _, made = last
            if all(identity.is_of(tensor) for identity, tensor in zip(identities, tensors, strict=True)):
                return made
        made = make()
        if not any(tensor is not None and tensor.is_inference() for tensor in tensors):  # these count no changes
            self._last = tuple(_Identity(tensor) for tensor in tensors), values, made
        return made


class _Identity:
    def __init__(self, tensor: Tensor | None) -> None:
        self._reference = None if tensor is None else weakref.ref(tensor)
        self._version = None if tensor is None else tensor._version

    def is_of(self, tensor: Tensor | None) -> bool:
        if tensor is None or self._reference is None:
            return tensor is None and self._reference is None
        return self._reference() is tensor and not tensor.is_inference() and tensor._version == self._version
