"""Files are whole or not there, whatever stops the writer."""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from musicgen_ft.errors import UserError
from musicgen_ft.files import atomic_folder, atomic_path, read_json, refuse_used, sha256, user_cache, write_json


def names(folder: Path) -> set[str]:
    """Everything in a folder, hidden files too."""
    return {path.name for path in folder.iterdir()}


def write_half(write: Callable[[Path], AbstractContextManager[Path]], path: Path, error: type[BaseException]) -> None:
    """Begins to write, and fails."""
    with write(path) as temporary:
        (temporary / "a.txt" if temporary.is_dir() else temporary).write_text("half")
        raise error


# ---- one file --------------------------------------------------------------------------------------------------------


def test_a_file_has_its_name_only_when_the_block_has_ended(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "deep" / "a.txt") as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path / "deep"  # so that the rename cannot cross a filesystem
        assert not (tmp_path / "deep" / "a.txt").exists()

    assert (tmp_path / "deep" / "a.txt").read_text() == "new"
    assert names(tmp_path / "deep") == {"a.txt"}


def test_a_failed_write_leaves_the_earlier_file_and_no_temporary(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")

    with pytest.raises(ZeroDivisionError):
        write_half(atomic_path, tmp_path / "a.txt", ZeroDivisionError)

    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == {"a.txt"}


def test_a_failed_first_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        write_half(atomic_path, tmp_path / "a.txt", KeyboardInterrupt)

    assert names(tmp_path) == set()


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.txt"):
        pass


def test_the_bytes_are_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    replace, fsync = os.replace, os.fsync

    def noted_fsync(descriptor: int) -> None:
        calls.append("flush")
        fsync(descriptor)

    def noted_replace(source: Path, target: Path) -> None:
        calls.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)

    with atomic_path(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")

    assert calls == ["flush", "rename", "flush"]  # the last one is the folder's


# ---- a folder --------------------------------------------------------------------------------------------------------


def test_a_folder_has_its_name_only_when_the_block_has_ended(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "deep" / "out") as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "a.txt").write_text("new")
        assert temporary.parent == tmp_path / "deep"
        assert not (tmp_path / "deep" / "out").exists()

    assert (tmp_path / "deep" / "out" / "inner" / "a.txt").read_text() == "new"
    assert names(tmp_path / "deep") == {"out"}


def test_a_failed_folder_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        write_half(atomic_folder, tmp_path / "out", ZeroDivisionError)

    assert names(tmp_path) == set()


def test_an_empty_folder_is_taken_and_a_used_one_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("mine")

    with atomic_folder(tmp_path / "empty") as temporary:
        (temporary / "a.txt").write_text("new")
    with pytest.raises(UserError, match=r"used is not empty.*Choose another --out"), atomic_folder(tmp_path / "used"):
        raise AssertionError

    assert names(tmp_path / "empty") == {"a.txt"}
    assert names(tmp_path / "used") == {"mine.txt"}


def test_what_came_into_the_folder_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="not empty"), atomic_folder(tmp_path / "out") as temporary:  # noqa: PT012
        (temporary / "a.txt").write_text("new")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "of another process").write_text("")

    assert names(tmp_path / "out") == {"of another process"}
    assert names(tmp_path) == {"out"}


# ---- a kill ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["atomic_path", "atomic_folder"])
def test_a_kill_in_the_middle_leaves_nothing_under_the_final_name(kind: str, tmp_path: Path) -> None:
    program = f"""
import sys, time
from pathlib import Path
from musicgen_ft.files import {kind} as write
with write(Path(sys.argv[1])) as temporary:
    (temporary / "a.txt" if temporary.is_dir() else temporary).write_text("half")
    print("half-way", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "out")], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"half-way\n"
        writer.kill()
    assert writer.returncode == -signal.SIGKILL

    assert not (tmp_path / "out").exists()
    assert all(name.startswith(".out.tmp-") for name in names(tmp_path))  # what is left is hidden, and in nobody's way
    with {"atomic_path": atomic_path, "atomic_folder": atomic_folder}[kind](tmp_path / "out") as temporary:
        (temporary / "a.txt" if temporary.is_dir() else temporary).write_text("whole")
    assert (tmp_path / "out").exists()


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_refuse_used_takes_new_and_empty_folders_only(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")

    refuse_used(tmp_path / "new" / "deep")
    with pytest.raises(UserError, match=r"file is a file, expected a folder"):
        refuse_used(file)
    with pytest.raises(UserError, match=r"file is a file, expected a folder"):
        refuse_used(file / "below" / "it")
    with pytest.raises(UserError, match="is not empty: it holds the output of another run"):
        refuse_used(tmp_path)


def test_a_hidden_file_makes_a_folder_used(tmp_path: Path) -> None:
    (tmp_path / ".hidden").write_text("")
    with pytest.raises(UserError, match="is not empty"):
        refuse_used(tmp_path)


# ---- JSON, hashes, modes ---------------------------------------------------------------------------------------------


def test_json_goes_there_and_back_readable(tmp_path: Path) -> None:
    value = {"title": "Für Elise", "bpm": 70.5, "moods": ["calm"], "key": None}
    write_json(tmp_path / "a.json", value)

    assert read_json(tmp_path / "a.json") == value
    assert '"Für Elise"' in (tmp_path / "a.json").read_text(encoding="utf-8")
    assert (tmp_path / "a.json").read_bytes().endswith(b"}\n")


def test_json_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf[1]")
    assert read_json(tmp_path / "a.json") == [1]


@pytest.mark.parametrize(
    ("content", "where"), [(b'{"a": 1,\n "b" 2}', "line 2 column 6"), (b"", "line 1 column 1"), (b"\xff", "utf-8")]
)
def test_invalid_json_is_told_with_its_file_and_place(content: bytes, where: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.json is not valid JSON: .*{where}.*Correct or remove the file"):
        read_json(tmp_path / "a.json")


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_files_and_folders_are_as_readable_as_others_of_the_user(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", 1)
    with atomic_folder(tmp_path / "out") as temporary:
        (temporary / "b.txt").write_text("")
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain.txt").write_text("")

    def mode(name: str) -> int:
        return stat.S_IMODE((tmp_path / name).stat().st_mode)

    assert mode("a.json") == mode("out/b.txt") == mode("plain.txt")
    assert mode("out") == mode("plain")


def test_the_cache_is_where_xdg_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache() == tmp_path / "musicgen-ft"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert user_cache() == Path.home() / ".cache" / "musicgen-ft"
