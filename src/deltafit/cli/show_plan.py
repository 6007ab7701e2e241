"""How a recipe looks in a terminal before its runs are done."""

from rich.console import Console

from deltafit.cli.show import add_row, say, table_of
from deltafit.experiments.dry_run import Plan
from deltafit.experiments.search import Search
from deltafit.experiments.tables import NOTHING, format_bytes, format_seconds


def _say_search(console: Console, plan: Plan, search: Search) -> None:
    """Print how many trials there are, and what they go through."""
    searched = [arm for arm in plan.arms if arm.space]
    halving = " under successive halving" if search.pruning == "successive-halving" else ""
    limits = [f"up to {search.trials} trials{halving}"]
    if search.minutes is not None:
        limits.append(f"none begun after {search.minutes:g} minutes of training")
    if search.parameters is not None:
        limits.append(f"sizes of at most {search.parameters:,} parameters besides the head")
    say(console, f"Search in {len(searched)} of {len(plan.arms)} rows, each: {', '.join(limits)}.")
    for space in dict.fromkeys(arm.space for arm in searched):
        names = ", ".join(arm.arm.name for arm in searched if arm.space == space)
        say(console, f"  {names}: {space}")


def show_plan(console: Console, plan: Plan, estimate: str) -> None:
    """Print the rows of a recipe, what their runs will take, and the number of runs.

    Args:
        console: where to.
        plan: of the recipe.
        estimate: the command that finds out more.
    """
    recipe = plan.recipe
    for text in (recipe.about, recipe.changes):
        if text:
            say(console, text.strip())
    table = table_of(
        f"{recipe.name} on {recipe.model}",
        *("row", "runs", "finished", "memory", "time left"),
        left=("row",),
    )
    for each in plan.arms:
        memory = NOTHING if each.memory is None else format_bytes(sum(each.memory.values()))
        add_row(
            table,
            each.arm.name,
            str(each.runs),
            str(each.finished),
            memory,
            _time(each.seconds, each.roughly) if each.runs > each.finished else NOTHING,
        )
    console.print(table)
    runs = "1 run" if plan.runs == 1 else f"{plan.runs} runs"
    if recipe.search is not None:
        _say_search(console, plan, recipe.search)
        runs = f"At most {runs}"
    say(console, f"{runs}, {plan.finished} of them finished.")
    if any(each.memory is not None for each in plan.arms):
        say(
            console,
            "Memory is what the process is expected to hold at most, for one run at a time.",
        )
    if plan.problem is not None:
        say(console, f"Memory and time are not known of all: {plan.problem}")
    if plan.seconds:
        roughly = any(each.roughly for each in plan.arms)
        say(console, f"Training takes {_time(plan.seconds, roughly)} in all, run after run.")
    if any(each.roughly for each in plan.arms):
        say(
            console,
            "~ is rough, half or twice that may be true: from one forward pass, and how much of "
            f"the model is gone back through. Ten steps of each kind of run tell more: {estimate}",
        )


def _time(seconds: float | None, roughly: bool) -> str:
    return f"{'~' if roughly else ''}{format_seconds(seconds)}"
