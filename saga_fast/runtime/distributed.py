"""The processes of a run: one per GPU, started by torchrun. In a single process every function here does nothing.

Each process holds the same network and random state. What differs is which images a process takes: in training its
part of every batch, also in that of a linear probe; in the attention pass and in evaluation every world_size-th batch,
whole. Collectives on CPU tensors go through gloo, those on GPU tensors through NCCL.
"""

from __future__ import annotations

import inspect
import json
import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from saga_fast.errors import SagaError

T = TypeVar("T")
TIMEOUT = timedelta(minutes=30)
"""How long a process waits for another one: rank 0 writes files, and ranks with more or larger images take longer."""


def launched() -> bool:
    """Whether torchrun, or a launcher that sets the same variables, started several processes."""
    return _variable("WORLD_SIZE", 1) > 1


def launched_rank() -> int:
    """This process's number, from 0, as the launcher set it: before the processes have met, and after."""
    return _variable("RANK", 0)


def local_rank() -> int:
    """This process's number on its machine, from 0."""
    return _variable("LOCAL_RANK", 0)


def _variable(name: str, default: int) -> int:
    """A number that the launcher sets.

    Raises:
        SagaError: not a number, or a negative one.
    """
    text = os.environ.get(name, str(default))
    if not (text.isascii() and text.isdigit()):
        raise SagaError(f"the environment has {name}={text!r}: unset it, or start the processes with torchrun")
    return int(text)


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def is_main() -> bool:
    """Whether this process writes files and prints: rank 0."""
    return rank() == 0


@contextmanager
def session() -> Iterator[None]:
    """Join the other processes, if there are any, for the length of the block.

    Raises:
        SagaError: variables of the launcher are missing, or another process ended or cannot be reached.
    """
    if not launched():
        yield
        return
    for name, limit in (("RANK", 2**31), ("LOCAL_RANK", 2**31), ("MASTER_PORT", 2**16)):
        if _variable(name, 0) >= limit:
            raise SagaError(f"the environment has {name}={os.environ[name]}, which must be below {limit}: use torchrun")
    if launched_rank() >= _variable("WORLD_SIZE", 1):
        raise SagaError(f"RANK={launched_rank()} must be below WORLD_SIZE={_variable('WORLD_SIZE', 1)}: use torchrun")
    try:
        store, number, count = next(rendezvous("env://", timeout=TIMEOUT))
        store = PrefixStore(_name_of_attempt(store, number, count), store)
        dist.init_process_group(_backend(), timeout=TIMEOUT, store=store, rank=number, world_size=count)
        yield
        barrier()
        dist.destroy_process_group()
    except ValueError as error:
        if isinstance(error, SagaError) or "environment variable" not in str(error):
            raise
        raise SagaError(f"cannot join the other processes: {error}; start them with torchrun") from error
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        reason = str(error).splitlines()[0]
        raise SagaError(f"another process of the run ended, or cannot be reached: {reason}") from error


def _name_of_attempt(store: Store, number: int, count: int) -> str:
    """A name that these processes share and no earlier processes have used.

    After a restart torchrun's store still holds the addresses of dead processes, and a process that reads one of them
    waits for ever. Restart counts do not help: they differ between machines. So rank 0 answers with a new name and the
    names that it has read from each rank, until every rank has found its name in the answer.
    """
    local_name = uuid.uuid4().hex
    deadline = time.monotonic() + TIMEOUT.total_seconds()
    store.set(f"hello/{number}", local_name)
    workers = range(1, count)
    while time.monotonic() < deadline:
        if number == 0:
            heard = {rank: store.get(f"hello/{rank}").decode() for rank in workers}  # waits for each rank's first
            store.set("answer", json.dumps([local_name, list(heard.values())]))
            if all(store.check([f"joined/{local_name}/{rank}"]) for rank in workers):
                return local_name
        else:
            name, heard_names = json.loads(store.get("answer"))
            if local_name in heard_names:
                store.set(f"joined/{name}/{number}", "")
                return str(name)
        time.sleep(0.02)
    raise SagaError(f"rank {number} has waited for {TIMEOUT} for the other processes")


def _backend() -> str:
    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"


def barrier() -> None:
    """Wait until every process is here."""
    if world_size() > 1:
        dist.all_reduce(torch.zeros(1))


def broadcast(value: T) -> T:
    """Rank 0's value: a small picklable object."""
    if world_size() == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, device=torch.device("cpu"))
    received: T = box[0]
    return received


def gather_objects(value: T) -> list[T]:
    """Every rank's value, in the ranks' order: small picklable objects."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def gather(rows: Tensor) -> Tensor:
    """The rows of all ranks, in the ranks' order, without gradient: (B, ...) -> (world_size * B, ...)."""
    if world_size() == 1:
        return rows.detach()
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world_size())]
    dist.all_gather(parts, rows.detach().contiguous())
    return torch.cat(parts)


def gather_uneven(parts: list[Tensor]) -> Tensor:
    """The rows of all ranks on the CPU, in the ranks' order: [(B, ...), ...] -> (sum B, ...).

    The number of rows may differ between ranks, and may be 0 on all ranks but one.
    """
    if world_size() == 1:
        return torch.cat(parts)
    counts = gather_objects(sum(map(len, parts)))
    shape, dtype = next(
        form for form in gather_objects((parts[0].shape[1:], parts[0].dtype) if parts else None) if form
    )
    padded = torch.zeros((max(counts), *shape), dtype=dtype)
    if parts:
        torch.cat(parts, out=padded[: counts[rank()]])
    gathered = gather(padded).view(len(counts), max(counts), *shape)
    return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.count = len(rows)
        return gather(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # Every rank's loss sees these rows. DistributedDataParallel divides by the number of ranks. The gradient may be
        # another tensor's, too, so a copy is summed.
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[rank() * ctx.count :][: ctx.count]


def gather_with_gradient(rows: Tensor) -> Tensor:
    """The rows of all ranks as :func:`gather` gives them, with gradient: the sum over all ranks' losses."""
    if world_size() == 1:
        return rows
    result: Tensor = _Gather.apply(rows)
    return result


def total(values: Tensor) -> Tensor:
    """The sum over ranks, element by element, without gradient; in a single process ``values`` itself."""
    if world_size() == 1:
        return values
    result = values.detach().clone()
    dist.all_reduce(result)
    return result


def mean(values: Tensor) -> Tensor:
    """The mean over ranks, element by element, without gradient; in a single process ``values`` itself."""
    return values if world_size() == 1 else total(values) / world_size()


def local_rows(rows: Tensor) -> Tensor:
    """This rank's part of rows that are equal on all ranks: (world_size * B, ...) -> (B, ...)."""
    return rows.chunk(world_size())[rank()] if world_size() > 1 else rows


def check_same(facts: Mapping[str, str]) -> None:
    """Check that all processes hold equal values, by the values' names.

    Raises:
        SagaError: on every rank; names the first value that differs, on rank 0 and on the other rank.
    """
    gathered = gather_objects(dict(facts))
    for name, expected in gathered[0].items():
        for number, values in enumerate(gathered):
            if values[name] != expected:
                raise SagaError(
                    f"{name} is {expected} for rank 0, {values[name]} for rank {number}: all processes must see the"
                    " same files"
                )


class StopRequest:
    """Whether any rank was asked to stop, known to all ranks one step later: no step waits for the collective."""

    def __init__(self) -> None:
        self._pending: tuple[Tensor, Any] | None = None

    def update(self, requested: bool) -> bool:
        """Whether any rank passed True at the last call; in a single process, at this one. Called by all ranks."""
        if world_size() == 1:
            return requested
        stop = self._result()
        flag = torch.tensor([int(requested)])
        self._pending = flag, dist.all_reduce(flag, op=dist.ReduceOp.MAX, async_op=True)
        return stop

    def _result(self) -> bool:
        if self._pending is None:
            return False
        flag, work = self._pending
        work.wait()
        return bool(flag.item())


def data_parallel(model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """``model`` under DistributedDataParallel, which averages gradients over ranks; in a single process the model.

    Only parameters with ``requires_grad`` are reduced: key encoders, queues and banks change by the same rule on every
    rank, so buffers are not broadcast at every step.
    """
    if world_size() == 1:
        return model
    devices = [torch.cuda.current_device()] if device.type == "cuda" else None
    options: dict[str, Any] = {"device_ids": devices, "gradient_as_bucket_view": True}
    renamed = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters  # in torch 2.15
    options["forward_sync_buffers" if renamed else "broadcast_buffers"] = False
    return DistributedDataParallel(model, **options)


def broadcast_tensors(tensors: list[Tensor]) -> None:
    """Overwrite every rank's tensors, in place, with those of rank 0."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)
