"""Threads for compiled code that runs without the interpreter's lock.

numba's own threading layers are avoided: workqueue aborts when two Python threads call at once, GNU OpenMP does not
survive a fork, and TBB would be one more dependency. Here each process has threads of its own, any number of Python
threads may call, and the number in use follows `torch.get_num_threads()`.
"""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from threading import Barrier
from typing import TypeVar

import torch

Result = TypeVar("Result")


@cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Keyed on the process, since threads do not survive a fork."""
    return ThreadPoolExecutor(threads, thread_name_prefix="fastsdot")


def share(run: Callable[[int], None], count: int) -> None:
    """Call run(0) … run(count − 1), each once and in no fixed order, on this thread and torch's number of others."""
    tasks = iter(range(count))

    def drain() -> None:
        for task in tasks:
            run(task)

    helpers = min(torch.get_num_threads(), count) - 1
    futures = [_pool(os.getpid(), helpers).submit(drain) for _ in range(helpers)]
    drain()
    for future in futures:
        if not future.cancel():  # one that has not started finds nothing left to do
            future.result()


@cache
def _single_pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads in which torch's operators start no others."""
    started, usual = Barrier(threads), torch.get_num_threads()

    def start() -> None:
        torch.set_num_threads(1)
        started.wait()

    pool = ThreadPoolExecutor(threads, thread_name_prefix="fastsdot-torch", initializer=start)
    for future in [pool.submit(int) for _ in range(threads)]:
        future.result()
    torch.set_num_threads(usual)  # a new thread starts with the number that was set last, in whichever thread
    return pool


def gather(run: Callable[[int], Result], count: int) -> list[Result]:
    """[run(0), …, run(count − 1)] for functions that call torch, each on one of torch's number of threads.

    One wait at the end costs less than one in each operator, and far less where other processes want the cores.
    """
    threads = torch.get_num_threads()
    if count == 1 or threads == 1:
        return [run(task) for task in range(count)]
    return list(_single_pool(os.getpid(), threads).map(run, range(count)))


def aside(run: Callable[..., Result], *arguments: object) -> Future[Result]:
    """run(*arguments) on a thread beside, on which torch starts no others; one such call runs at a time."""
    return _single_pool(os.getpid(), 1).submit(run, *arguments)
