"""Shards at a URL: copied once into a local folder, checked, and read from there."""

import fcntl
import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec  # type: ignore[import-untyped]  # ships no types
from tqdm import tqdm

from musicgen_ft.errors import UserError
from musicgen_ft.files import atomic_path, sha256, user_cache
from musicgen_ft.shards.format import MANIFEST_NAME, Manifest, ShardInfo
from musicgen_ft.shards.sidecar import sidecar_path

logger = logging.getLogger(__name__)


def fetch_shards(url: str, cache_dir: Path) -> Path:
    """A local copy of a shards folder.

    Files that an earlier, broken attempt completed are not fetched again; the manifest comes last, so that the copy
    is complete when it is there. Processes of one machine wait for each other.

    Args:
        url: ``http(s)://`` or anything else that fsspec opens (``s3://``, ``gs://`` with their packages installed).
        cache_dir: folder that holds such copies, one subfolder per URL.

    Returns:
        The copy's folder.

    Raises:
        UserError: if the URL holds no complete shards folder, or what came is not what its manifest says.
    """
    url = url.rstrip("/")
    folder = cache_dir / f"{Path(url).name}-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        with _readable(url):
            remote, root = fsspec.core.url_to_fs(url)
            text = remote.cat_file(f"{root}/{MANIFEST_NAME}")
        if _is_same(folder / MANIFEST_NAME, text):
            return folder
        manifest = _parse(text, f"{url}/{MANIFEST_NAME}")
        (folder / MANIFEST_NAME).unlink(missing_ok=True)  # an older copy: incomplete from here on
        num_bytes = sum(shard.num_bytes for shard in manifest.shards)
        with tqdm(total=num_bytes, unit="B", unit_scale=True, desc=f"fetch {url}", disable=None) as bar:
            for shard in manifest.shards:
                _fetch_shard(remote, root, folder, shard)
                bar.update(shard.num_bytes)
        with atomic_path(folder / MANIFEST_NAME) as temporary:
            temporary.write_bytes(text)
    return folder


def _fetch_shard(remote: Any, root: str, folder: Path, shard: ShardInfo) -> None:
    path = folder / shard.name
    if not _is_whole(path, shard):
        with atomic_path(path) as temporary:
            _copy(remote, f"{root}/{shard.name}", temporary)
            if not _is_whole(temporary, shard):
                raise UserError(
                    f"{root}/{shard.name} came with {temporary.stat().st_size} bytes, the manifest says "
                    f"{shard.num_bytes} and SHA-256 {shard.sha256[:12]}...: cut on its way, or changed at its source. "
                    "Run again; if it stays so, upload the folder anew, manifest.json last."
                )
    index = sidecar_path(path)
    with atomic_path(index) as temporary:
        _copy(remote, f"{root}/{index.name}", temporary)


def _copy(remote: Any, source: str, target: Path) -> None:
    with _readable(source):
        remote.get_file(source, str(target))


def _is_whole(path: Path, shard: ShardInfo) -> bool:
    return path.is_file() and path.stat().st_size == shard.num_bytes and sha256(path) == shard.sha256


def _is_same(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def _parse(text: bytes, where: str) -> Manifest:
    try:
        return Manifest.from_dict(json.loads(text), where)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{where} is not valid JSON: {error}. Check the URL of the shards folder.") from error


@contextmanager
def _readable(url: str) -> Iterator[None]:
    """Turns whatever a missing file, host or package raises into one line: each fsspec backend has its own errors."""
    try:
        yield
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise UserError(
            f"{url} cannot be read as a shards folder: {reason}. Check the URL, the network, and that the folder has "
            f"a {MANIFEST_NAME}."
        ) from error


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds the folder's lock, which the system takes back when the process ends, however it ends."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def local_shards(place: str) -> Path:
    """The local folder of shards: ``place`` itself, or a copy of what is at a URL, in the user's cache."""
    if "://" not in place:
        return Path(place)
    return fetch_shards(place, user_cache() / "shards")
