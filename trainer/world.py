"""The processes of a run, as torchrun starts them: one on a GPU each, or several on the CPU (gloo).

Every process computes the loss over the whole batch from gathered features, and the gradient of its own features
alone; summing the parameters' gradients over the processes gives the gradient of one process with the whole batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

__all__ = ["World"]


@dataclass(frozen=True)
class World:
    """This process among all. rank: 0..size - 1; device: where its model is."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def join(cls, device: str = "auto") -> World:
        """The world that torchrun's environment describes, else this process alone."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        local = int(os.environ.get("LOCAL_RANK", "0"))
        if device == "auto":
            device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
        where = torch.device(device)
        if size > 1:
            if where.type == "cuda":
                torch.cuda.set_device(where)
            dist.init_process_group("nccl" if where.type == "cuda" else "gloo", timeout=timedelta(minutes=30))
        return cls(int(os.environ.get("RANK", "0")), size, where)

    def leave(self) -> None:
        """Ends the group, where there is one."""
        if self.size > 1:
            dist.destroy_process_group()

    def share(self, batch: list[int]) -> list[int]:
        """This process's part of a batch; together the parts are the batch, in order."""
        low, high = (len(batch) * rank // self.size for rank in (self.rank, self.rank + 1))
        return batch[low:high]

    def gather(self, values: Tensor) -> Tensor:
        """[n, ...] of each process one after the other; the own part keeps its gradient, the others have none."""
        if self.size == 1:
            return values
        counts = [torch.zeros(1, dtype=torch.long, device=values.device) for _ in range(self.size)]
        dist.all_gather(counts, torch.tensor([len(values)], device=values.device))
        sizes = [int(count) for count in counts]
        padded = values.new_zeros(max(sizes), *values.shape[1:])
        padded[: len(values)] = values.detach()
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        cut = [part[:size] for part, size in zip(parts, sizes, strict=True)]
        return torch.cat([*cut[: self.rank], values, *cut[self.rank + 1 :]])

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Adds up what each process found."""
        if self.size == 1:
            return
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([parameter.grad.flatten() for parameter in trained])  # type: ignore[union-attr]
        dist.all_reduce(flat)
        for parameter, part in zip(trained, flat.split([p.numel() for p in trained]), strict=True):
            parameter.grad = part.view_as(parameter)

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        if self.size == 1:
            return flag
        votes = torch.tensor([int(flag)], device=self.device)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return bool(votes.item())
