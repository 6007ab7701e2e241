"""A process of its own: what goes wrong in it is told, and it ends with the one that began it."""

import os
import subprocess
import sys
import time

import psutil
import pytest

from deltafit.errors import DeltafitError
from deltafit.training.own_process import in_own_process

WAITING = """
import time
from deltafit.training.own_process import in_own_process
if __name__ == "__main__":
    in_own_process(time.sleep, 600)
"""


@pytest.mark.slow
def test_what_goes_wrong_in_it_is_told_as_what_it_is(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(DeltafitError, match=r"failed with ValueError: invalid literal for int"):
        in_own_process(int, "seven")
    with pytest.raises(DeltafitError, match="ended with exit code 9 and no answer"):
        in_own_process(os._exit, 9)
    assert capfd.readouterr().err == "", "no traceback of the process stands beside the sentence"


@pytest.mark.slow
def test_it_ends_with_the_process_that_began_it() -> None:
    with subprocess.Popen([sys.executable, "-c", WAITING]) as parent:
        limit = time.monotonic() + 60
        while not (begun := psutil.Process(parent.pid).children()):
            assert time.monotonic() < limit and parent.poll() is None
            time.sleep(0.05)
        parent.kill()
    _, alive = psutil.wait_procs(begun, timeout=60)
    assert not alive
