"""Several processes that run one function each, joined by gloo, as torchrun would start them."""

import multiprocessing
import os
import pickle
import socket
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import torch

from saga_fast.runtime import distributed

os.environ["OMP_NUM_THREADS"] = "1"  # also of the processes that tests start
# Forked from a process that has imported what tests need: importing it takes seconds.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["saga_fast.cli", "saga_fast.train.cycle", "tensorboard"])


def run(world_size: int, function: Callable[..., Any], *arguments: Any, timeout: float = 120.0) -> list[Any]:
    """Call ``function(*arguments)`` in each of ``world_size`` processes; what it returned, by rank.

    The function is one of a module's top level; what it returns and takes can be pickled. World size 1 is a process of
    its own, too, so that numbers are compared between processes with one thread each.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    queue = CONTEXT.Queue()
    processes = [
        CONTEXT.Process(target=_work, args=(queue, rank, world_size, port, function, arguments))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    try:
        results = dict(pickle.loads(queue.get(timeout=timeout)) for _ in processes)
    finally:
        for process in processes:
            process.join(5.0)
            process.kill()
    for rank, (error, _) in sorted(results.items()):
        assert error is None, f"rank {rank}:\n{error}"
    return [results[rank][1] for rank in range(world_size)]


def _work(
    queue: Any, rank: int, world_size: int, port: int, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"})
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    error, result = None, None
    try:
        with distributed.session():
            result = function(*arguments)
    except BaseException:
        error = traceback.format_exc()
    queue.put(pickle.dumps((rank, (error, result))))  # torch would share the tensors' memory, which ends with us
