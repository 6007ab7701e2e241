"""The runs of a recipe as tasks of a Ray cluster, whose workers see the store as this machine does.

Ray decides which worker has room for a run, and begins it again elsewhere if its worker is lost;
what is done is decided by the store alone, as between processes of one machine.
"""

import logging
import os
import secrets
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import Any, NamedTuple, TextIO, cast

from deltafit.errors import DeltafitError
from deltafit.experiments.cluster_worker import Job, Refused, do_task
from deltafit.experiments.recipe_start import Prepared
from deltafit.training.interruption import Interrupted
from deltafit.training.progress import Reporter

_RETRIES = 3  # of a run whose worker was lost; one that always takes its worker with it must end
_BETWEEN_LOOKS = 0.3  # seconds
_FOR_CHECKPOINTS = 60.0  # seconds that runs have to stop at the end of a step


class Share(NamedTuple):
    """What of a cluster a run gets."""

    cpus: int
    gpus: int


def share_of_run(nodes: Sequence[Mapping[str, float]], runs: int) -> Share:
    """Return the most with which so many runs go on at once; at least one CPU.

    Where there are GPUs a run gets one, and its part of the node's CPUs.

    Args:
        nodes: the resources of each, as Ray gives them.
        runs: how many there are to do.
    """
    with_gpus = [node for node in nodes if node.get("GPU", 0) >= 1]
    if with_gpus:
        shares = (int(node.get("CPU", 0)) // int(node["GPU"]) for node in with_gpus)
        return Share(max(1, min(shares)), 1)
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    for share in range(max(cpus, default=1), 1, -1):
        if sum(count // share for count in cpus) >= runs:
            return Share(share, 0)
    return Share(1, 0)


def do_on_cluster(made: Prepared, reporter: Reporter) -> None:
    """Do the runs of a recipe that are not finished as tasks of a Ray cluster, and wait for them.

    The cluster is the one that the caller is connected to, or that at ``RAY_ADDRESS``, or the one
    started on this machine. If there is none, one of this machine's CPUs is started for the time of
    the call.

    Args:
        made: the recipe and its store.
        reporter: told what the workers say.

    Raises:
        DeltafitError: a worker does not see the store, or cannot do a run; or a run's worker was
            lost again and again.
        KeyboardInterrupt: the person asked to stop; runs that were begun have checkpoints.
    """
    configs, store = made.experiment.runs(), made.store
    left = [number for number, config in enumerate(configs) if store.outcome(config) is None]
    if not left:
        return
    lock = f"ray-{secrets.token_hex(4)}"
    try:
        with _connected() as ray, store.locked(lock):
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            share = share_of_run(nodes, len(left))
            places = tuple(store.folder(config).name for config in configs)
            job = Job(made.recipe, store.root.resolve(), Path.cwd(), lock, places, share.cpus)
            cpus = int(sum(node.get("CPU", 0) for node in nodes))
            reporter.say(f"On a Ray cluster of {cpus} CPUs, {share.cpus} to a run.")
            _Tasks(ray, job, share, made, reporter).do(left)
    finally:
        # Windows removes no file that is held: not before the lock is free, nor under a worker.
        with suppress(OSError):
            (store.root / "locks" / f"{lock}.lock").unlink()


@contextmanager
def _connected() -> Iterator[Any]:
    """Give Ray, connected to a cluster."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        yield ray
        return
    try:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError, RuntimeError) as error:
        address = os.environ.get("RAY_ADDRESS", "of this machine")
        raise DeltafitError(
            f"The Ray cluster {address} cannot be reached: {error} Start it with ray start, or "
            "take RAY_ADDRESS out of the environment for one on this machine alone."
        ) from error
    try:
        with redirect_stdout(cast("TextIO", _WithoutRay(sys.stdout))):
            yield ray
    finally:
        ray.shutdown()


class _WithoutRay:
    """A stream without what Ray's threads print of workers that it lost, where results belong."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write what others than Ray write."""
        if threading.current_thread().name.startswith("ray_"):
            return len(text)
        return int(self._stream.write(text))


class _Tasks:
    """The tasks of a job, followed to their ends."""

    def __init__(
        self, ray: Any, job: Job, share: Share, made: Prepared, reporter: Reporter
    ) -> None:
        from ray.util.queue import Queue

        self._ray, self._job, self._reporter = ray, job, reporter
        self._configs = made.experiment.runs()
        # It says who is at what, so it may not be lost with a worker.
        self._said = Queue(actor_options={"num_cpus": 0, "max_restarts": -1})
        self._task = ray.remote(do_task).options(
            num_cpus=share.cpus,
            num_gpus=share.gpus,
            max_retries=_RETRIES,
            retry_exceptions=[Interrupted],
        )
        self._pending: dict[Any, int] = {}
        self._workers: dict[str, int] = {}
        self._finished = 0

    def do(self, runs: Sequence[int]) -> None:
        """Do runs, those that another command is at last."""
        self._finished = len(self._configs) - len(runs)
        lost: dict[int, str] = {}
        try:
            elsewhere = self._ended(runs, lost, wait=False)
            if elsewhere:
                self._reporter.say("Waiting for runs that another process is at.")
                self._ended(elsewhere, lost, wait=True)
        except BaseException:
            self._stop()
            raise
        if lost:
            number, why = next(iter(lost.items()))
            raise DeltafitError(
                f"{len(lost)} of {len(self._configs)} runs were not finished on the cluster. "
                f"{self._configs[number].label}: {why} The same command goes on."
            )

    def _ended(self, runs: Sequence[int], lost: dict[int, str], *, wait: bool) -> list[int]:
        """Follow runs to their ends; return those that others are at."""
        elsewhere = []
        for number in runs:
            task = self._task.remote(self._job, number, self._said, wait=wait)
            self._pending[task] = number
        while self._pending:
            ended, _ = self._ray.wait([*self._pending], timeout=_BETWEEN_LOOKS)
            self._tell()
            for task in ended:
                number = self._pending.pop(task)
                try:
                    result = self._ray.get(task)
                except self._ray.exceptions.RayError as error:
                    lost[number] = str(error).strip().splitlines()[-1]
                    continue
                if isinstance(result, Refused):
                    raise DeltafitError(result.sentence)
                if result:
                    self._finished += 1
                    total = len(self._configs)
                    label = self._configs[number].label
                    self._reporter.say(f"{label} has ended ({self._finished} of {total}).")
                else:
                    elsewhere.append(number)
        return elsewhere

    def _tell(self) -> None:
        """Say what workers have said, each with its number."""
        with suppress(self._ray.exceptions.RayError):  # what was said is no run's result
            for who, sentence in self._said.get_nowait_batch(self._said.qsize()):
                number = self._workers.setdefault(who, len(self._workers) + 1)
                self._reporter.say(f"[{number}] {sentence}")

    def _stop(self) -> None:
        """Have tasks end, each with a checkpoint."""
        for task in self._pending:
            self._ray.cancel(task)
        if self._pending:
            tasks = [*self._pending]
            self._ray.wait(tasks, num_returns=len(tasks), timeout=_FOR_CHECKPOINTS)
