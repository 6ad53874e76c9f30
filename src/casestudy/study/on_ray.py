"""How do several machines share a study?

Ray actors run the same chunks that one process would run. Each has a model; all actors of a machine
read its weights from Ray's shared memory without a copy. Each chunk goes to a free worker; the
chunk of a worker that died goes to another, and a new worker is started. At most one chunk per
worker is running, so the memory of the study's own process does not grow with the number of
prompts.

Assumes that every machine has the same version of casestudy, and that no one else can reach the
cluster: Ray runs any code that it receives. A cluster that is started here listens on 127.0.0.1;
Ray's usage statistics are off unless the environment turns them on.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter, deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from casestudy.errors import CasestudyError, StudyError
from casestudy.model.model import Model
from casestudy.model.weights import Weights, map_tensors
from casestudy.results.result import Array
from casestudy.study.executors import Done, Work

ATTEMPTS = 3
START_SECONDS = 180.0
_LOCAL = "127.0.0.1"


@dataclass(frozen=True)
class PackedWork:
    """Work with its weights as plain arrays, which Ray keeps once per machine.

    Attributes:
        work: the work, its weights only shapes.
        arrays: the weights in `Weights.named`'s order, a tied unembedding left out.
        dtype: the weights' number format.
        device: where they are used.
    """

    work: Work
    arrays: tuple[Array, ...]
    dtype: torch.dtype
    device: str

    @classmethod
    def of(cls, work: Work) -> PackedWork:
        """Pack the work; the model is not changed."""
        weights = work.model.weights
        arrays = tuple(
            _array(tensor)
            for name, tensor in weights.named()
            if not (name == "W_U" and weights.tied)
        )
        shapes = map_tensors(weights, lambda t: t.to("meta"))
        model = replace(work.model, weights=shapes)
        return cls(replace(work, model=model), arrays, work.model.dtype, str(work.model.device))

    def unpack(self) -> Work:
        """The work with weights that share the arrays' memory, where the device is the CPU."""
        rest = iter(self.arrays)
        shapes = self.work.model.weights
        count = sum(1 for _ in shapes.named())
        tied = len(self.arrays) < count
        skip = shapes.W_U if tied else None

        def restore(shape: Tensor) -> Tensor:
            return shape if shape is skip else _tensor(next(rest), self.dtype).to(self.device)

        weights: Weights = map_tensors(shapes, restore)
        if tied:
            weights = replace(weights, W_U=weights.W_E.T)
        model: Model = replace(self.work.model, weights=weights)
        return replace(self.work, model=model)


def _array(tensor: Tensor) -> Array:
    tensor = tensor.detach().cpu()
    # numpy has no bfloat16
    return (tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _tensor(array: Array, dtype: torch.dtype) -> Tensor:
    with warnings.catch_warnings():
        # shared memory cannot be written to, and nothing here writes to weights
        warnings.simplefilter("ignore", UserWarning)
        tensor = torch.from_numpy(np.asarray(array))
    return tensor.view(dtype) if dtype == torch.bfloat16 else tensor


class RayWorker:
    """One process with one model; an actor's class."""

    def __init__(self, packed: PackedWork, threads: int) -> None:
        torch.set_num_threads(threads)
        self.work = packed.unpack()

    def ready(self) -> bool:
        """Returns when the model is loaded."""
        return True

    def chunk(self, index: list[int]) -> Any:
        """See `Work.chunk`."""
        return self.work.chunk(index)


def ray_chunks(
    work: Work,
    plan: Sequence[Sequence[int]],
    todo: Sequence[int],
    *,
    threads: int,
    workers: int,
    address: str | None = None,
) -> Generator[Done, None, None]:
    """Run chunks on a Ray cluster, in whatever order they come back.

    Args:
        work: what a chunk needs.
        plan: which prompts each chunk holds.
        todo: the chunks to run.
        threads: of each worker; as many CPUs are asked for, and a GPU where the model is on one.
        workers: how many to run.
        address: of a cluster; one is started on this machine by default.

    Raises: StudyError without Ray, where no worker starts, and where a chunk failed `ATTEMPTS`
        times; whatever a measurement raises.
    """
    if not todo:
        return
    ray = _import(address)
    started = not ray.is_initialized()
    if started:
        _start(ray, address, threads * workers)
    try:
        yield from _Pool(ray, work, threads, workers).run(plan, todo)
    finally:
        if started:
            ray.shutdown()


def _import(address: str | None) -> Any:
    if address is None:
        # Ray replaces 127.0.0.1 by the machine's own address, unless it is told before its import
        # that this is no machine for clusters; the variable's name is from where that is usual
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # a version to come leaves CUDA_VISIBLE_DEVICES alone; ask for that now, as it asks to be asked
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError as error:
        raise StudyError(
            "the executor 'ray' needs Ray, which is not installed",
            hint="pip install 'casestudy[ray]', or leave --executor out",
        ) from error
    return ray


def _start(ray: Any, address: str | None, cpus: int) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    try:
        if address is None:
            ray.init(num_cpus=cpus, include_dashboard=False, _node_ip_address=_LOCAL, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise StudyError(
            f"no Ray cluster at {address or 'this machine'}: {error}",
            hint="See docs/scaling.md for how to start one",
        ) from error


class _Pool:
    """The workers, the chunk that each runs, and the chunks still to run."""

    def __init__(self, ray: Any, work: Work, threads: int, workers: int) -> None:
        self.ray, self.threads, self.workers = ray, threads, workers
        self.gpus = 1 if work.model.device.type == "cuda" else 0
        self.actor = ray.remote(num_cpus=threads, num_gpus=self.gpus)(RayWorker)
        self.packed = ray.put(PackedWork.of(work))
        self.starting: dict[Any, Any] = {}
        self.running: dict[Any, tuple[int, Any]] = {}
        self.failures: Counter[int] = Counter()

    def run(self, plan: Sequence[Sequence[int]], todo: Sequence[int]) -> Iterator[Done]:
        """Yield every chunk once, when it is finished."""
        left = deque(todo)
        for _ in range(min(self.workers, len(left))):
            self.hire()
        try:
            while left or self.running:
                done, _ = self.ray.wait(
                    [*self.running, *self.starting],
                    timeout=None if self.running else START_SECONDS,
                )
                if not done:
                    raise StudyError(
                        f"no worker with {self.threads} CPUs and {self.gpus} GPUs started in "
                        f"{START_SECONDS:.0f} s",
                        hint="Does the cluster have so many free? See `ray status`",
                    )
                yield from self.take(done[0], plan, left)
        finally:
            actors = [*self.starting.values(), *(actor for _, actor in self.running.values())]
            for actor in actors:
                self.ray.kill(actor)

    def hire(self) -> None:
        """Start another worker."""
        actor = self.actor.remote(self.packed, self.threads)
        self.starting[actor.ready.remote()] = actor

    def take(self, ref: Any, plan: Sequence[Sequence[int]], left: deque[int]) -> Iterator[Done]:
        """Handle a worker's message: it is ready, it has finished a chunk, or it has died."""
        number, actor = self.running.pop(ref, (None, None))
        actor = self.starting.pop(ref, actor)
        try:
            answer = self.ray.get(ref)
        except self.ray.exceptions.RayTaskError as error:
            # an error of the measurement: another worker would raise it too
            cause = error.as_instanceof_cause()
            raise (cause if isinstance(cause, CasestudyError) else error) from None
        except self.ray.exceptions.RayError as error:
            self.lost(number, left, error)
            return
        if left:
            following = left.popleft()
            self.running[actor.chunk.remote(list(plan[following]))] = (following, actor)
        else:
            self.ray.kill(actor)
        if number is not None:
            yield number, answer

    def lost(self, number: int | None, left: deque[int], error: Exception) -> None:
        """A worker died: run its chunk again, and start another worker."""
        # a worker that never started counts as a failure of the next chunk
        blamed = number if number is not None else (left[0] if left else -1)
        self.failures[blamed] += 1
        if self.failures[blamed] >= ATTEMPTS:
            raise StudyError(
                f"chunk {blamed} lost its worker {ATTEMPTS} times; the last time: {error}",
                hint="Every finished chunk is kept. Too little memory? Run the same command again "
                "with fewer workers",
            ) from error
        if number is not None:
            left.appendleft(number)
        if left:
            self.hire()
