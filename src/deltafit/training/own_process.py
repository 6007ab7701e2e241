"""Calling a function where its memory is not this process's."""

import multiprocessing
from collections.abc import Callable
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
        DeltafitError: as the function, or the system ended the process.
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
        raise DeltafitError(
            "The system ended the process that tried the run, most likely for want of memory. A "
            "smaller batch_size or max_length needs less."
        ) from error
    finally:
        process.kill()
        process.join()
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def _answer(
    connection: Connection, threads: int, function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    torch.set_num_threads(threads)
    try:
        connection.send(function(*arguments))
    except DeltafitError as error:
        # Under its first words alone: some kinds of errors cannot be sent as they are.
        kind = type(error) if type(error).__init__ is Exception.__init__ else DeltafitError
        connection.send(kind(str(error)))
