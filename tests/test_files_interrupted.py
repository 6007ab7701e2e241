"""Writers that are killed, or refused by the system, in processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# The system itself refuses the bytes, as a full disk does, inside whoever writes them.
TOO_LARGE = """
import resource, signal, sys, torch
from pathlib import Path
from deltafit.errors import DeltafitError
from deltafit.files import write_tensors_atomically, write_text_atomically
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
folder = Path(sys.argv[1])
for write, content in (
    (write_text_atomically, "x" * 20_000),
    (write_tensors_atomically, {"a": torch.ones(20_000)}),
):
    try:
        write(folder / "file", content)
    except DeltafitError as error:
        assert str(error).startswith(f"Could not write {folder}/file: "), error
        print("refused")
"""


@pytest.mark.slow
def test_the_system_refuses_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    command = [sys.executable, "-c", TOO_LARGE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "refused\nrefused\n", done.stderr
    assert contents(tmp_path) == {"file": b"old"}


# Kills: the process ends at once, nothing is cleaned up.

KILLED = """
import os, sys
from pathlib import Path
from deltafit import files
folder, kind, call, number = Path(sys.argv[1]), *sys.argv[2:4], int(sys.argv[4])
calls = []
original = getattr(os, call)
def dying(*args):
    calls.append(args)
    if len(calls) == number:
        os._exit(9)
    return original(*args)
setattr(os, call, dying)
if kind == "folder":
    with files.write_folder_atomically(folder / "folder") as temporary:
        files.write_text_atomically(temporary / "one", "new")
        files.write_text_atomically(temporary / "two", "new")
elif kind == "tensors":
    import torch
    files.write_tensors_atomically(folder / "file", {"a": torch.ones(3)})
else:
    files.write_text_atomically(folder / "file", "new")
"""


@pytest.mark.parametrize(
    ("kind", "call", "number"),
    [
        ("text", "fsync", 1),
        ("text", "replace", 1),
        ("tensors", "replace", 1),
        ("folder", "replace", 1),
        ("folder", "fsync", 2),
        ("folder", "replace", 3),
        ("folder", "replace", 4),
    ],
)
def test_a_kill_while_writing_leaves_the_old(
    kind: str, call: str, number: int, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "one").write_text("old")
    command = [sys.executable, "-c", KILLED, str(tmp_path), kind, call, str(number)]
    assert subprocess.run(command, check=False).returncode == 9
    assert (tmp_path / "file").read_text() == "old"
    kept = tmp_path / "folder"
    if (kind, number) == ("folder", 4):  # between the two renames: whole, under a hidden name
        (kept,) = tmp_path.glob(".folder.*.old")
    assert contents(kept) == {"one": b"old"}
