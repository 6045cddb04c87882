"""The item table in 8 or 4 bits, its few largest values beside it in full: what `package.item_table` can ask for.

    weights = pack(model.state_dict(), bits=4)       # what lies in weights.safetensors
    model.load_state_dict(unpack(weights, dim=50))   # float32 again

Row by row and symmetric: with the outliers taken out, scale = max |value| / limit and code = round(value / scale),
where the limit is 127 or 7. A value comes back within half a scale, an outlier exactly. A few large values would
otherwise stretch the scale of their whole row (value-aware quantization, arXiv 1804.07802); which they are is decided
over the whole table. Two codes of 4 bits share a byte, the even column's in its lower half; an odd last column has one
for itself.

This makes files and downloads smaller; at run time the table is float32 as before (docs/decisions/0016-item-tables.md).
Shapes: X items, D width, W bytes of a row (D, or half of it rounded up), O outliers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

ITEM_TABLE = "embedding.item.weight"  # its name in the weights of every model
OUTLIER_SHARE = 0.002  # of all values
_LIMITS = {8: 127, 4: 7}
_PARTS = ("codes", "scales", "outlier_places", "outlier_values")


@dataclass(frozen=True, eq=False)
class QuantizedTable:
    """A table of X rows in codes, with what they mean."""

    codes: Tensor  # (X, W): int8, or uint8 with two codes a byte
    scales: Tensor  # (X,) float32: what a code of 1 is worth
    outlier_places: Tensor  # (O,) int64, ascending: row * D + column
    outlier_values: Tensor  # (O,) float32

    @property
    def num_bytes(self) -> int:
        """What its tensors take."""
        return sum(getattr(self, part).nbytes for part in _PARTS)


def quantize(table_XD: Tensor, bits: int, *, outlier_share: float = OUTLIER_SHARE) -> QuantizedTable:
    """Return the float32 table in 8 or 4 bits; the largest `outlier_share` of its values are kept as they are.

    Raises:
        ValueError: bits is neither, or a value is not finite.
    """
    if bits not in _LIMITS or not table_XD.isfinite().all():
        raise ValueError(f"expected 8 or 4 bits and finite values, got {bits} bits")
    count = round(outlier_share * table_XD.numel())
    places = table_XD.abs().flatten().topk(count).indices.sort().values
    rest_XD = table_XD.flatten().index_fill(0, places, 0.0).view_as(table_XD)
    scales_X = (rest_XD.abs().amax(1) / _LIMITS[bits]).clamp(min=torch.finfo(torch.float32).tiny)
    codes_XD = (rest_XD / scales_X[:, None]).round().clamp(-_LIMITS[bits], _LIMITS[bits]).to(torch.int8)
    codes = codes_XD if bits == 8 else _join_nibbles(codes_XD)
    return QuantizedTable(codes, scales_X, places, table_XD.flatten()[places])


def dequantize(table: QuantizedTable, dim: int) -> Tensor:
    """Return (X, D) float32."""
    codes_XD = table.codes if table.codes.dtype == torch.int8 else _split_nibbles(table.codes, dim)
    table_XD = codes_XD.float() * table.scales[:, None]
    return table_XD.flatten().index_copy(0, table.outlier_places, table.outlier_values).view_as(table_XD)


def pack(weights: Mapping[str, Tensor], bits: int) -> dict[str, Tensor]:
    """Return a model's weights with four tensors in the item table's place."""
    table = quantize(weights[ITEM_TABLE], bits)
    rest = {name: tensor for name, tensor in weights.items() if name != ITEM_TABLE}
    return rest | {f"{ITEM_TABLE}.{part}": getattr(table, part) for part in _PARTS}


def unpack(weights: Mapping[str, Tensor], dim: int) -> dict[str, Tensor]:
    """Return the weights as a model wants them; those whose item table is not packed as they are."""
    names = [f"{ITEM_TABLE}.{part}" for part in _PARTS]
    if not all(name in weights for name in names):
        return dict(weights)
    rest = {name: tensor for name, tensor in weights.items() if name not in names}
    return rest | {ITEM_TABLE: dequantize(QuantizedTable(*(weights[name] for name in names)), dim)}


def _join_nibbles(codes_XD: Tensor) -> Tensor:
    """Return (X, W) uint8 of codes -7..7, each stored as code + 8."""
    padded_XD = torch.nn.functional.pad((codes_XD + 8).to(torch.uint8), (0, codes_XD.shape[1] % 2))
    return padded_XD[:, 0::2] | (padded_XD[:, 1::2] << 4)


def _split_nibbles(bytes_XW: Tensor, dim: int) -> Tensor:
    """Return (X, D) int8."""
    both_XW2 = torch.stack([bytes_XW & 15, bytes_XW >> 4], dim=2)
    return both_XW2.flatten(1)[:, :dim].to(torch.int8) - 8
