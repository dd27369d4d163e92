"""Files: damage is refused, a crash or a full disk leaves the old file, writers do not mix, and no code runs."""

import errno
import os
import resource
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from pyroflows import files

STATE = {"x": torch.arange(500.0), "history": [1.0, 2.0], "name": "first", "none": None, "dtype": torch.float64}
OTHER = {"x": torch.arange(20_000.0), "name": "second"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    files.write(STATE, tmp_path / "state.pt")
    return tmp_path / "state.pt"


def whole(path: Path) -> None:
    """The first state is there, and nothing else."""
    assert_close(files.read(path, "a state")["x"], STATE["x"])
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_what_was_written_comes_back(path: Path) -> None:
    whole(path)
    assert files.read(path, "a state")["dtype"] is torch.float64
    assert torch.load(path, weights_only=True)["name"] == "first"
    files.write(OTHER, str(path))
    assert files.read(str(path), "a state")["name"] == "second"


def refused(path: Path, contents: list[bytes]) -> None:
    """None of the contents is read."""
    copy, message = path.with_name("damaged.pt"), "which has no checksum at its end|which does not fit its checksum"
    for content in contents:
        copy.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            files.read(copy, "a state")


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_b4_flipped_bits_and_truncations(path: Path) -> None:
    content = path.read_bytes()
    bits = torch.randperm(8 * len(content))[:500].tolist()
    refused(path, [flipped(content, bit) for bit in bits])
    refused(path, [content[:size] for size in torch.randint(len(content), (200,)).tolist()])
    refused(path, [content + b"\0", content[1:], content + content])


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("place", ["os.fsync", "os.replace", "torch.save"])
def test_b4_a_full_disk_leaves_the_old_file(path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, full)
    with pytest.raises(OSError, match="No space left"):
        files.write(OTHER, path)
    whole(path)


@pytest.mark.parametrize("room", [0, 100, 3_000, 50_000])
def test_b4_a_file_that_cannot_grow_leaves_the_old_one(path: Path, room: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            files.write(OTHER, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    whole(path)


def test_a_state_that_cannot_be_written_leaves_the_old_file(path: Path) -> None:
    with pytest.raises(AttributeError, match="local"):
        files.write({"bad": lambda: None}, path)
    whole(path)


def test_b4_two_writers_do_not_mix(path: Path) -> None:
    done = threading.Event()

    def write(mark: float) -> None:
        while not done.is_set():
            files.write({"x": torch.full((3000,), mark), "mark": mark}, path)

    writers = [threading.Thread(target=write, args=(mark,)) for mark in (1.0, 2.0, 3.0)]
    files.write({"x": torch.zeros(3), "mark": 0.0}, path)
    for writer in writers:
        writer.start()
    found = [files.read(path, "a state") for _ in range(200)]
    done.set()
    for writer in writers:
        writer.join()
    assert all((state["x"] == state["mark"]).all() for state in found)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def killed(path: Path, seconds: float) -> None:
    """Another process writes one state after another until it is killed."""
    child = os.fork()
    if child == 0:
        while True:
            files.write(OTHER, path)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_b4_kill_leaves_a_whole_file(path: Path) -> None:
    for seconds in (0.05 * torch.rand(20)).tolist():
        killed(path, seconds)
        assert files.read(path, "a state")["name"] in ("first", "second")


def test_no_code_runs(path: Path) -> None:
    files.write({"code": Evil(path.with_name("evil"))}, path)
    with pytest.raises(ValueError, match=r"expected a state, got .*, which cannot be read: "):
        files.read(path, "a state")
    assert not path.with_name("evil").exists()


class Evil:
    """An object that makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def test_a_link_and_the_rights_are_kept(path: Path) -> None:
    path.chmod(0o640)
    link = path.with_name("link.pt")
    link.symlink_to(path)
    files.write(OTHER, link)
    assert link.is_symlink()
    assert files.read(path, "a state")["name"] == "second"
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("name", ["/dev/null", "."])
def test_what_is_no_file_is_left_alone(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected the path of a file, got .*, which is something else"):
        files.write(STATE, tmp_path / name)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    for call in (lambda path: files.write(STATE, path), lambda path: files.read(path, "a state")):
        with pytest.raises(FileNotFoundError):
            call(tmp_path / "none" / "state.pt")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"a": 1}, r"expected a state with the entries \['a', 'b'\], got one without \['b'\] and with \[\] besides"),
        ({"a": 1, "b": 2, 3: 4}, r"got one without \[\] and with \['3'\] besides: another version wrote it"),
        ([1], r"expected a state with the entries \['a', 'b'\], got a list"),
    ],
)
def test_keys(found: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        files.check_keys(found, ("a", "b"), "a state")


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    path, now = tmp_path / "state.pt", time.time()
    left, young, others = (
        tmp_path / f"{name}.part" for name in ("state.pt.0123abcd", "state.pt.1234abcd", "t.0123abcd")
    )
    for part in (left, young, others):
        part.write_bytes(b"half")
    for part in (left, others):
        os.utime(part, (now, now - 2 * files.STALE))
    files.write({}, path)
    assert not left.exists()
    assert young.exists()
    assert others.exists()
