"""Files and folders are whole or not there, whoever is killed while writing, and nothing is left beside them."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest

from hybrid_mobilenet.common.files import write_atomically, writing_folder
from processes import run_python, start_python

#: Both write, say that they are in the middle of it, and go on when they are given a line.
FILE = """
import os, sys
from pathlib import Path
from hybrid_mobilenet.common import files

sync = os.fsync
os.fsync = lambda descriptor: print("writing", flush=True) or sys.stdin.readline() and sync(descriptor)
files.write_atomically(Path(sys.argv[1]), b"theirs")
"""
FOLDER = """
import sys
from pathlib import Path
from hybrid_mobilenet.common.files import writing_folder

with writing_folder(Path(sys.argv[1])) as new:
    (new / "deep").mkdir()
    (new / "deep" / "file").write_text("theirs")
    print("writing", flush=True)
    sys.stdin.readline()
"""


def writer(code: str, path: Path) -> subprocess.Popen[str]:
    """A process in the middle of writing `path`."""
    process = start_python("-c", code, path, stdin=subprocess.PIPE, stderr=None)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def write(code: str, path: Path) -> None:
    if code == FILE:
        write_atomically(path, b"ours")
    else:
        with writing_folder(path) as new:
            (new / "file").write_text("ours")


def content(path: Path) -> str:
    return "".join(each.read_text() for each in (path, *path.rglob("*")) if each.is_file())


# Their names hold what means something in patterns.
@pytest.mark.parametrize(("code", "name"), [(FILE, "model[1].onnx"), (FOLDER, "web+")], ids=["file", "folder"])
def test_what_a_kill_left_is_removed_by_the_next(code: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    write(code, path)
    for _ in range(2):
        process = writer(code, path)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert content(path) == "ours"
    assert len(list(tmp_path.iterdir())) > 1
    write(code, path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("code", "name"), [(FILE, "model.onnx"), (FOLDER, "web")], ids=["file", "folder"])
def test_what_another_is_writing_is_left_to_it(code: str, name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    process = writer(code, path)
    write(code, path)
    assert content(path) == "ours"
    assert len(list(tmp_path.iterdir())) == 2
    process.communicate("go on\n", timeout=60)
    assert process.returncode == 0
    assert content(path) == "theirs"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_of_the_user_s_is_no_left_over(tmp_path: Path) -> None:
    names = [".model.onnx.mine.tmp", "model.onnx.abcdefgh.tmp", ".model.onnx.abcdefgh", ".other.onnx.abcdefgh.tmp"]
    for name in names:
        (tmp_path / name).write_text("mine")
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / ".model.onnx.abcdefgh.tmp").symlink_to(tmp_path / "elsewhere")
    write_atomically(tmp_path / "model.onnx", b"")
    for name in [*names, "elsewhere"]:
        assert (tmp_path / name).read_text() == "mine"


def test_many_may_write_one_file_at_once(tmp_path: Path) -> None:
    path, failures = tmp_path / "state", list[BaseException]()

    def write_often(number: int) -> None:
        try:
            for _ in range(50):
                write_atomically(path, bytes([number]) * 1000)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write_often, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(set(path.read_bytes())) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_no_other_thread_s_file_is_left_open_to_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The umask is the process's: who sets it, even for a moment, sets it for all threads."""
    monkeypatch.setattr(os, "umask", None)
    (tmp_path / "theirs").touch()
    write_atomically(tmp_path / "ours", b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "theirs").stat().st_mode


def test_files_keep_to_the_umask(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from hybrid_mobilenet.common import files\n"
        "os.umask(0o027)\n"
        "files.write_atomically(Path(sys.argv[1]) / 'file', b'')\n"
        "with files.writing_folder(Path(sys.argv[1]) / 'folder'): pass"
    )
    done = run_python("-c", code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


def test_where_there_are_no_locks(tmp_path: Path) -> None:
    """As on Windows. In a process of its own, since modules are imported once."""
    code = """
import sys
sys.modules["fcntl"] = None
from pathlib import Path
from hybrid_mobilenet.cli import app as cli
from hybrid_mobilenet.common.files import write_atomically, writing_folder
for content in (b"old", b"new"):
    write_atomically(Path(sys.argv[1], "file"), content)
    with writing_folder(Path(sys.argv[1], "folder")) as new:
        (new / "file").write_bytes(content)
"""
    done = run_python("-c", code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert content(tmp_path / "file") == content(tmp_path / "folder") == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_what_fails_in_the_block_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), writing_folder(tmp_path / "web") as new:
        (new / "missing").read_text()
    assert list(tmp_path.iterdir()) == []


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"old")
    code = (
        "import os, sys; from pathlib import Path; from hybrid_mobilenet.common import files\n"
        "os.fsync = lambda descriptor: os._exit(9)\n"
        "files.write_atomically(Path(sys.argv[1]), b'new' * 1000)"
    )
    assert run_python("-c", code, path).returncode == 9
    assert path.read_bytes() == b"old"
    assert [each.suffix for each in sorted(tmp_path.iterdir())] == [".tmp", ""]


@pytest.mark.parametrize("failing", ["os.fsync", "pathlib.Path.replace", "os.open"])
def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def full(*_arguments: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "state"
    write_atomically(path, b"old")
    monkeypatch.setattr(failing, full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_atomically(path, b"new")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_are_as_readable_as_others(tmp_path: Path) -> None:
    write_atomically(tmp_path / "ours", b"")
    (tmp_path / "theirs").write_bytes(b"")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "theirs").stat().st_mode


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "folder"
    with writing_folder(target) as new:
        (new / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"

    def failing() -> None:
        with writing_folder(target) as new:
            (new / "a").write_text("2")
            (new / "missing").read_text()

    with pytest.raises(FileNotFoundError):
        failing()
    assert (target / "a").read_text() == "1"
    assert [path.name for path in target.parent.iterdir()] == ["folder"]
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file/web"), writing_folder(tmp_path / "file" / "web"):
        pass
