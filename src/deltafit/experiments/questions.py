"""What a sweep was made to find out: which matrices, which layers, which rank, and what α does.

Each is answered in sentences from the rows that differ in just that, or said to be open. None is
called better or worse that is not so beyond noise, and what is called enough is within noise.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from deltafit.adapters.movement import MatrixChange
from deltafit.experiments.factor_words import (
    accuracy,
    of_method,
    others,
    points,
    size,
    table,
    without_counterpart,
)
from deltafit.experiments.factors import Factor, Level, Tried, factor_of, factors
from deltafit.experiments.heading import blocks, matrices
from deltafit.experiments.left_out import LeftOut
from deltafit.experiments.left_out_words import left_out_part
from deltafit.experiments.page_parts import Part, Section
from deltafit.experiments.rank_plot import matrix_and_block
from deltafit.experiments.tables import best_on_validation, format_count
from deltafit.experiments.verdict import at_most
from deltafit.experiments.words import listing, named
from deltafit.methods import DeltaMethod

# What is trained beside low-rank updates, from the most to the least.
_WHOLE = ("full", "freeze-first", "last-block", "head")
_SETTINGS = ("target_modules", "layers", "rank", "alpha", "scaling")
ONE_BUDGET = 2.0  # times as many parameters as another row, and still of one budget

Changes = Mapping[str, Sequence[MatrixChange]]
Look = Callable[[str], LeftOut | None]


def questions_section(
    tried: Sequence[Tried], changes: Changes, look: Look = lambda name: None
) -> list[Section]:
    """Return the section with the answers; none where no rows differ in what it asks for.

    Args:
        tried: what was judged, in the order of the rows.
        changes: how far each matrix moved, by the row's name.
        look: finds what the adapter of a row is without each kind of its matrices; asked where no
            rows tell which are needed.
    """
    found = {name: factors(tried, name) for name in _SETTINGS}
    kinds = _kinds(tried)
    low_rank = [each for each in tried if isinstance(each.arm.method, DeltaMethod)]
    if not low_rank or not (kinds or any(found.values())):
        return []
    parts = [*map(_matrices_part, found["target_modules"])] or _open_matrices(
        low_rank, changes, look
    )
    parts += [_kinds_part(kinds, low_rank)] if kinds else []
    for each in found["layers"]:
        parts.append(_best_part(each, "Which layers?", "layers", _layers, verb="adapting "))
    if not kinds and not found["layers"]:
        parts.append(Part("Which layers? These rows do not say: all of them train the same ones."))
    parts += [*map(_rank_part, found["rank"])] or [_open_rank(low_rank)]
    parts += [*map(_alpha_part, found["alpha"])]
    for each in found["scaling"]:
        parts.append(_best_part(each, "Which scaling?", "scaling", _scaling))
    text = (
        "Differences are paired on the same rows and given with their 95 % interval. Within noise: "
        "that interval includes 0. Better or worse beyond noise: p < 0.05 after correction for all "
        "pairs of values. The answers hold for this model, these texts and settings."
    )
    if all(len(each.correct) == 1 for each in tried):
        text += (
            " Each row was trained once, so what another seed would change is not in the intervals."
        )
    return [Section("questions", "Which matrices, which layers, which rank", text, parts)]


def _rank_part(factor: Factor) -> Part:
    enough = next(level for level in factor.levels if _is_tied(level))
    best, lowest = factor.best, factor.levels[0]
    said = f"Which rank is enough? {of_method(factor)}"
    if enough is not best:
        assert enough.to_best is not None
        said += (
            f"rank {enough.value} is enough as far as these rows tell: it is within noise "
            f"of the best, rank {best.value} ({points(enough)}), so at most "
            f"{at_most(vars(enough.to_best))} less, with {size(enough)} trained parameters and "
            f"not {size(best)}."
        )
    elif best is lowest:
        said += (
            f"rank {best.value}, the lowest that was tried, does best "
            f"({accuracy(best)}): nothing here asks for more."
        )
    else:
        said += (
            f"rank {best.value} does best ({accuracy(best)}), and no lower one is "
            "within noise of it."
        )
    said += others(
        factor, lambda level: f"rank {level.value}", (enough, best)
    ) + without_counterpart(factor)
    if enough is lowest and enough.value > 1:
        said += " A lower one was not tried."
    return Part(said, table=table(factor, "rank", lambda level: str(level.value)))


def _alpha_part(factor: Factor) -> Part:
    part = _best_part(factor, "What does α do?", "α", lambda level: f"α = {level.value:g}")
    members = [each.arm.method for level in factor.levels for each in level.members]
    scales = [getattr(method, "factor", None) for method in members]
    known = [scale for scale in scales if scale is not None]
    if not known:
        return part
    scalings = dict.fromkeys(str(getattr(method, "scaling", "α/r")) for method in members)
    scaled = f"s = {listing([*scalings])}, from {min(known):g} to {max(known):g} here"
    return replace(part, caption=f"{part.caption} ΔW is s·B·A with {scaled}.")


def _best_part(
    factor: Factor,
    question: str,
    title: str,
    name: Callable[[Level], str],
    *,
    before: str = "",
    verb: str = "",
) -> Part:
    """Answer which value does best, and how the others stand to it.

    Args:
        factor: the setting.
        question: that is answered.
        title: of the table's first column.
        name: what a value is called there.
        before: a sentence before the answer.
        verb: before a name in a sentence.
    """

    def said_as(level: Level) -> str:
        return f"{verb}{name(level)}"

    said = (
        f"{question} {before}{of_method(factor)}{said_as(factor.best)} does best "
        f"({accuracy(factor.best)})."
    )
    said += others(factor, said_as, (factor.best,)) + without_counterpart(factor)
    return Part(said, table=table(factor, title, name))


def _layers(level: Level) -> str:
    return blocks(level.value)


def _scaling(level: Level) -> str:
    return f"s = {level.value}"


def _kinds(tried: Sequence[Tried]) -> Factor | None:
    """Return how training all, the last block or the head compares with a low-rank update."""
    kinds: dict[str, list[Tried]] = {}
    for each in tried:
        name = each.arm.method.command_line_name
        if isinstance(each.arm.method, DeltaMethod):
            kinds.setdefault("", []).append(each)
        elif name in _WHOLE:
            kinds.setdefault(name, []).append(each)
    if len(kinds) < 2:
        return None
    chosen = [_best(kinds[name]) for name in ("", *_WHOLE) if name in kinds]
    return factor_of("method", [{each.row["name"]: each for each in chosen}], len(chosen))


def _kinds_part(factor: Factor, low_rank: Sequence[Tried]) -> Part:
    said = (
        f"Which layers: is training all, the last block or the head as good? {_name(factor.best)} "
        f"does best of these ({accuracy(factor.best)}, {size(factor.best)} trained parameters)."
    )
    said += others(factor, _name, (factor.best,), sizes=True)
    if len(low_rank) > 1:
        chosen = next(each for each in factor.levels if each.members[0] in low_rank)
        by = (
            "by its validation figure"
            if all(each.row.get("validation") is not None for each in low_rank)
            else "by the judged rows, which flatters it, for want of validation rows"
        )
        said += f" {_name(chosen)} was chosen of the {len(low_rank)} rows with a ΔW {by}."
    return Part(said, table=table(factor, "row", _name))


def _name(level: Level) -> str:
    return str(level.members[0].row["name"])


def _matrices_part(factor: Factor) -> Part:
    sizes = [level.mean("trainable") or 0 for level in factor.levels]
    one = max(sizes) <= ONE_BUDGET * min(sizes)
    budget = (
        f"All train about {format_count(round(sum(sizes) / len(sizes)))} parameters. "
        if one
        else f"They train {format_count(round(min(sizes)))} to {format_count(round(max(sizes)))} "
        "parameters, and not one budget: a difference may be the number's. "
    )
    question = "Which matrices, under a budget of parameters?"
    return _best_part(factor, question, "matrices", _matrices, before=budget, verb="adapting ")


def _matrices(level: Level) -> str:
    return _adapted(level.members[0])


def _adapted(tried: Tried) -> str:
    assert isinstance(tried.arm.method, DeltaMethod)
    return matrices(tried.arm.method, tried.row)


def _open_matrices(low_rank: Sequence[Tried], changes: Changes, look: Look) -> list[Part]:
    """Say that no rows differ in their matrices alone, and what one adapter needs of them."""
    adapted = {*map(_adapted, low_rank)}
    same = f"all adapt {adapted.pop()}" if len(adapted) == 1 else "no two differ in that alone"
    said = (
        f"Which matrices, under a budget of parameters? Rows do not say: {same}. Those of "
        "recipes/modules.yaml would, which differ in target_modules under one budget."
    )
    row = _best(low_rank).row
    found = look(row["name"])
    if found is not None:
        return [left_out_part(row["name"], found, said)]
    shares: dict[str, float] = {}
    for change in changes.get(row["name"], ()):
        kind, _ = matrix_and_block(change.name)
        shares[kind] = shares.get(kind, 0.0) + change.delta_norm**2
    total = sum(shares.values())
    if len(shares) > 1 and total:
        largest = sorted(shares, key=lambda kind: -shares[kind])
        share = [f"{kind} has {100 * shares[kind] / total:.0f} %" for kind in largest]
        said += (
            f" Of ‖ΔW‖² in {row['name']}, {named(share)}; that a matrix moved far is no proof that "
            "it is needed."
        )
    return [Part(said)]


def _open_rank(low_rank: Sequence[Tried]) -> Part:
    ranks = sorted({getattr(each.arm.method, "rank", 0) for each in low_rank} - {0})
    if len(ranks) > 1:
        why = "no two differ in that alone"
    else:
        why = f"all have rank {ranks[0]}" if ranks else "none has a rank"
    tells = (
        " `deltafit ranks` on a run's folder tells of every lower one without training again."
        if ranks
        else ""
    )
    return Part(f"Which rank is enough? These rows do not say: {why}.{tells}")


def _best(tried: Sequence[Tried]) -> Tried:
    row = best_on_validation([each.row for each in tried])
    return next(each for each in tried if each.row is row)


def _is_tied(level: Level) -> bool:
    return level.to_best is None or level.to_best.within_noise
