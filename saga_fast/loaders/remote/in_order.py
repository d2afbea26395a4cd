"""Work on many remote files in threads, that ends at once when it is interrupted."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from threading import Event
from typing import TypeVar

from tqdm import tqdm

from saga_fast.runtime.distributed import is_main

Job = TypeVar("Job")
T = TypeVar("T")


def in_order(
    work: Callable[[Job, Event], T], jobs: Sequence[Job], *, threads: int, name: str, unit: str
) -> Generator[T]:
    """The results of ``work`` in the order of the jobs, with a progress bar.

    At most two jobs a thread are started whose results are not yet taken: this bounds the memory. After an error, or
    when the generator is closed, no job is left.

    Args:
        work: called with a job and an event; when that is set it has to end soon, by a CancelledError.
        jobs: what is worked on.
        threads: jobs at once.
        name: of the threads and the bar.
        unit: of the bar.

    Raises:
        Exception: that of the first job that fails, also if a job before it has not ended.
    """
    stopped, errors = Event(), list[Exception]()

    def guarded(job: Job) -> T:
        try:
            return work(job, stopped)
        except Exception as error:
            errors.append(error)
            stopped.set()
            raise

    pool = ThreadPoolExecutor(threads, thread_name_prefix=f"saga-fast-{name}")
    waiting: deque[Future[T]] = deque()
    try:
        with tqdm(total=len(jobs), desc=name, unit=f" {unit}", disable=None if is_main() else True) as bar:
            for job in jobs:
                waiting.append(pool.submit(guarded, job))
                if len(waiting) == 2 * threads:
                    yield waiting.popleft().result()
                    bar.update()
            while waiting:
                yield waiting.popleft().result()
                bar.update()
    except CancelledError:
        raise errors[0] from errors[0].__cause__
    finally:
        stopped.set()
        pool.shutdown(wait=True, cancel_futures=True)
