"""``doctor``: what is wrong with an experiment, looked for before anything is trained."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from deltafit.data import Splits
from deltafit.errors import DeltafitError, UsageError
from deltafit.experiments.arms import Arm, Experiment
from deltafit.experiments.data_checks import DATA_CHECKS
from deltafit.experiments.findings import Case, Finding, by_severity, counted
from deltafit.experiments.label_noise import LENGTHY_CHECKS
from deltafit.experiments.model_checks import MODEL_CHECKS, load_for, sampled
from deltafit.experiments.reading_checks import READING_CHECKS, THOROUGH_READING_CHECKS
from deltafit.experiments.recipe import Entry, Recipe, entries_of, experiment_of
from deltafit.experiments.recipe_start import recipe_of
from deltafit.experiments.settings_checks import SETTINGS_CHECKS
from deltafit.training.config import RunConfig
from deltafit.training.memory import give_back_memory
from deltafit.training.progress import Reporter
from deltafit.training.settings import TrainingSettings
from deltafit.training.train import load_data


def doctor(recipe: str | Path | Recipe, *, overrides: Sequence[str] = ()) -> list[Finding]:
    """Look for what is wrong with an experiment, in its settings, texts and model.

    Nothing is trained or written; the model is loaded, and reads four texts.

    Args:
        recipe: a YAML file, or the recipe itself.
        overrides: what is otherwise than in the file, such as ``"model=minilm"``.

    Returns:
        What was found, the worst first; nothing where all is well.

    Raises:
        DeltafitError: the texts cannot be read.
        UsageError: the recipe or an override is wrong.
    """
    read = recipe_of(recipe, overrides)
    return examine(read, experiment_of(read), load_data(read.data), thorough=True)


def examine(
    recipe: Recipe, experiment: Experiment, splits: Splits, *, thorough: bool
) -> list[Finding]:
    """Return what is wrong with an experiment, the worst first.

    Args:
        recipe: what is asked for.
        experiment: its runs.
        splits: its texts.
        thorough: also look for what takes longer than a few seconds.
    """
    configs = tuple(experiment.runs_of(arm)[0] for arm in experiment.arms)
    case = Case(recipe, experiment.arms, configs, entries_of(recipe), splits)
    return _found(case, thorough=thorough)


def consult(configs: Sequence[RunConfig], splits: Splits, reporter: Reporter) -> None:
    """Look for what is wrong with runs that the flags of a command ask for, and tell it all.

    Args:
        configs: a run of each method, of one model, texts and head, and the same settings.
        splits: the texts.
        reporter: told of what is found.

    Raises:
        DeltafitError: there are errors; it says them all.
    """
    first = configs[0]
    recipe = Recipe(
        "flags", first.model, first.data, tuple(Entry(str(each.method)) for each in configs),
        head=first.head, settings=replace(first.settings, seed=TrainingSettings().seed),
    )  # fmt: skip
    arms = tuple(Arm(str(each.method), each.method, each.settings) for each in configs)
    case = Case(recipe, arms, tuple(configs), tuple(range(len(arms))), splits, from_flags=True)
    findings = _found(case, thorough=False)
    _stop_at_errors(findings)
    for finding in findings:
        reporter.say(f"{finding.severity}: {finding.sentence} → {finding.remedy}")


def _found(case: Case, *, thorough: bool) -> list[Finding]:
    checks = (*SETTINGS_CHECKS, *DATA_CHECKS, *(LENGTHY_CHECKS if thorough else ()))
    found = [finding for check in checks for finding in check(case)]
    found += _of_model(case, thorough=thorough)
    give_back_memory()  # the model is no memory of the runs that follow
    return by_severity(found)


def _of_model(case: Case, *, thorough: bool) -> Iterator[Finding]:
    try:
        classifier = load_for(case)
    except UsageError as error:  # of a head that it cannot have
        yield Finding("error", "head", str(error), case.change("head.head", "last"))
        return
    except DeltafitError as error:
        remedy = f"{case.change('model', 'minilm')} or the folder of another model"
        yield Finding("error", "model", str(error), remedy)
        return
    try:
        model = sampled(case, classifier)
    except DeltafitError as error:
        yield Finding("error", "texts", str(error), "Take this row out, or correct it there")
        return
    checks = (*MODEL_CHECKS, *READING_CHECKS, *(THOROUGH_READING_CHECKS if thorough else ()))
    for check in checks:
        yield from check(case, model)


def heed(findings: Sequence[Finding], reporter: Reporter) -> None:
    """Tell a person of warnings in short.

    Args:
        findings: what ``examine`` found.
        reporter: told of warnings.

    Raises:
        DeltafitError: there are errors; it says them all.
    """
    _stop_at_errors(findings)
    subjects = [finding.subject for finding in findings if finding.severity == "warning"]
    if subjects:
        named = ", ".join(dict.fromkeys(subjects))
        reporter.say(
            f"{counted(len(subjects), 'warning')} ({named}): `deltafit doctor` on this recipe says "
            "more."
        )


def _stop_at_errors(findings: Sequence[Finding]) -> None:
    errors = [finding for finding in findings if finding.severity == "error"]
    if errors:
        raise DeltafitError("\n".join(f"{each.sentence} → {each.remedy}" for each in errors))
