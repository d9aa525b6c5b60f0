"""MaskCrops: target masks on their way to the device, as the bits of the window that holds each.

322 nuclei of an image take 0.05 MB instead of 327, so they fit through the queue of the data loader and through pinned
memory. The device paints them: whole [N, h, w] masks are there only while a loss looks at them.

Shapes: N masks of h x w px, B bytes of all windows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from medsam3.layouts.instances import Mask


@dataclass
class MaskCrops:
    """N masks of `size` (h, w)."""

    size: tuple[int, int]
    windows: Tensor  # [N, 4] int32: first row, first byte of a row (8 px), rows, bytes per row
    bits: Tensor  # [B] uint8: the windows one behind the other, row by row, the leftmost pixel the highest bit

    @classmethod
    def packed(cls, pieces: Iterable[tuple[int, int, Mask]], size: tuple[int, int]) -> MaskCrops:
        """Of each mask a piece that holds all of it, with the row and the column where the piece begins."""
        windows, rows_of_bytes = [], []
        for row, column, piece in pieces:
            left, before = divmod(column, 8)
            aligned = np.zeros((piece.shape[0], before + piece.shape[1]), bool)
            aligned[:, before:] = piece
            rows = np.packbits(aligned, axis=1)
            windows.append((row, left, *rows.shape))
            rows_of_bytes.append(rows.reshape(-1))
        bits = np.concatenate([*rows_of_bytes, np.empty(0, np.uint8)])
        return cls(size, torch.tensor(windows, dtype=torch.int32).reshape(-1, 4), torch.from_numpy(bits))

    @classmethod
    def together(cls, parts: Sequence[MaskCrops]) -> MaskCrops:
        """All masks of several sets of one size; at least one set."""
        return cls(parts[0].size, torch.cat([part.windows for part in parts]), torch.cat([part.bits for part in parts]))

    def __len__(self) -> int:
        return len(self.windows)

    def paint(self) -> Tensor:
        """[N, h, w] bool, on the device of the crops, for which the host does not wait."""
        device, (height, width) = self.bits.device, self.size
        row_bytes = -(-width // 8)
        top, left, rows, columns = self.windows.long().unbind(1)
        lengths = rows * columns
        owner = torch.repeat_interleave(lengths, output_size=len(self.bits))  # of each byte its mask
        within = torch.arange(len(self.bits), device=device) - (lengths.cumsum(0) - lengths)[owner]
        row, column = top[owner] + within // columns[owner], left[owner] + within % columns[owner]
        canvas = torch.zeros(len(self) * height * row_bytes, dtype=torch.uint8, device=device)
        canvas[(owner * height + row) * row_bytes + column] = self.bits
        pixels = canvas[:, None] >> torch.arange(7, -1, -1, dtype=torch.uint8, device=device)
        pixels &= 1
        return pixels.view(torch.bool).view(len(self), height, 8 * row_bytes)[..., :width]
