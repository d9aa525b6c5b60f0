"""One optimizer step: forward, loss and backward of each batch, clipping, and the decision to take the step.

The decision is the same on all ranks: a loss, a prediction or a gradient that is not finite anywhere leaves the weights
and the optimizer as they are, and the samples are named.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from medsam3 import distributed
from medsam3.data.batch import Batch
from medsam3.model.detector import DetectorOutput
from medsam3.training.losses import LossResult
from medsam3.training.meter import StepMeter
from medsam3.training.run import Run
from medsam3.training.schedule import set_learning_rates


@dataclass
class _Passed:
    """What is left of a batch after its backward pass."""

    result: LossResult
    finite: Tensor  # [Q] bool: the query's predictions are finite
    sample_ids: list[str]  # [Q]
    images: int


def optimizer_step(run: Run, batches: list[Batch], meter: StepMeter) -> None:
    """One optimizer step over the mean loss of `batches` on this rank, and the mean of that over ranks.

    Waits for the device once, after all work is queued. At the same time the ranks agree whether to stop:
    `run.stopped`.

    Raises:
        ValueError: trainer.max_skipped_steps steps in a row could not be taken.
    """
    run.network.train()
    set_learning_rates(run.optimizer, run.progress.step, run.total_steps, run.config.optim.schedule)
    passed = [_backward(run, batch, len(batches), last=batch is batches[-1]) for batch in batches]
    norm, norms, parts = _clip(run.optimizer, run.config.optim.clip_norm)
    finite = [norm.isfinite(), *(p.result.total.isfinite() & p.finite.all() for p in passed)]
    asked = torch.full((), -run.stop.signal, device=norm.device)  # filled there: a copy would wait
    taken, signal = distributed.least_over_ranks(torch.stack([torch.stack(finite).all().long(), asked]))
    run.stopped = -signal
    run.progress.step += 1
    run.progress.validated = False
    if taken:
        run.optimizer.step()
        if run.average is not None:
            run.average.update_parameters(run.loaded.model)
        run.progress.skipped = 0
        meter.add_gradient_norm(norm, norms, parts, run.config.optim.clip_norm)
        for p in passed:
            meter.add(p.result, images=p.images, queries=len(p.sample_ids))
    run.optimizer.zero_grad(set_to_none=True)
    if not taken:
        run.progress.skipped += 1
        meter.add_skipped()
        _say_skipped(run, passed)


def _clip(optimizer: Optimizer, limit: float) -> tuple[Tensor, Tensor, list[str]]:
    """As nn.utils.clip_grad_norm_, which has the norms of all tensors and keeps them for itself.

    Returns:
        The norm before clipping; of each tensor that has a gradient its own, and its part of the model.
    """
    given = [(p, group["part"]) for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    parameters = [parameter for parameter, _ in given]
    norms = torch.stack(torch._foreach_norm([parameter.grad for parameter in parameters]))
    norm = torch.linalg.vector_norm(norms)
    nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return norm, norms, [part for _, part in given]


def _backward(run: Run, batch: Batch, batches: int, last: bool) -> _Passed:
    batch = batch.to(run.device)
    bf16 = run.config.trainer.bf16 and run.device.type == "cuda"
    with _gradient_exchange(run.network, last):
        with torch.autocast(run.device.type, torch.bfloat16, enabled=bf16):
            output = run.network(*batch.inputs)
        result = run.criterion(output, batch.targets)
        (result.total / batches).backward()
    result.total = result.total.detach()
    return _Passed(result, finite_queries(output), batch.targets.sample_ids, images=len(batch.pixel_values))


def _gradient_exchange(network: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Average gradients over ranks only in the last backward pass of an accumulated step."""
    if last or not isinstance(network, DistributedDataParallel):
        return nullcontext()
    return network.no_sync()


def finite_queries(output: DetectorOutput) -> Tensor:
    """[Q] bool: logits, boxes, presence and semantic mask of the query are finite."""
    halves = [half for half in (output.one_to_one, output.one_to_many) if half is not None]
    values = [output.presence.T, *([] if output.semantic is None else [output.semantic])]
    values += [tensor.transpose(0, 1) for half in halves for tensor in (half.logits, half.boxes)]
    return torch.stack([value.detach().flatten(1).isfinite().all(dim=1) for value in values]).all(dim=0)


def _say_skipped(run: Run, passed: list[_Passed]) -> None:
    """Name the samples on the console and in metrics.jsonl; stop after too many steps in a row."""
    faults = [fault for rank in distributed.gather_objects([_fault(p) for p in passed]) for fault in rank if fault]
    if not faults:  # finite losses, but not their gradient, the mean over ranks: none of the samples is to blame
        ids = [sample for p in passed for sample in p.sample_ids]
        faults = [(ids, "the gradient is not finite") for ids in distributed.gather_objects(ids)]
    samples = [sample for ids, _ in faults for sample in ids]
    reasons = list(dict.fromkeys(reason for _, reason in faults))
    text = f"{'; '.join(reasons)}; samples: {', '.join(samples)}"
    run.log.record(run.progress.step, {"skipped": samples, "reasons": reasons})
    run.log.line(f"step {run.progress.step} left out: {text}")
    if run.progress.skipped >= run.config.trainer.max_skipped_steps:
        raise ValueError(
            f"{run.progress.skipped} steps in a row could not be taken (trainer.max_skipped_steps="
            f"{run.config.trainer.max_skipped_steps}); the last: {text}. The weights are those of step "
            f"{run.progress.step - run.progress.skipped}. Check these images and masks; if they are in order, training "
            "diverged: lower the learning rates (optim.lr)"
        )


def _fault(passed: _Passed) -> tuple[list[str], str] | None:
    """The samples to blame and what is wrong; None if loss and predictions of the batch are finite."""
    finite = passed.finite.tolist()
    bad = [sample for sample, fine in zip(passed.sample_ids, finite, strict=True) if not fine]
    if bad:
        return bad, "predictions are not finite"
    if passed.result.total.isfinite().item():
        return None
    terms = [name for name, value in passed.result.terms.items() if not value.isfinite().item()]
    where = ", ".join(terms) or "none of its terms, their weighted sum overflows"
    return passed.sample_ids, f"the loss is {passed.result.total.item()} ({where})"
