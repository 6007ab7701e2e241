"""Calling a function where its memory is not this process's."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

from deltafit.errors import DeltafitError

Result = TypeVar("Result")


def in_own_process(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function in a new process, with as many threads as this one has, and end it.

    Args:
        function: of a module, so that it can be sent there.
        arguments: such as can be sent.

    Raises:
        DeltafitError: as the function; or it raised something else, which the sentence tells; or
            the process was ended.
    """
    # Not forked: threads of torch's would be held for ever by nobody.
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(
        target=_answer, args=(there, torch.get_num_threads(), function, arguments), daemon=True
    )
    process.start()
    there.close()  # or it would never be seen to end
    try:
        outcome: Result | BaseException = here.recv()
    except EOFError as error:
        process.join()
        raise DeltafitError(_unanswered(process.exitcode)) from error
    finally:
        process.kill()
        process.join()
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def end_with_parent() -> None:
    """Have this process asked to stop when the one that began it has gone."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)


def _unanswered(exit_code: int | None) -> str:
    """Return why a process ended without an answer, as far as its exit code tells."""
    if exit_code is not None and exit_code < 0:
        return (
            "The system ended the process that tried the run, most likely for want of memory. A "
            "smaller batch_size or max_length needs less."
        )
    return f"The process that tried the run ended with exit code {exit_code} and no answer."


def _answer(
    connection: Connection, threads: int, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    end_with_parent()
    torch.set_num_threads(threads)
    try:
        connection.send(function(*arguments))
    except Exception as error:
        with suppress(OSError):  # nobody may be there any more
            connection.send(_sendable(error))


def _sendable(error: Exception) -> DeltafitError:
    """Return an error under its first words alone: some kinds cannot be sent as they are."""
    if not isinstance(error, DeltafitError):
        what = f"{type(error).__name__}: {error}".rstrip(": ")
        return DeltafitError(f"The process that tried the run failed with {what}")
    kind = type(error) if type(error).__init__ is Exception.__init__ else DeltafitError
    return kind(str(error))
