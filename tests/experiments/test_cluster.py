"""``run`` on a Ray cluster of two workers on this machine: each run ends once, whatever is lost."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from deltafit.errors import DeltafitError, UsageError
from deltafit.experiments import cluster as driver
from deltafit.experiments.cluster import Share, share_of_run
from deltafit.experiments.cluster_worker import Job, Refused, do_task
from deltafit.experiments.recipe_file import read_recipe
from deltafit.experiments.recipe_run import run
from deltafit.experiments.recipe_start import prepared
from tests.experiments.recipe_runs import Listening, same_rows

LONG = ["settings.epochs=20"]  # long enough to be killed in


@pytest.fixture(scope="module")
def workers() -> Iterator[None]:
    """A cluster of two nodes with a CPU each beside a head that has none."""
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'deltafit[ray]')")
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        # For workers, which start elsewhere; and they may not wait for one another's packages.
        path = [str(Path("src").resolve()), str(Path.cwd()), os.environ.get("PYTHONPATH", "")]
        patch.setenv("PYTHONPATH", os.pathsep.join(path))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        try:
            for _ in range(2):
                cluster.add_node(num_cpus=1)
            patch.setenv("RAY_ADDRESS", cluster.address)
            yield
        finally:
            cluster.shutdown()


@pytest.fixture(scope="module")
def connected(workers: None) -> Iterator[None]:
    """A connection of the tests' own, whose workers stay from one call to the next."""
    import ray

    ray.init(log_to_driver=False)
    yield
    ray.shutdown()


def worker_at_a_run(store: Path) -> psutil.Process:
    """The process that holds the lock of a run that has a checkpoint."""
    while True:
        for checkpoint in store.glob("runs/*/checkpoints/step-*"):
            lock = str(store / "locks" / f"{checkpoint.parts[-3]}.lock")
            for process in psutil.process_iter(["name", "cmdline"]):
                if "do_task" in " ".join(process.info["cmdline"] or []) and any(
                    file.path == lock for file in process.open_files()
                ):
                    return process
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.usefixtures("no_images", "workers")
def test_a_killed_worker_s_run_goes_on_elsewhere_and_each_ends_once(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    listening, store = Listening(), tmp_path / "store"
    killed: list[int] = []

    def kill() -> None:
        process = worker_at_a_run(store)
        process.kill()
        killed.append(process.pid)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    result = run(recipe, store, overrides=LONG, engine="ray", reporter=listening)
    thread.join(timeout=1)
    assert len(killed) == 1
    assert capsys.readouterr().out == "", "results belong there, and not what Ray says of workers"
    begun = Counter(sentence.partition(" ")[2] for sentence in listening.begun)
    assert len(begun) == 6 and sorted(begun.values()) == [1, 1, 1, 1, 1, 2]
    ended = [sentence for sentence in listening.said if "has ended" in sentence]
    assert len(set(ended)) == len(ended) == 6 and ended[-1].endswith("(6 of 6).")
    assert {sentence.split()[0] for sentence in listening.begun} >= {"[1]", "[2]"}
    assert not list(store.glob("locks/ray-*"))

    stamps = {path: path.stat().st_mtime_ns for path in store.glob("runs/*/metrics.json")}
    assert len(stamps) == 6
    again = Listening()
    same_rows(run(recipe, store, overrides=LONG, engine="ray", reporter=again), result)
    assert again.said == []
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    same_rows(run(recipe, tmp_path / "sequence", overrides=LONG), result)


@pytest.mark.slow
@pytest.mark.usefixtures("no_images", "connected")
def test_ctrl_c_leaves_checkpoints_that_the_same_call_goes_on_from(
    recipe: Path, tmp_path: Path
) -> None:
    store, overrides = tmp_path / "store", [*LONG, "seeds=[0]"]

    def press() -> None:
        worker_at_a_run(store)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press, daemon=True)
    thread.start()
    # Whoever began the tests may ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, store, overrides=overrides, engine="ray")
    signal.signal(signal.SIGINT, before)
    thread.join(timeout=1)
    assert list(store.glob("runs/*/checkpoints/step-*"))
    assert len(list(store.glob("runs/*/metrics.json"))) < 3
    result = run(recipe, store, overrides=overrides, engine="ray")
    same_rows(run(recipe, tmp_path / "sequence", overrides=overrides), result)


@pytest.mark.slow
@pytest.mark.usefixtures("connected")
def test_what_a_worker_refuses_stops_all(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "do_task", refuse)
    with pytest.raises(DeltafitError, match="On the worker somewhere: no"):
        run(recipe, tmp_path, engine="ray")
    monkeypatch.setattr(driver, "do_task", die)
    monkeypatch.setattr(driver, "_RETRIES", 1)
    said = r"1 of 1 runs were not finished .* head, seed 0: The worker died .* The same command"
    with pytest.raises(DeltafitError, match=said):
        run(recipe, tmp_path, overrides=["runs=[{method: head}]", "seeds=[0]"], engine="ray")


def refuse(job: Job, number: int, said: object, *, wait: bool) -> Refused:
    return Refused("On the worker somewhere: no")


def die(job: Job, number: int, said: object, *, wait: bool) -> None:
    os._exit(1)


def test_a_store_that_is_not_shared_is_refused(recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'deltafit[ray]')")
    made = prepared(recipe, tmp_path / "store", ())
    places = tuple(made.store.folder(config).name for config in made.experiment.runs())
    root = (tmp_path / "store").resolve()

    def told(name: str, root: Path = root, places: tuple[str, ...] = places) -> str:
        job = Job(read_recipe(recipe), root, Path.cwd(), name, places, 1)
        refused = do_task(job, 0, None, wait=False)
        assert isinstance(refused, Refused)
        return refused.sentence

    with made.store.locked("ray-1"):
        assert "does not see the store" in told("ray-1", tmp_path / "elsewhere")
        assert not (tmp_path / "elsewhere").exists()
    # The file is there, and yet nobody's lock on it is seen here.
    assert "whose locks hold for all" in told("ray-1")


@pytest.mark.parametrize(
    ("nodes", "runs", "share"),
    [
        ([{"CPU": 1.0}, {"CPU": 1.0}, {}], 6, Share(1, 0)),
        ([{"CPU": 64.0}, {"CPU": 64.0}], 3, Share(32, 0)),
        ([{"CPU": 64.0}, {"CPU": 48.0}], 2, Share(48, 0)),
        ([{"CPU": 8.0}], 1, Share(8, 0)),
        ([{"CPU": 0.0}], 1, Share(1, 0)),
        ([{"CPU": 32.0, "GPU": 4.0}, {"CPU": 8.0}], 2, Share(8, 1)),
    ],
)
def test_the_share_of_a_run(nodes: list[dict[str, float]], runs: int, share: Share) -> None:
    assert share_of_run(nodes, runs) == share


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"engine": "spark"}, "--engine is one of here, ray; got 'spark'"),
        ({"engine": "ray", "jointly": True}, "Leave --jointly or --engine ray out"),
        ({"engine": "ray", "processes": 2}, "Leave one of the two out"),
    ],
)
def test_what_makes_no_sense_is_refused(
    recipe: Path, tmp_path: Path, options: dict[str, object], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        run(recipe, tmp_path / "store", **options)  # type: ignore[arg-type]
    assert not (tmp_path / "store").exists()
