"""What every command shares: errors as sentences, exit codes, where progress goes."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from deltafit.cli.speaking import is_first, launched_together, lost_another, telling
from deltafit.cli.stopping import last_words
from deltafit.errors import DeltafitError, DiskFullError, UsageError
from deltafit.files import check_run_folder, disk_is_full

if TYPE_CHECKING:
    from rich.console import Console

    from deltafit.training.progress import Reporter
    from deltafit.training.settings import DataConfig

FAILED, WRONG_USAGE, INTERRUPTED = 1, 2, 130


def console(*, stderr: bool = False) -> "Console":
    """Return a console; standard output carries results, standard error the rest.

    Of several processes launched together the first one speaks for all.
    """
    from rich.console import Console

    class PipedConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # for `explained`; rich itself would exit with 1

    return PipedConsole(stderr=stderr, quiet=not is_first())


def json_line(content: Any) -> str:
    """Return an object as one line of JSON that standard output's encoding can hold."""
    encoding = getattr(sys.stdout, "encoding", None) or ""  # a process may have no standard output
    unicode = encoding.lower().replace("-", "") == "utf8"
    return json.dumps(content, ensure_ascii=not unicode, allow_nan=False)


@contextmanager
def reporting(unit: str = "examples", *, silent: bool = False) -> Iterator["Reporter"]:
    """Show progress on standard error within the block, unless it is to be silent.

    Args:
        unit: what the work is counted in.
        silent: whether to show nothing.
    """
    from deltafit.training.progress import ConsoleReporter, Silent

    if silent:
        yield Silent()
        return
    with ConsoleReporter(console(stderr=True), unit).shown() as reporter:
        yield reporter


def check_start(model: str, data: "DataConfig", output: Path, *, resume: bool) -> None:
    """Refuse what can be refused before torch and transformers load, which takes seconds.

    Raises:
        DeltafitError: there is no such model or data.
        UsageError: ``output`` is taken, or an option makes no sense.
    """
    check_run_folder(output, resume=resume)
    check_readable(model, data)


def check_readable(model: str, data: "DataConfig") -> None:
    """Refuse a model and data that are not there, before torch and transformers load.

    Raises:
        DeltafitError: one of them is not there.
    """
    from deltafit.data import check_paths, resolve_model

    resolve_model(model)
    check_paths(data.data, data.test_data, data.validation)


def check_use(folder: Path, data: str) -> None:
    """Refuse a folder without an adapter, and data that is not there, before torch loads.

    Raises:
        DeltafitError: one of them is not what it should be.
    """
    from deltafit.data import check_path
    from deltafit.prediction.location import adapter_folder

    adapter_folder(folder)
    check_path(data)


@contextmanager
def explained(resume: str | None = None) -> Iterator[None]:
    """Turn errors into one sentence and an exit code.

    Args:
        resume: what to say about going on after an interruption or with a full disk.

    Raises:
        typer.Exit: 1 failed, 2 wrong usage, 130 interrupted.
    """
    try:
        yield
    except UsageError as error:
        raise _exit(str(error), WRONG_USAGE) from error
    except DiskFullError as error:
        raise _exit(f"{error} {resume or ''}", FAILED) from error
    except DeltafitError as error:
        from deltafit.training.interruption import Interrupted

        if isinstance(error, Interrupted):
            raise _exit(f"{error} {resume or ''}", INTERRUPTED) from error
        raise _exit(str(error), FAILED) from error
    except KeyboardInterrupt as error:
        raise _exit(f"Stopped. {resume or ''}", INTERRUPTED) from error
    except BrokenPipeError as error:
        # The reader of our output has gone, as `head` does; that is no failure.
        sys.stdout = None  # or the interpreter complains at its end
        raise typer.Exit(0) from error
    except OSError as error:
        _give_up_on_output()
        place = f" ({error.filename})" if error.filename else ""
        sentence = f"The system refused: {error.strerror or error}{place}."
        again = resume if resume and disk_is_full(error) else ""
        raise _exit(f"{sentence} {again}", FAILED) from error
    except (MemoryError, RuntimeError) as error:
        meaning = _meaning_of(error, resume or "")
        if meaning is None:
            raise
        raise _exit(meaning, FAILED) from error


def _give_up_on_output() -> None:
    """Forget standard output if it takes no more: the interpreter's end would fail on it again."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        sys.stdout = None


def _meaning_of(error: Exception, resume: str) -> str | None:
    """Return what a library's error means; None where that is not known."""
    if lost_another(error):
        return (
            "Another of the processes that were launched together has ended, and without it this "
            f"one cannot go on. {resume}"
        )
    if _is_out_of_memory(error):
        return (
            "Out of memory. A smaller --batch-size (--batch-tokens of predict and evaluate) needs "
            "less; in training a smaller --max-length and --gradient-checkpointing do too."
        )
    return None


def _is_out_of_memory(error: Exception) -> bool:
    # torch says it with a RuntimeError: of a class of its own on a GPU, and in words on a CPU.
    words = ("can't allocate memory", "out of memory")
    return isinstance(error, MemoryError) or any(text in str(error).lower() for text in words)


def _exit(sentence: str, code: int) -> typer.Exit:
    # Nobody may be reading any more; the code still tells.
    with last_words(), suppress(OSError), telling() as ours:
        if ours:
            loud = console(stderr=True)
            loud.quiet = False
            loud.print(
                f"deltafit: {sentence.strip()}", markup=False, highlight=False, soft_wrap=True
            )
    return typer.Exit(code)


def again_with_resume() -> str:
    """Return a sentence with the present command line and ``--resume``."""
    return again("--resume")


def again(*more: str) -> str:
    """Return a sentence with the present command line, which ends with ``more``."""
    import shlex

    words = [word for word in sys.argv[1:] if word not in more]
    how = "with the same launcher" if launched_together() else "with"
    return f"Go on {how}: deltafit {shlex.join([*words, *more])}"
