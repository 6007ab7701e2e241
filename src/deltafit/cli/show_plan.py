"""How a recipe looks in a terminal before its runs are done."""

from rich.console import Console

from deltafit.cli.show import add_row, say, table_of
from deltafit.experiments.dry_run import Plan
from deltafit.experiments.tables import NOTHING, format_bytes, format_seconds


def show_plan(console: Console, plan: Plan) -> None:
    """Print the rows of a recipe, what their runs will take, and the number of runs."""
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
            format_seconds(each.seconds) if each.runs > each.finished else NOTHING,
        )
    console.print(table)
    runs = "1 run" if plan.runs == 1 else f"{plan.runs} runs"
    say(console, f"{runs}, {plan.finished} of them finished.")
    if any(each.memory is not None for each in plan.arms):
        say(
            console,
            "Memory is what the process is expected to hold at most, for one run at a time.",
        )
    if plan.problem is not None:
        say(console, f"Memory is not known: {plan.problem}")
    if any(each.tried for each in plan.arms):
        say(
            console,
            "Times are of training alone, from ten steps of each kind of run where none of the "
            "same size is finished in this store. `deltafit estimate` says more.",
        )
    if any(each.seconds is None for each in plan.arms):
        say(
            console,
            "A time that is missing is known once a run of the same size is finished in this "
            "store; `deltafit estimate` finds it out from ten steps, which takes a while here.",
        )
