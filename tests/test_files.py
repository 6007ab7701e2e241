"""Files that are never half there: kills, full disks, cut files, broken folders."""

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file

from deltafit.errors import DeltafitError, DiskFullError, UsageError
from deltafit.files import (
    check_run_folder,
    read_json,
    read_tensors,
    refuse_existing,
    sha256_of_file,
    write_folder_atomically,
    write_json_atomically,
    write_tensors_atomically,
    write_text_atomically,
)

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.bfloat16)}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)  # fmt: skip


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@given(content=json_values)
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_json_comes_back(content: object, tmp_path: Path) -> None:
    write_json_atomically(tmp_path / "file.json", content)
    assert read_json(tmp_path / "file.json") == content
    assert json.loads((tmp_path / "file.json").read_text(encoding="utf-8")) == content


def test_tensors_come_back_whatever_their_layout(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file.safetensors"
    tensors = {**TENSORS, "transposed": TENSORS["a"].T, "row": torch.ones(4, 4)[1]}
    tensors["wants gradient"] = torch.ones(2, requires_grad=True)
    write_tensors_atomically(path, tensors, {"key": "value"})
    for read in (read_tensors(path), load_file(path)):
        assert read.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def test_not_a_number_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json_atomically(tmp_path / "file.json", {"loss": float("nan")})
    assert not contents(tmp_path)


def test_an_empty_tensor_is_never_written(tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    write_tensors_atomically(path, TENSORS)
    before = contents(tmp_path)
    with pytest.raises(DeltafitError, match=r"'sharded' is empty.*Gather sharded parameters"):
        write_tensors_atomically(path, {**TENSORS, "sharded": torch.empty(0)})
    assert contents(tmp_path) == before


def test_a_files_hash_is_its_sha256(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(data)
    assert sha256_of_file(tmp_path / "file") == hashlib.sha256(data).hexdigest()


# Reading what is not whole.


@pytest.mark.parametrize("kept", [0, 4, 8, 30, 0.5, 0.9, 0.999])
def test_cut_tensors_are_refused(kept: float, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    write_tensors_atomically(path, {"a": torch.ones(400)})
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if kept < 1 else int(kept)])
    with pytest.raises(DeltafitError, match=r"file\.safetensors is damaged or cut short"):
        read_tensors(path)


@given(place=st.integers(0, 150), value=st.integers(0, 255))
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_wrong_byte_is_refused_or_read_but_never_a_traceback(
    place: int, value: int, tmp_path: Path
) -> None:
    path = tmp_path / "file.safetensors"
    write_tensors_atomically(path, TENSORS, {"key": "value"})
    data = bytearray(path.read_bytes())
    data[place % len(data)] = value
    path.write_bytes(data)
    try:
        read_tensors(path)
    except DeltafitError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"a": 1,\n "b', "line 2, column 2: not valid JSON"),
        (b"", "line 1, column 1: not valid JSON"),
        (b'{"a": "\xff"}', r"not UTF-8 text \(byte 7\)"),
    ],
)
def test_broken_json_is_located(data: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(data)
    with pytest.raises(DeltafitError, match=said):
        read_json(path)


@pytest.mark.parametrize("read", [read_json, read_tensors, sha256_of_file])
def test_what_is_not_there_or_no_file(read, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DeltafitError, match=r"Could not read .*missing: No such file"):
        read(tmp_path / "missing")
    with pytest.raises(DeltafitError, match="Could not read"):
        read(tmp_path)


# Writing where it cannot be done.

WRITES = {
    "text": lambda path: write_text_atomically(path, "new"),
    "json": lambda path: write_json_atomically(path, {"new": 1}),
    "tensors": lambda path: write_tensors_atomically(path, TENSORS),
}


@pytest.mark.parametrize("kind", WRITES)
def test_a_file_where_a_folder_should_be(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    before = contents(tmp_path)
    with pytest.raises(DeltafitError, match=r"Could not write .*file/inside"):
        WRITES[kind](tmp_path / "file" / "inside")
    with (
        pytest.raises(DeltafitError, match=r"Could not write .*file/inside"),
        write_folder_atomically(tmp_path / "file" / "inside"),
    ):
        pass
    (tmp_path / "folder").mkdir()
    with pytest.raises(DeltafitError, match=r"Could not write .*folder"):
        WRITES[kind](tmp_path / "folder")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("kind", WRITES)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk(kind: str, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    expected = rf"Could not write {path}: No space left on device\. The disk of {tmp_path} is full"
    with pytest.raises(DiskFullError, match=expected):
        WRITES[kind](path)
    with pytest.raises(DiskFullError, match=expected), write_folder_atomically(path) as temporary:
        WRITES[kind](temporary / "inside")  # the stand-in of the folder is not what is named
    assert contents(tmp_path) == {"file": b"old"}


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "folder"
    with write_folder_atomically(path) as temporary:
        (temporary / "one").write_text("1")
        assert not path.exists() and temporary.parent == path.parent
    assert contents(path) == {"one": b"1"} and list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o777 & ~_umask()
    with write_folder_atomically(path) as temporary:
        (temporary / "two").write_text("2")
    assert contents(path) == {"two": b"2"} and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space"), KeyboardInterrupt()])
def test_a_folder_that_fails_leaves_the_old(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "one").write_text("old")
    expected = DeltafitError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected), write_folder_atomically(path) as temporary:
        (temporary / "one").write_text("new")
        raise error
    assert contents(tmp_path) == {"folder/one": b"old"}


def test_a_folder_that_cannot_be_renamed_leaves_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "folder"
    path.mkdir()
    (path / "one").write_text("old")
    original, calls = os.replace, []

    def failing(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with (
        pytest.raises(DeltafitError, match=r"Could not write .*folder: No space left on device"),
        write_folder_atomically(path) as temporary,
    ):
        (temporary / "one").write_text("new")
    assert contents(tmp_path) == {"folder/one": b"old"}


def test_a_disk_that_is_full_for_transformers_is_one_sentence_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    with (
        pytest.raises(DiskFullError, match=r"Could not write .*merged: .*No space left"),
        write_folder_atomically(tmp_path / "merged") as folder,
    ):
        (folder / "half").write_text("half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name in ("file", "empty"):
        with pytest.raises(UsageError, match=rf"{name} exists already\. Choose another --output"):
            refuse_existing(tmp_path / name)
    refuse_existing(tmp_path / "new")


@pytest.mark.parametrize("resume", [False, True])
def test_a_runs_folder_is_new_or_gone_on_with(tmp_path: Path, resume: bool) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for name in ("new", "empty"):
        check_run_folder(tmp_path / name, resume=resume)
    with pytest.raises(UsageError, match="file is a file; --output takes a folder"):
        check_run_folder(tmp_path / "file", resume=resume)
    if resume:
        check_run_folder(tmp_path, resume=True)
    else:
        with pytest.raises(UsageError, match=r"exists already\. Add --resume"):
            check_run_folder(tmp_path, resume=False)
