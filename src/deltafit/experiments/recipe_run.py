"""``run``: the runs of a recipe, as far as they are not in its store, and the report on them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deltafit.data import Splits
from deltafit.errors import UsageError
from deltafit.experiments.arms import Experiment
from deltafit.experiments.joining import check_joinable, run_joined
from deltafit.experiments.judgement import Comparison, judge_runs, judged_part
from deltafit.experiments.recipe import Recipe, experiment_of
from deltafit.experiments.recipe_file import read_recipe
from deltafit.experiments.rows import Candidate, baselines, score_baselines
from deltafit.experiments.running import Outcome, SharedFeatures, do_runs
from deltafit.experiments.runs_table import runs_csv
from deltafit.experiments.store import Store
from deltafit.files import write_text_atomically
from deltafit.training.accelerator import processes as launched
from deltafit.training.config import RunConfig
from deltafit.training.progress import Reporter, Silent
from deltafit.training.train import check_methods, load_data


@dataclass(frozen=True)
class Prepared:
    """A recipe with its texts, and the store that its runs are in.

    Attributes:
        recipe: what is asked for.
        experiment: its runs.
        splits: the texts.
        store: of the runs.
    """

    recipe: Recipe
    experiment: Experiment
    splits: Splits
    store: Store


def run(
    recipe: str | Path | Recipe,
    output: str | Path,
    *,
    changes: Sequence[str] = (),
    jointly: bool = False,
    reporter: Reporter | None = None,
) -> Comparison:
    """Do the runs of a recipe that its store does not have yet, and write the report on all.

    Args:
        recipe: a YAML file, or the recipe itself.
        output: the store, a folder that recipes may share; a finished run in it is never done
            again, and an interrupted one is gone on with.
        changes: what is otherwise than in the file, such as ``"settings.epochs=1"``.
        jointly: train LoRA runs that can share a base model at once.
        reporter: told how the work goes; silent by default.

    Returns:
        The comparison, whose folder, of the recipe's name in the store, also holds ``runs.csv``.

    A run whose training fails by itself (it diverges) is left out of its row, which says so, and
    is not tried again while its folder stands.

    Raises:
        DeltafitError: the input cannot be used, or what a run left is damaged.
        UsageError: the recipe or a change is wrong, or a method does not fit the model.
        Interrupted: the process was asked to stop; the same call goes on.
    """
    reporter = reporter or Silent()
    made = prepared(recipe, output, changes)
    configs, splits, store = made.experiment.runs(), made.splits, made.store
    check_runs(configs, jointly=jointly)
    judged = judged_part(splits)
    features = SharedFeatures(made.recipe.model, splits, reporter)
    frozen, seed = features.of(configs[0]), configs[0].settings.seed
    scored = store.baselines(
        judged, frozen.max_length, seed,
        lambda: score_baselines(splits, judged, frozen, seed, reporter),
    )  # fmt: skip
    joined = run_joined(configs, splits, store, features, reporter) if jointly else {}
    outcomes = do_runs(configs, splits, store, features, reporter, known=joined)
    cheap = baselines(scored, splits, judged)
    with store.locked(f"report-{made.recipe.name}"):
        return _reported(made, outcomes, cheap)


def prepared(recipe: str | Path | Recipe, output: str | Path, changes: Sequence[str]) -> Prepared:
    """Read a recipe and its texts, and open its store.

    Raises:
        DeltafitError: as `run`.
    """
    if isinstance(recipe, Recipe):
        if changes:
            raise UsageError("Changes are for recipes in files; make another Recipe instead.")
    else:
        recipe = read_recipe(recipe, changes)
    experiment = experiment_of(recipe)
    splits = load_data(recipe.data)
    return Prepared(recipe, experiment, splits, Store(Path(output), recipe.model, splits))


def check_runs(configs: Sequence[RunConfig], *, jointly: bool) -> None:
    """Raise a DeltafitError if runs cannot be done so, before anything is computed."""
    if launched().num_processes > 1:
        raise UsageError(
            f"Each run of a recipe is done by one process; {launched().num_processes} were "
            "launched together. Start one."
        )
    for stored in dict.fromkeys(config.settings.base_weights for config in configs):
        check_methods([config for config in configs if config.settings.base_weights == stored])
    if jointly:
        check_joinable(configs)


def _reported(
    made: Prepared, outcomes: dict[RunConfig, Outcome], cheap: Sequence[Candidate]
) -> Comparison:
    """Write the report on finished runs into the recipe's folder."""
    recipe, store = made.recipe, made.store
    folder = store.root / recipe.name
    told = {"recipe": recipe.name, "about": recipe.about, "changes": recipe.changes}
    result = judge_runs(
        made.experiment, outcomes, store, made.splits, cheap, folder,
        facts={key: text for key, text in told.items() if text},
        published=recipe.published,
    )  # fmt: skip
    folders = {config: store.folder(config).relative_to(store.root) for config in outcomes}
    table = runs_csv(made.experiment, outcomes, folders)
    write_text_atomically(folder / "runs.csv", table)
    return result
