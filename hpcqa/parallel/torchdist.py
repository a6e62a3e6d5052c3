"""The only user of torch.distributed beside the checkpoints: collectives by name, wrapping and sharding of models.

`World` is this process among its peers. With one process every operation is the identity and nothing is initialised.
All ranks must call the same operations in the same order; what steers control flow goes through `any_of`.

FSDP is imported where it is used: it brings half of a job's start-up along (2 of 4 s), and only training shards.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from hpcqa.errors import ConfigError, DataError, EnvironmentProblem, HpcqaError
from hpcqa.parallel.ranks import Ranks

T = TypeVar("T")
LAST_COLLECTIVE_S = 0.1
TIMEOUT = dt.timedelta(minutes=15)


class World:
    """This process among its peers, and the device that it computes on."""

    def __init__(self, ranks: Ranks, device: torch.device) -> None:
        self.rank, self.size, self.device = ranks.rank, ranks.world_size, device

    def alone(self) -> World:
        """This process without its peers."""
        return World(Ranks(), self.device)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, *tensors: Tensor) -> list[Tensor]:
        """Each tensor's sum over ranks, without gradients: one collective for all of them."""
        return self._reduced(tensors, dist.ReduceOp.SUM)

    def max(self, *tensors: Tensor) -> list[Tensor]:
        """Each tensor's largest values over ranks, without gradients: one collective for all of them."""
        return self._reduced(tensors, dist.ReduceOp.MAX)

    def _reduced(self, tensors: Sequence[Tensor], how: Any) -> list[Tensor]:
        if self.size == 1 or not tensors:
            return list(tensors)
        flat = torch.cat([x.detach().reshape(-1) for x in tensors])
        dist.all_reduce(flat, how)
        pieces = flat.split_with_sizes([x.numel() for x in tensors])
        return [piece.view(x.shape) for piece, x in zip(pieces, tensors, strict=True)]

    def gather(
        self, tensors: Sequence[Tensor], lengths: Sequence[Sequence[int]]
    ) -> Callable[[], list[tuple[Tensor, int]]]:
        """For each tensor (B, ...), every rank's rows (sum of B, ...) and where this rank's begin; without gradients.

        One collective for all of them, under way until its answer is called for.

        Args:
            lengths: B of every rank, for each tensor; the same on all ranks.
        """
        if self.size == 1 or not tensors:
            return lambda: [(x, 0) for x in tensors]
        padded = [
            torch.cat([x.detach(), x.new_zeros(max(own) - len(x), *x.shape[1:])])
            for x, own in zip(tensors, lengths, strict=True)
        ]
        flat = torch.cat([x.reshape(-1) for x in padded])
        pieces = [torch.empty_like(flat) for _ in range(self.size)]
        work = dist.all_gather(pieces, flat, async_op=True)

        def answer() -> list[tuple[Tensor, int]]:
            work.wait()
            of_each = zip(*(piece.split_with_sizes([x.numel() for x in padded]) for piece in pieces), strict=True)
            found = []
            for x, own, ranks in zip(padded, lengths, of_each, strict=True):
                rows = torch.cat([piece.view(x.shape)[:length] for piece, length in zip(ranks, own, strict=True)])
                found.append((rows, sum(own[: self.rank])))
            return found

        return answer

    def any_of(self, flags: Sequence[bool]) -> Callable[[], list[bool]]:
        """For each flag, whether it is set on any rank: one collective, under way until its answer is called for."""
        if self.size == 1:
            return lambda: list(flags)
        values = torch.tensor([int(flag) for flag in flags], device=self.device)
        work = dist.all_reduce(values, dist.ReduceOp.MAX, async_op=True)

        def answer() -> list[bool]:
            work.wait()
            return [bool(value) for value in values.tolist()]

        return answer

    def share(self, value: Any) -> Any:
        """The first rank's object on every rank (small ones: decisions, paths)."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, device=self.device)
        return box[0]

    def on_first(self, work: Callable[[], T]) -> T:
        """What some work of the first rank gives, on every rank; if it fails, it fails on all instead of on one."""
        if self.size == 1:
            return work()
        outcome: tuple[T | None, HpcqaError | None] = (None, None)
        if self.is_first:
            try:
                outcome = (work(), None)
            except HpcqaError as error:
                outcome = (None, error)
        found, problem = self.share(outcome)
        if problem is not None:
            raise problem
        result: T = found
        return result

    def on_each(self, work: Callable[[], T]) -> T:
        """What some work of every rank gives it; if it fails on one, it fails on all."""
        try:
            found, problem = work(), None
        except DataError as error:
            problem = error
        words = self.said(str(problem or ""))
        if words:
            raise problem or DataError(words)
        return found

    def said(self, words: str) -> str:
        """The words of the lowest rank that has any, on every rank; empty if none has."""
        if self.size == 1:
            return words
        by_rank: list[str] = [""] * self.size
        dist.all_gather_object(by_rank, words)
        return next(filter(None, by_rank), "")

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def replicate(self, module: nn.Module) -> nn.Module:
        """The module with gradients averaged over ranks (DDP)."""
        if self.size == 1:
            return module
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices, gradient_as_bucket_view=True)

    def shard(self, module: nn.Module, units: Iterable[nn.Module], *, bf16: bool, methods: Sequence[str] = ()) -> None:
        """Spread parameters, gradients and what an optimizer keeps of them over the ranks (FSDP2), in place.

        Each unit is gathered for its own computation and let go after it; the rest of the module is one more unit.

        Args:
            bf16: gather and compute in bfloat16; the shards, and the sums of gradients, stay float32.
            methods: names of methods of the module that compute, beside forward.
        """
        if self.size == 1:
            return
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

        # Nothing is changed in place that a module returned.
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
        # What flows between the units stays as autocast left it: only parameters are cast.
        low = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if bf16 else {}
        settings: dict[str, Any] = {"mp_policy": MixedPrecisionPolicy(**low, cast_forward_inputs=False)}
        settings["mesh"] = init_device_mesh(self.device.type, (self.size,))
        for unit in units:
            fully_shard(unit, **settings)
        # Also the module itself is let go after its forward: a teacher has no backward that would do it.
        fully_shard(module, reshard_after_forward=True, **settings)
        for method in methods:
            register_fsdp_forward_method(module, method)

    def without_sync(self, module: nn.Module) -> contextlib.AbstractContextManager[Any]:
        """Gradients stay on their rank inside (all but the last piece of an accumulated step).

        Sharded modules reduce every piece all the same: whole gradients would not fit beside what is sharded.
        """
        if isinstance(module, DistributedDataParallel):
            return module.no_sync()
        return contextlib.nullcontext()


def local(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The parts of tensors that this rank holds: of sharded ones its shard, of others all."""
    from torch.distributed.tensor import DTensor

    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def is_sharded(module: nn.Module) -> bool:
    from torch.distributed.fsdp import FSDPModule

    return isinstance(module, FSDPModule)


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sharded tensors gathered on every rank, one after the other; all ranks call this together."""
    from torch.distributed.tensor import DTensor

    return {name: x.full_tensor() if isinstance(x, DTensor) else x for name, x in tensors.items()}


def clipped(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale gradients down so that the norm of all of them, over all shards, is at most `limit`; the norm before."""
    from torch.distributed.tensor import DTensor

    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = nn.utils.get_total_norm(gradients, foreach=True)
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    # Local shards: a whole norm and a sharded gradient do not multiply.
    torch._foreach_mul_(local(gradients), (limit / (norm + 1e-6)).clamp(max=1.0))
    return norm


def pick_device(wanted: str, local_rank: int) -> torch.device:
    """The device of a rank: the only one that it can see, or the one with its local rank.

    Raises:
        ConfigError: cuda is asked for and there is none.
        EnvironmentProblem: fewer devices than local ranks.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("device=cuda: torch sees no CUDA device here; take device=cpu or another node.")
    visible = torch.cuda.device_count()
    if visible > 1 and local_rank >= visible:
        raise EnvironmentProblem(
            f"local rank {local_rank} of a node that shows {visible} CUDA devices: start at most one rank a device."
        )
    return torch.device("cuda", local_rank if visible > 1 else 0)


def set_threads(local_world_size: int) -> int:
    """Give this rank its share of the cores it may use; returns how many. More would spin against each other."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, min(torch.get_num_threads(), cores // local_world_size))
    torch.set_num_threads(threads)
    return threads


@contextlib.contextmanager
def joined(ranks: Ranks, device: torch.device) -> Iterator[World]:
    """The world while the block runs; left at its end.

    Raises:
        EnvironmentProblem: the launcher gave no address to meet at, or the ranks did not meet.
    """
    world = World(ranks, device)
    if ranks.world_size == 1:
        yield world
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            rank=ranks.rank,
            world_size=ranks.world_size,
            timeout=TIMEOUT,
        )
    except (ValueError, RuntimeError) as error:
        raise EnvironmentProblem(
            f"rank {ranks.rank} of {ranks.world_size} could not join the others ({error}); "
            "start with torchrun, or set MASTER_ADDR and MASTER_PORT to one free port of the first node."
        ) from None
    try:
        yield world
    finally:
        _let_go_of_last_collective(device)
        dist.destroy_process_group()


def _let_go_of_last_collective(device: torch.device) -> None:
    """Let gloo's threads finish with the tensors of the last collective before their group is taken down.

    Seen with torch 2.13 (2026-11): the destructor of the group holds the GIL and waits for the group's lock, which a
    thread of gloo holds while it frees its last work and waits for the GIL: a job hangs at its end, for good. A moment
    without the GIL, while nothing else is under way, ends that thread's part.
    """
    if device.type == "cpu":
        time.sleep(LAST_COLLECTIVE_S)
