"""Files that are whole or not there: written beside, synced, renamed, and with a checksum at their end."""

import glob
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import torch

# A part-file that has not grown for so many seconds has no writer any more: it was killed.
STALE = 600.0
# What follows the bytes of torch.save, which torch.load passes over: so many bytes, the last 64 of them the digest.
MARK, DIGEST = b"pyroflows sha256 ", 64
TRAILER = len(MARK) + DIGEST
CHUNK = 1 << 20


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of an old one when all of it is on the disk, and leaves that alone otherwise.

    Each writer has a part-file of its own, so that of two at once one comes last, and none is mixed with the other. A
    writer that was killed leaves its own, which the next one removes once it is ten minutes old. A link is followed.

    Args:
        path: where the file goes.

    Raises:
        ValueError: if something stands there that is not a file.
        OSError: if there is no room, no folder or no right to write there.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise ValueError(f"expected the path of a file, got {str(path)!r}, which is something else: name a file in it")
    _clear(path)
    part = path.with_name(f"{path.name[:200]}.{secrets.token_hex(4)}.part")
    try:
        with part.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, part)
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _clear(path: Path) -> None:
    for left in path.parent.glob(f"{glob.escape(path.name[:200])}.????????.part"):
        with suppress(OSError):  # another writer was first
            if time.time() - left.stat().st_mtime > STALE:
                left.unlink()


def _sync_folder(folder: Path) -> None:
    """Makes a change of names last, where the system has a way to."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write(state: Any, path: str | Path) -> None:
    """Writes tensors, numbers, strings and containers of these, so that a crash leaves the old file or the new one.

    Args:
        state: what :func:`read` gives back; ``torch.load`` reads the file as well.
        path: where the file goes.

    Raises:
        ValueError, OSError: if it cannot be written, see :func:`replacing`.
    """
    content = BytesIO()  # on a full disk torch.save has an error of its own to show in the place of the system's
    torch.save(state, content)
    with replacing(path) as file:
        file.write(content.getbuffer())
        file.write(MARK + hashlib.sha256(content.getbuffer()).hexdigest().encode())


def read(path: str | Path, kind: str) -> Any:
    """What :func:`write` wrote, on the CPU; no code runs.

    Args:
        path: the file.
        kind: what the file should be, for the message.

    Raises:
        ValueError: if the file was cut off, damaged, or written by something else.
        OSError: if it is not there or cannot be read.
    """
    with Path(path).open("rb") as file:
        _check_digest(file, f"expected {kind}, got {str(path)!r}, which")
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises what comes first in a file that holds other objects
            raise ValueError(f"expected {kind}, got {str(path)!r}, which cannot be read: {error}") from error


def _check_digest(file: BinaryIO, beginning: str) -> None:
    """Reads the file once, and leaves it at its start."""
    left, digest = file.seek(0, os.SEEK_END) - TRAILER, hashlib.sha256()
    file.seek(max(left, 0))
    trailer = file.read()
    if not (left > 0 and trailer.startswith(MARK)):
        raise ValueError(f"{beginning} has no checksum at its end: it was cut off, or something else wrote it")
    file.seek(0)
    while left > 0 and (chunk := file.read(min(CHUNK, left))):
        digest.update(chunk)
        left -= len(chunk)
    if MARK + digest.hexdigest().encode() != trailer:
        raise ValueError(f"{beginning} does not fit its checksum: it was damaged after it was written")
    file.seek(0)


def check_keys(found: Any, keys: Collection[str], kind: str) -> Mapping[str, Any]:
    """What was found, if it is a dict with these keys and no others.

    Args:
        found: what was read.
        keys: the keys it must have.
        kind: what it should be, for the message.

    Raises:
        ValueError: if it is none, or a key is missing or is one too many.
    """
    if not isinstance(found, Mapping):
        raise ValueError(f"expected {kind} with the entries {sorted(keys)}, got a {type(found).__name__}")
    missing, extra = sorted(set(keys) - found.keys()), sorted(map(str, found.keys() - set(keys)))
    if missing or extra:
        raise ValueError(
            f"expected {kind} with the entries {sorted(keys)}, got one without {missing} and with {extra} besides: "
            f"another version wrote it, or something else did"
        )
    return found
