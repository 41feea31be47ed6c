from pathlib import Path

import pytest

from musicgen_ft.errors import UserError
from musicgen_ft.shards.index import ShardIndex
from musicgen_ft.shards.remote import fetch_shards

Server = tuple[str, list[str]]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}


def test_a_copy_equals_its_source(server: Server, shards: Path, tmp_path: Path) -> None:
    url, requested = server

    folder = fetch_shards(url + "/", tmp_path / "cache")

    assert files_of(folder) == files_of(shards)
    assert len(ShardIndex.open(folder, verify=True).split("train")) == 6
    assert requested[0] == "/shards/manifest.json"


def test_a_complete_copy_asks_for_the_manifest_only(server: Server, tmp_path: Path) -> None:
    url, requested = server
    first = fetch_shards(url, tmp_path / "cache")
    requested.clear()

    second = fetch_shards(url, tmp_path / "cache")

    assert second == first
    assert requested == ["/shards/manifest.json"]


def test_a_broken_copy_is_taken_up_where_it_stopped(server: Server, shards: Path, tmp_path: Path) -> None:
    url, requested = server
    last = shards / "valid-000000.tar"
    last.rename(tmp_path / "away")
    with pytest.raises(UserError, match=r"valid-000000\.tar cannot be read as a shards folder"):
        fetch_shards(url, tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*/manifest.json"))
    (tmp_path / "away").rename(last)
    requested.clear()

    folder = fetch_shards(url, tmp_path / "cache")

    assert files_of(folder) == files_of(shards)
    assert [path for path in requested if path.endswith(".tar")] == ["/shards/valid-000000.tar"]


def test_a_damaged_file_is_fetched_again(server: Server, shards: Path, tmp_path: Path) -> None:
    url, _ = server
    folder = fetch_shards(url, tmp_path / "cache")
    (folder / "manifest.json").unlink()
    (folder / "train-000000.tar").write_bytes(bytes((shards / "train-000000.tar").stat().st_size))

    fetch_shards(url, tmp_path / "cache")

    assert files_of(folder) == files_of(shards)


def test_a_file_that_is_not_what_the_manifest_says_is_refused(server: Server, shards: Path, tmp_path: Path) -> None:
    url, _ = server
    path = shards / "train-000000.tar"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-10])

    with pytest.raises(UserError, match=rf"came with {size - 10} bytes, the manifest says {size}"):
        fetch_shards(url, tmp_path / "cache")

    assert not list((tmp_path / "cache").glob("*/*.tar*"))


def test_shards_that_were_made_anew_are_fetched_anew(server: Server, shards: Path, tmp_path: Path) -> None:
    url, requested = server
    folder = fetch_shards(url, tmp_path / "cache")
    manifest = shards / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"nano"', '"another"'))
    requested.clear()

    assert fetch_shards(url, tmp_path / "cache") == folder

    assert ShardIndex.open(folder).manifest.base == "another"
    assert not [path for path in requested if path.endswith(".tar")]  # the tars are the same: kept


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("{server}/nothing", "nothing cannot be read as a shards folder"),
        ("nonsense://bucket/shards", "nonsense://bucket/shards cannot be read as a shards folder.*[Pp]rotocol"),
    ],
)
def test_a_url_without_shards_is_refused_in_one_line(server: Server, tmp_path: Path, url: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        fetch_shards(url.format(server=server[0]), tmp_path / "cache")

    assert "\n" not in str(caught.value)
