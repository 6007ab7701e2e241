"""Reading and writing files so that no reader ever sees half of one."""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from deltafit.errors import DeltafitError, DiskFullError, UsageError

if TYPE_CHECKING:
    from torch import Tensor


_LONGEST_NAME = 80  # characters; file systems allow 255 bytes


def safe_name(text: str) -> str:
    """Return a name any file system takes; with a hash where the text cannot be seen in it."""
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "=.+-") else "_" for c in text)
    if len(text) > _LONGEST_NAME or set(text) - set(safe) - set(":,"):
        safe = f"{safe[:_LONGEST_NAME]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
    return safe


def refuse_existing(output: Path) -> None:
    """Raise a UsageError if ``output`` is there: a result is never written over anything."""
    if output.exists():
        raise UsageError(f"{output} exists already. Choose another --output.")


def check_run_folder(folder: Path, *, resume: bool) -> None:
    """Check that a run may begin in ``folder``, or with ``resume`` go on in it.

    Raises:
        UsageError: it is a file, or something is in it and ``resume`` was not asked for.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; --output takes a folder.")
    if not resume and folder.is_dir() and any(folder.iterdir()):
        raise UsageError(
            f"{folder} exists already. Add --resume to go on with the run in it, or choose another "
            "--output."
        )


def disk_is_full(error: Exception) -> bool:
    """Say whether an error means that a disk, or the person's share of it, is used up."""
    number = error.errno if isinstance(error, OSError) else None
    # safetensors writes in Rust, and gives the system's number in words alone.
    return number in (errno.ENOSPC, errno.EDQUOT) or "(os error 28)" in str(error)


def _unwritten(path: Path, error: Exception) -> DeltafitError:
    sentence = f"Could not write {path}: {getattr(error, 'strerror', None) or error}."
    if disk_is_full(error):
        return DiskFullError(f"{sentence} The disk of {path.parent} is full; free some space.")
    return DeltafitError(sentence)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside ``path``; on success it takes its place in one rename."""
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        _flush_to_disk(temporary)
        # mkstemp makes the file private; a result should be as readable as any other file.
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
    except OSError as error:
        raise _unwritten(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _flush_to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def written_atomically(path: Path) -> Iterator[TextIO]:
    """Yield a UTF-8 text file to write to; it becomes ``path`` only when all went well."""
    with _replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        yield file
        file.flush()


def write_text_atomically(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8; a reader sees the old file or the new one, nothing between."""
    with _replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json_atomically(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON. NaN and infinity are refused, as JSON has neither."""
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    write_text_atomically(path, text + "\n")


def write_tensors_atomically(
    path: Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as safetensors.

    Raises:
        DeltafitError: a tensor has no elements (a sharded parameter that was not gathered), or
            the disk refuses.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    empty = [name for name, tensor in tensors.items() if tensor.numel() == 0]
    if empty:
        raise DeltafitError(
            f"Refusing to write {path}: the tensor {empty[0]!r} is empty, so the file would be "
            "useless. Gather sharded parameters before saving."
        )
    with _replacing(path) as temporary:
        contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            save_file(contiguous, temporary, metadata=dict(metadata or {}))
        except SafetensorError as error:
            raise _unwritten(path, error) from error


@contextmanager
def write_folder_atomically(path: Path) -> Iterator[Path]:
    """Yield a new folder beside ``path`` to fill; it becomes ``path`` only when all went well.

    An existing folder at ``path`` is replaced. That takes two renames, and a process killed
    between them leaves the old folder whole under the hidden name ``.<name>.<random>.old``.
    """
    from safetensors import SafetensorError

    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        _put_in_place(temporary, path)
    except (OSError, SafetensorError) as error:  # transformers writes tensors with safetensors
        raise _unwritten(path, error) from error
    except DeltafitError as error:
        cause = error.__cause__
        if not isinstance(cause, OSError | SafetensorError):
            raise
        # A file in it could not be written; the person knows the folder and not its stand-in.
        raise _unwritten(path, cause) from cause
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _put_in_place(folder: Path, path: Path) -> None:
    if not path.exists():
        os.replace(folder, path)
        return
    previous = folder.with_suffix(".old")
    os.replace(path, previous)
    try:
        os.replace(folder, path)
    except OSError:
        os.replace(previous, path)
        raise
    shutil.rmtree(previous, ignore_errors=True)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        DeltafitError: the file is missing, unreadable, or not JSON; the sentence names the line.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DeltafitError(
            f"{path}, line {error.lineno}, column {error.colno}: not valid JSON ({error.msg}). "
            "The file may be cut short; make it again or restore a copy."
        ) from error
    except UnicodeDecodeError as error:
        raise DeltafitError(f"{path} is not UTF-8 text (byte {error.start}).") from error
    except OSError as error:
        raise DeltafitError(f"Could not read {path}: {error.strerror}.") from error


def read_tensors(path: Path) -> "dict[str, Tensor]":
    """Read a safetensors file onto the CPU.

    Raises:
        DeltafitError: the file is missing, cut short or not safetensors.
    """
    from safetensors.torch import load_file

    with _reading_tensors(path):
        return load_file(path)


def read_tensor_metadata(path: Path) -> dict[str, str]:
    """Read the texts that stand beside the tensors in a safetensors file; none where none do.

    Raises:
        DeltafitError: the file is missing, cut short or not safetensors.
    """
    from safetensors import safe_open

    with _reading_tensors(path), safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


@contextmanager
def _reading_tensors(path: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise DeltafitError(
            f"{path} is damaged or cut short ({error}). Make it again or restore a copy."
        ) from error
    except OSError as error:
        raise DeltafitError(f"Could not read {path}: {error.strerror or error}.") from error


def sha256_of_file(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file's bytes.

    Raises:
        DeltafitError: the file is missing or unreadable.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise DeltafitError(f"Could not read {path}: {error.strerror or error}.") from error
    return digest.hexdigest()
