"""``run``: the runs of a recipe, as far as they are not in its store, and the report on them."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

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
from deltafit.experiments.trials_at_work import trials_at_work
from deltafit.experiments.trials_report import search_facts, search_section, trials_csv
from deltafit.experiments.tuning import (
    Tuned,
    check_search,
    is_anything_left,
    possible_runs,
    trial_run,
    tuned,
)
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
        watch: given the runs to look at, before they begin, and when a search has chosen settings.

    Returns:
        The comparison, whose folder, of the recipe's name in the store, also holds ``runs.csv``,
        and ``trials.csv`` if the recipe has a search.

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
    _check(made, engine, processes=processes, jointly=jointly)
    made.store.tracked.tell(made.recipe.track, reporter)
    if watch is not None:
        watch(Standing(made.experiment, made.store, processes, partial(trials_at_work, made)))
    if is_anything_left(made):
        heed(examine(made.recipe, made.experiment, made.splits, thorough=False), reporter)
    features = SharedFeatures(made.recipe.model, made.splits, reporter)
    cheap = _baselines(made, features, reporter)
    if processes > 1:
        do_in_processes(processes, made.recipe, made.store.root, reporter)
    found = tuned(made, features, reporter)
    if watch is not None and found.rows:
        watch(Standing(found.experiment, made.store, processes))
    if engine == "ray":
        do_on_cluster(made, reporter)
    outcomes = _outcomes(made, found, features, reporter, jointly=jointly)
    with made.store.locked(f"report-{made.recipe.name}"):
        return _reported(made, found, outcomes, cheap, reporter)


def _check(made: Prepared, engine: Engine, *, processes: int, jointly: bool) -> None:
    """Raise a DeltafitError if the runs cannot be done so, before anything is computed."""
    check_search(made, engine)
    check_runs(possible_runs(made), jointly=jointly)
    check_place(engine, processes=processes, jointly=jointly)


def _outcomes(
    made: Prepared, found: Tuned, features: SharedFeatures, reporter: Reporter, *, jointly: bool
) -> dict[RunConfig, Outcome]:
    """Do the runs that are left, and wait for others'; return what each came to."""
    configs, what = found.experiment.runs(), (made.splits, made.store, features, reporter)
    joined = run_joined(configs, *what) if jointly else {}
    return do_runs(configs, *what, known=joined)


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
    made: Prepared,
    found: Tuned,
    outcomes: dict[RunConfig, Outcome],
    cheap: Sequence[Candidate],
    reporter: Reporter,
) -> Comparison:
    """Tell trackers of finished runs, and write the report on them into the recipe's folder."""
    made.store.tracked.complete(outcomes, reporter)
    recipe, store, metric = made.recipe, made.store, made.recipe.settings.metric
    folder = store.root / recipe.name
    texts = {"recipe": recipe.name, "about": recipe.about, "changes": recipe.changes}
    facts: dict[str, Any] = {key: text.strip() for key, text in texts.items() if text}
    beside = []
    if recipe.search is not None:
        facts["search"] = search_facts(found.rows, recipe.search)
        tested, seed = made.splits.test is not None, recipe.seeds[0]
        beside = [search_section(found.rows, recipe.search, metric, seed, tested=tested)]
    result = judge_runs(
        found.experiment, outcomes, store, made.splits, cheap, folder,
        facts=facts, beside=beside, published=recipe.published, reporter=reporter,
    )  # fmt: skip
    if not launched().is_main_process:
        return result
    folders = {config: store.folder(config).relative_to(store.root) for config in outcomes}
    table = runs_csv(found.experiment, outcomes, folders)
    write_text_atomically(folder / "runs.csv", table)
    if recipe.search is not None:
        trials = trials_csv(
            found.rows, metric,
            lambda trial: store.folder(trial_run(made, trial.arm)).relative_to(store.root),
        )  # fmt: skip
        write_text_atomically(folder / "trials.csv", trials)
    return result
