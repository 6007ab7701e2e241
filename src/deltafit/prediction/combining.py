"""``combine``: several saved LoRA adapters of one base as one."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from deltafit.adapters import (
    StoredAdapter,
    base_parameters,
    load_adapter,
    read_adapter,
    remove_adapter,
)
from deltafit.adapters.combination import (
    Combination,
    combined_changes,
    combined_whole,
)
from deltafit.adapters.low_rank import energy_lost, stored_of
from deltafit.errors import DeltafitError, UsageError
from deltafit.files import refuse_existing
from deltafit.prediction.canaries import check_canaries, read_canaries
from deltafit.prediction.certificates import (
    DEFAULT_TOLERANCE,
    Agreement,
    Certificate,
    agreement,
    certify,
    check_tolerance,
    look_with,
    probe_texts,
    save_certified,
)
from deltafit.prediction.folder import load_saved, prove_saved, read_facts
from deltafit.prediction.location import adapter_folder
from deltafit.tasks.classification import Classifier

AVERAGE = "average"


@dataclass(frozen=True)
class CombineReport:
    """A combined adapter.

    Attributes:
        folder: the adapter's.
        certificate: how far it lies from the combination before that was cut to a rank.
        from_each: how far it lies from each of the adapters, on the canary sentences.
    """

    folder: Path
    certificate: Certificate
    from_each: tuple[Agreement, ...]


def combine(
    folders: Sequence[str | Path],
    output: str | Path,
    *,
    combination: Combination = Combination(),
    head: str | Path = AVERAGE,
    data: str | Path | None = None,
    text_column: str | None = None,
    tolerance: float = DEFAULT_TOLERANCE,
    model: str | None = None,
) -> CombineReport:
    """Combine saved LoRA adapters of one base, with the same labels, into one.

    Args:
        folders: runs' folders or their ``adapter`` folders.
        output: the new adapter's folder; refused if it exists.
        combination: how the ΔW are combined, with which weights and to which rank.
        head: ``"average"``, the mean of their heads by the same weights, or one of ``folders``,
            whose head is taken.
        data: texts to compare the predictions on beside the canary sentences.
        text_column: the column of texts, where it is not to be found by itself.
        tolerance: the largest change of a logit by cutting the combination to its rank, relative
            where logits are above 1; linear cuts nothing.
        model: where to find the base, if not where it was found when training.

    Raises:
        DeltafitError: a folder cannot be loaded or proven, is of another method than LoRA, or
            disagrees with the first in base, labels or kind of head; or a logit changes by more
            than ``tolerance``. Nothing is left behind.
        UsageError: ``output`` exists, or a value is out of its range.
    """
    output = Path(output)
    if not folders:
        raise UsageError("Name the folder of at least one adapter.")
    combination.weights_of(len(folders))
    check_tolerance(tolerance)
    head_of = _head_of(head, folders)
    refuse_existing(output)
    texts = probe_texts(data, text_column)
    places = [adapter_folder(folder) for folder in folders]
    report = _written(places, output, combination, head_of, texts, tolerance, model)
    prove_saved(output)
    return report


def _head_of(head: str | Path, folders: Sequence[str | Path]) -> int | None:
    """Return the place of the adapter whose head is taken; None for the mean."""
    if head == AVERAGE:
        return None
    for index, folder in enumerate(folders):
        if Path(folder) == Path(head):
            return index
    named = ", ".join(map(str, folders))
    raise UsageError(f"head must be {AVERAGE} or one of the folders {named}; got {str(head)!r}.")


def _written(
    folders: Sequence[Path],
    output: Path,
    combination: Combination,
    head_of: int | None,
    texts: tuple[str, ...],
    tolerance: float,
    model: str | None,
) -> CombineReport:
    """Write the combined adapter; the model is let go of on return."""
    every = [read_facts(folder) for folder in folders]
    _check_alike(folders, every)
    adapters = [read_adapter(folder) for folder in folders]
    combined = combined_changes(adapters, combination, [str(folder) for folder in folders])
    classifier, sentences = _base_of(folders, every, adapters, model)
    weights, max_length = combination.weights_of(len(folders)), _longest(every)
    whole = combined_whole(
        adapters, weights, base_parameters(classifier.model), every[0]["head_parameters"], head_of
    )
    corrects = next((one.corrects for one in adapters if one.corrects is not None), None)
    result = replace(stored_of(combined.adapter, whole), corrects=corrects)
    exact = replace(stored_of(combined.exact, whole), corrects=corrects)
    expected = look_with(classifier, exact, sentences, texts, max_length)
    actual = look_with(classifier, result, sentences, texts, max_length)
    found = certify(
        actual, expected, combined.losses, energy_lost(combined.losses), tolerance=tolerance
    )
    own = [
        look_with(classifier, adapter, sentences, (), facts["max_length"]).canaries
        for adapter, facts in zip(adapters, every, strict=True)
    ]
    from_each = tuple(agreement(actual.canaries, logits) for logits in own)
    made = {
        "by": "combine",
        "of": [str(folder.resolve()) for folder in folders],
        **asdict(combination),
        "weights": list(weights),
        "head": AVERAGE if head_of is None else str(folders[head_of].resolve()),
        "tolerance": tolerance,
        "certificate": found.to_dict(),
        "from_each": [asdict(one) for one in from_each],
    }
    save_certified(
        classifier,
        result,
        output,
        base_fingerprint=every[0]["base"]["tensors"],
        max_length=max_length,
        made=made,
    )
    return CombineReport(output, found, from_each)


def _longest(every: Sequence[dict[str, Any]]) -> int:
    return max(int(facts["max_length"]) for facts in every)


def _weights(facts: dict[str, Any]) -> str:
    """Return how the base's weights were stored in training; folders of before do not say."""
    weights: str | None = facts["base"].get("weights")
    return weights or "float32"


def _check_alike(folders: Sequence[Path], every: Sequence[dict[str, Any]]) -> None:
    """Raise a DeltafitError that lists all in which adapters disagree with the first."""
    problems = []
    first, *others = every
    for folder, facts in zip(folders[1:], others, strict=True):
        # Under a pooled head the same base has other names, and cannot be told from another one.
        pooled = [one["head"]["kind"] != "architecture" for one in (facts, first)]
        if pooled[0] == pooled[1] and facts["base"]["tensors"] != first["base"]["tensors"]:
            problems.append(f"{folder} was made on another base ({facts['base']['name']})")
        elif _weights(facts) != _weights(first):
            problems.append(f"the base weights of {folder} are stored otherwise")
        if facts["label_names"] != first["label_names"]:
            said = _difference(facts["label_names"], first["label_names"], folders[0])
            problems.append(f"{folder} {said}")
        heads = [(one["head"]["kind"], sorted(one["head_parameters"])) for one in (facts, first)]
        if heads[0] != heads[1]:
            problems.append(f"{folder} has a head of another kind ({facts['head']['kind']})")
    if problems:
        raise DeltafitError(
            f"These adapters cannot be combined with {folders[0]}: {'; '.join(problems)}. Adapters "
            "that are combined share base, labels, their order, and the kind of head."
        )


def _difference(labels: Sequence[str], first: Sequence[str], folder: Path) -> str:
    """Return in what labels differ from those of the first adapter, which lies in ``folder``."""
    own = [name for name in labels if name not in first]
    lacked = [name for name in first if name not in labels]
    said = [f"only there: {_listed(own)}"] * bool(own)
    said += [f"only in {folder}: {_listed(lacked)}"] * bool(lacked)
    if not said:
        return f"has the labels in another order ({_listed(labels)})"
    return f"has other labels ({'; '.join(said)})"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} others" if len(names) > 5 else "")


def _base_of(
    folders: Sequence[Path],
    every: Sequence[dict[str, Any]],
    adapters: Sequence[StoredAdapter],
    model: str | None,
) -> tuple[Classifier, list[str]]:
    """Return the base alone, every adapter proven on it, and the canary sentences."""
    saved = load_saved(folders[0], model=model)  # proves the first
    network = saved.classifier.model
    remove_adapter(network, "default")
    for folder, facts, stored in zip(folders[1:], every[1:], adapters[1:], strict=True):
        expected = read_canaries(folder, facts)
        load_adapter(network, stored)
        network.eval()
        check_canaries(
            saved.classifier, facts["canaries"], expected, facts["max_length"], str(folder)
        )
        remove_adapter(network, "default")
    return saved.classifier, saved.facts["canaries"]
