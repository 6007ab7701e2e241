"""``run``: the runs of a recipe, as far as they are not in its store, and the report on them."""

from collections.abc import Callable, Sequence
from pathlib import Path

from deltafit.experiments.baselines import score_baselines
from deltafit.experiments.cluster import do_on_cluster
from deltafit.experiments.doctor import examine, heed
from deltafit.experiments.joining import run_joined
from deltafit.experiments.judgement import Comparison, judge_runs, judged_part
from deltafit.experiments.recipe import Recipe
from deltafit.experiments.recipe_start import Prepared, check_runs, prepared
from deltafit.experiments.rows import Candidate, baselines
from deltafit.experiments.running import Outcome, SharedFeatures, do_runs
from deltafit.experiments.runs_table import runs_csv
from deltafit.experiments.standing import Standing
from deltafit.experiments.workers import Engine, check_place, do_in_processes
from deltafit.files import write_text_atomically
from deltafit.training.accelerator import processes as launched
from deltafit.training.config import RunConfig
from deltafit.training.progress import Reporter, Silent


def run(
    recipe: str | Path | Recipe,
    output: str | Path,
    *,
    overrides: Sequence[str] = (),
    jointly: bool = False,
    engine: Engine = "here",
    processes: int = 1,
    reporter: Reporter | None = None,
    watch: Callable[[Standing], None] | None = None,
) -> Comparison:
    """Do the runs of a recipe that its store does not have yet, and write the report on all.

    Args:
        recipe: a YAML file, or the recipe itself.
        output: the store, a folder that recipes may share; a finished run in it is never done
            again, and an interrupted one is gone on with.
        overrides: what is otherwise than in the file, such as ``"settings.epochs=1"``.
        jointly: train LoRA runs that can share a base model at once.
        engine: ``"here"`` does runs on this machine, ``"ray"`` on a Ray cluster, all of whose nodes
            have to reach ``output``, the model and the texts under the same paths.
        processes: how many of this machine do runs, each one at a time with its own model and its
            share of the threads. They import the calling script, so that its own work has to stand
            under ``if __name__ == "__main__":``.
        reporter: told how the work goes; silent by default.
        watch: given the runs before they begin, to look at where they stand.

    Returns:
        The comparison, whose folder, of the recipe's name in the store, also holds ``runs.csv``.

    A run whose training fails by itself (it diverges) is left out of its row, which says so, and
    is not tried again while its folder stands.

    Raises:
        DeltafitError: the input cannot be used, the doctor found an error, or what a run left is
            damaged.
        UsageError: the recipe or a change is wrong, or a method does not fit the model.
        Interrupted: the process was asked to stop; the same call goes on.
    """
    reporter = reporter or Silent()
    made = prepared(recipe, output, overrides)
    configs, splits, store = made.experiment.runs(), made.splits, made.store
    check_runs(configs, jointly=jointly)
    check_place(engine, processes=processes, jointly=jointly)
    store.tracked.tell(made.recipe.track, reporter)
    if watch is not None:
        watch(Standing(made.experiment, store, processes))
    if not all(store.is_finished(config) for config in configs):
        heed(examine(made.recipe, made.experiment, splits, thorough=False), reporter)
    features = SharedFeatures(made.recipe.model, splits, reporter)
    cheap = _baselines(made, features, reporter)
    joined = run_joined(configs, splits, store, features, reporter) if jointly else {}
    if engine == "ray":
        do_on_cluster(made, reporter)
    elif processes > 1:
        do_in_processes(processes, made.recipe, store.root, reporter)
    outcomes = do_runs(configs, splits, store, features, reporter, known=joined)
    with store.locked(f"report-{made.recipe.name}"):
        return _reported(made, outcomes, cheap)


def _baselines(made: Prepared, features: SharedFeatures, reporter: Reporter) -> list[Candidate]:
    """Return the cheap baselines; those in the store are not scored again."""
    splits, first = made.splits, made.experiment.runs()[0]
    judged, frozen, seed = judged_part(splits), features.of(first), first.settings.seed
    scored = made.store.baselines(
        judged, frozen.max_length, seed,
        lambda: score_baselines(splits, judged, frozen, seed, reporter),
    )  # fmt: skip
    return baselines(scored, splits, judged)


def _reported(
    made: Prepared, outcomes: dict[RunConfig, Outcome], cheap: Sequence[Candidate]
) -> Comparison:
    """Tell trackers of finished runs, and write the report on them into the recipe's folder."""
    made.store.tracked.complete(outcomes)
    recipe, store = made.recipe, made.store
    folder = store.root / recipe.name
    told = {"recipe": recipe.name, "about": recipe.about, "changes": recipe.changes}
    result = judge_runs(
        made.experiment, outcomes, store, made.splits, cheap, folder,
        facts={key: text.strip() for key, text in told.items() if text},
        published=recipe.published,
    )  # fmt: skip
    if not launched().is_main_process:
        return result
    folders = {config: store.folder(config).relative_to(store.root) for config in outcomes}
    table = runs_csv(made.experiment, outcomes, folders)
    write_text_atomically(folder / "runs.csv", table)
    return result
