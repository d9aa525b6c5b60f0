"""Averaged weights: an exponential moving average of the weights over the steps."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


def averaged_weights(model: nn.Module, decay: float, device: torch.device) -> AveragedModel:
    """A copy of the model whose weights follow, at `update_parameters`, by decay * average + (1 - decay) * weights.

    The decay rises with the updates n as (1 + n) / (10 + n), so that a short run's average is not its beginning.
    """

    def follow(averages: Sequence[Tensor], weights: Sequence[Tensor], _: Tensor | int) -> None:
        done = float(result.n_averaged)  # lies on the host: nothing waits
        torch._foreach_lerp_(list(averages), list(weights), 1 - min(decay, (1 + done) / (10 + done)))

    result = AveragedModel(model, multi_avg_fn=follow)
    result.requires_grad_(False)
    result.module.to(device)
    return result


def gigabytes(model: nn.Module) -> float:
    return sum(parameter.nbytes for parameter in model.parameters()) / 1e9
