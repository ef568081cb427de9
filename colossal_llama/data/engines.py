"""Where the preparation's work runs: in this process, in processes of this machine, or on a Ray cluster.

All engines call pure functions of a task whose results are files in a shared folder, so what comes out does not
depend on the engine, on the number of workers, or on who did what.
"""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from colossal_llama.errors import UserError

T = TypeVar("T")
R = TypeVar("R")


class WorkerLostError(UserError):
    """A worker died; what others have finished is kept, and the same command goes on with it."""


class Engine(Protocol):
    """Runs ``function(setup, task)`` for many tasks."""

    def map(self, function: Callable[[Any, T], R], setup: Any, tasks: Iterable[T]) -> Iterator[R]:
        """The results in the order of the tasks; only a few tasks are under way at a time.

        Args:
            function: a function of a module, for it travels by name.
            setup: sent to every worker once.
            tasks: may be made while others run.

        Raises:
            UserError: what a task raised.
            WorkerLostError: a worker died.
        """
        ...


class InProcess:
    """One task after the other, here."""

    def map(self, function: Callable[[Any, T], R], setup: Any, tasks: Iterable[T]) -> Iterator[R]:
        """See :class:`Engine`."""
        with _one_thread():
            for task in tasks:
                yield function(setup, task)


class ProcessPool:
    """Processes of this machine.

    Args:
        workers: how many.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers

    def map(self, function: Callable[[Any, T], R], setup: Any, tasks: Iterable[T]) -> Iterator[R]:
        """See :class:`Engine`."""
        import multiprocessing

        # Spawned, not forked: the parent runs threads (arrow, tokenizers), whose locks a fork would copy as held.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(
            self._workers, mp_context=context, initializer=_start_worker, initargs=(function, setup)
        ) as pool:
            waiting: deque[Future[Any]] = deque()
            try:
                for task in tasks:
                    waiting.append(pool.submit(_run_in_worker, task))
                    if len(waiting) >= 2 * self._workers:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            except BrokenProcessPool as error:
                raise WorkerLostError(
                    "a worker process was killed, most likely for lack of memory; lower --num_workers and run the "
                    "command again, it goes on"
                ) from error
            finally:
                for future in waiting:
                    future.cancel()


_work: tuple[Callable[[Any, Any], Any], Any] | None = None


def _start_worker(function: Callable[[Any, Any], Any], setup: Any) -> None:
    global _work
    # Each worker is one thread: the tokenizers library would start as many as there are cores in each.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _work = function, setup


def _run_in_worker(task: Any) -> Any:
    assert _work is not None, "worker processes start with _start_worker"
    function, setup = _work
    return function(setup, task)


@contextmanager
def _one_thread() -> Iterator[None]:
    before = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        yield
    finally:
        del os.environ["TOKENIZERS_PARALLELISM"]
        if before is not None:
            os.environ["TOKENIZERS_PARALLELISM"] = before


class RayCluster:
    """A Ray cluster whose machines see the input, cache and output folders under the same paths.

    Args:
        address: of a running cluster ("auto" finds one on this machine); None starts a local one.
        workers: tasks under way at a time, one CPU each.
    """

    def __init__(self, address: str | None, workers: int) -> None:
        self._address = address
        self._workers = workers

    def map(self, function: Callable[[Any, T], R], setup: Any, tasks: Iterable[T]) -> Iterator[R]:
        """See :class:`Engine`."""
        ray = self._connect()
        remote = ray.remote(num_cpus=1, max_retries=2)(_run_on_ray)
        shared = ray.put(setup)
        waiting: deque[Any] = deque()
        try:
            for task in tasks:
                waiting.append(remote.remote(function, shared, task))
                if len(waiting) >= 2 * self._workers:
                    yield _ray_result(ray, waiting.popleft())
            while waiting:
                yield _ray_result(ray, waiting.popleft())
        finally:
            for reference in waiting:
                ray.cancel(reference, force=True)

    def _connect(self) -> Any:
        try:
            import ray
        except ImportError as error:
            raise UserError("--engine ray needs the package ray; run: pip install ray") from error
        if not ray.is_initialized():
            start: dict[str, Any] = {"num_cpus": self._workers, "include_dashboard": False}
            if self._address is not None:
                start = {"address": self._address}
            try:
                ray.init(**start, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, ValueError, RuntimeError) as error:
                reason = " ".join(str(error).split())[:200]
                raise UserError(f"--ray_address {self._address}: no Ray cluster answers there ({reason})") from error
        return ray


def _run_on_ray(function: Callable[[Any, T], R], setup: Any, task: T) -> R | UserError:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        return function(setup, task)
    except UserError as error:  # Ray would wrap it into an exception of its own
        return error


def _ray_result(ray: Any, reference: Any) -> Any:
    try:
        result = ray.get(reference)
    except ray.exceptions.RayError as error:
        reason = " ".join(str(error).split())[-300:]
        raise WorkerLostError(f"a Ray worker failed ({reason}); run the command again, it goes on") from error
    if isinstance(result, UserError):
        raise result
    return result


def choose_engine(name: str, workers: int, ray_address: str | None) -> Engine:
    """The engine that the flags ask for.

    Args:
        name: ``local`` or ``ray``.
        workers: processes or Ray tasks at a time.
        ray_address: of a running cluster, or None.
    """
    if name == "ray":
        return RayCluster(ray_address, workers)
    return InProcess() if workers == 1 else ProcessPool(workers)
