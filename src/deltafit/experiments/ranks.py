"""``ranks``: what each rank, block and matrix of a trained adapter is worth, nothing retrained."""

from itertools import groupby
from pathlib import Path

from deltafit.adapters import read_adapter
from deltafit.adapters.low_rank import changes_of
from deltafit.data import load_labelled
from deltafit.experiments.rank_advice import about_parts, rank_verdict
from deltafit.experiments.rank_judging import Judge
from deltafit.experiments.rank_report import RankReport, write_rank_report
from deltafit.experiments.rank_rows import smallest_rank
from deltafit.files import refuse_existing
from deltafit.prediction.folder import load_saved, read_facts
from deltafit.prediction.location import adapter_folder
from deltafit.tasks.inference import BATCH_TOKENS
from deltafit.training.progress import Reporter, Silent


def ranks(
    folder: str | Path,
    data: str | Path,
    *,
    output: str | Path | None = None,
    matrices: bool = False,
    text_column: str | None = None,
    label_column: str | None = None,
    model: str | None = None,
    batch_tokens: int = BATCH_TOKENS,
    reporter: Reporter | None = None,
) -> RankReport:
    """Measure a saved LoRA adapter at every rank, and without each block and kind of matrix.

    Nothing is trained, and the adapter's folder stays as it is: every ΔW is cut to its nearest
    matrix of a rank, or left out, and the result is judged on the same rows. A rank is chosen on
    them, so they should be rows on which nothing else was chosen.

    Args:
        folder: a run's folder or its ``adapter`` folder.
        data: labelled texts: a file; or a folder or catalogue name, whose test part is taken.
        output: a folder for ``report.md``, ``ranks.json``, ``ranks.csv``, ``parts.csv`` and
            ``plots/``; refused if it exists. None writes nothing.
        matrices: leave out each single matrix, too.
        text_column: the column of texts, where it is not to be found by itself.
        label_column: the same for labels.
        model: where to find the base, if not where it was found when training.
        batch_tokens: the most tokens in one forward pass, padding counted.
        reporter: told how the work goes; silent by default.

    Raises:
        DeltafitError: the folder cannot be loaded or proven, the adapter is of another method than
            LoRA (AdaLoRA, PiSSA and OLoRA are saved as LoRA), or the data cannot be used.
        UsageError: ``output`` exists.
    """
    reporter, folder = reporter or Silent(), Path(folder)
    place = adapter_folder(folder)
    if output is not None:
        refuse_existing(Path(output))
    # What can be refused is, before a model is loaded: another method, rows without labels.
    stored = read_adapter(place)
    changes_of(stored, str(folder))
    names = read_facts(place)["label_names"]
    part = load_labelled(data, names, text_column=text_column, label_column=label_column)
    saved = load_saved(place, model=model)
    judge = Judge(saved, stored, part, str(folder), batch_tokens)
    report = _report(folder, judge, matrices, model, reporter)
    if output is not None:
        write_rank_report(Path(output), report)
    return report


def _report(
    folder: Path, judge: Judge, matrices: bool, model: str | None, reporter: Reporter
) -> RankReport:
    """Measure all; for the arguments see ``ranks``."""
    found = judge.ranks(reporter)
    parts = judge.parts(matrices, reporter)
    kinds = [list(of_kind) for _, of_kind in groupby(parts, key=lambda row: row.kind)]
    # Where nothing at all is within noise of the whole, any part is.
    carries = found[0].measured.against_whole.high < 0
    sought = [judge.dispensable(rows, reporter) for rows in kinds if carries]
    dispensable = [one for one in sought if one is not None]
    moved = judge.canary_change(judge.cut(smallest_rank(found).rank)[0])
    return RankReport(
        folder,
        judge.part.source,
        len(judge.part),
        tuple(found),
        tuple(parts),
        tuple(dispensable),
        tuple(judge.matrices),
        rank_verdict(folder, found, moved, model),
        about_parts(kinds, dispensable, found[0]),
    )
