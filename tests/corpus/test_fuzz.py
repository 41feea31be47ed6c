"""Whatever the files of a corpus hold, a scan ends with its tracks or with one line, and no good track is lost."""

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from musicgen_ft.corpus.scan import Record, scan_corpus, with_tags
from musicgen_ft.errors import UserError
from musicgen_ft.shards.track import TrackMeta, decode_meta, encode_meta

RUNS = settings(
    max_examples=200, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)

NAMES = ("description", "caption", "captions", "caption_2", "title", "genre", "moods", "bpm", "key", "split", "album")
TEXT = st.text(max_size=20) | st.sampled_from(["", "None", "120", "nan", "train", "\ud83d", "a\nb", "\x00", "é" * 300])
VALUE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.sampled_from([10**400, -(10**400)]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
FIELDS = st.dictionaries(st.sampled_from(NAMES) | TEXT, VALUE, max_size=5)
PATH = st.sampled_from(["good.wav", "other.wav", "./good.wav", "../good.wav", "/", "x" * 300, "a\x00b", ".", ""]) | TEXT


def damaged(text: st.SearchStrategy[str]) -> st.SearchStrategy[bytes]:
    """Bytes of a text, whole or cut or with a few bytes of something else in it; or any bytes at all."""

    def damage(data: bytes, at: float, junk: bytes, skip: int) -> bytes:
        place = int(at * len(data))
        return data[:place] + junk + data[place + skip :]

    whole = text.map(lambda value: value.encode("utf-8", "surrogatepass"))
    bent = st.builds(damage, whole, st.floats(0, 1), st.binary(max_size=3), st.integers(0, 10**6) | st.integers(0, 3))
    return whole | bent | st.binary(max_size=40)


def lines(name: str) -> st.SearchStrategy[str]:
    """JSON lines of tracks by the column ``name``."""
    line = st.builds(lambda path, fields: json.dumps({name: path, **fields}), PATH, FIELDS)
    return st.lists(line, max_size=4).map("\n".join)


def table() -> st.SearchStrategy[str]:
    cell = PATH | TEXT | st.just('"quoted, cell"')
    header = st.lists(st.sampled_from(("file_name", *NAMES)) | TEXT, max_size=4)
    return st.builds(
        lambda head, rows: "\n".join(",".join(row) for row in [head, *rows]),
        header | st.just(["file_name", "title"]),
        st.lists(st.lists(cell, max_size=4) | st.tuples(PATH, TEXT), max_size=4),
    )


def scanned(files: dict[str, bytes], corpus: str = "") -> list[Record] | str:
    """The records of a corpus of two tracks and these files, or the line that it ends with."""
    with tempfile.TemporaryDirectory() as folder:
        for name, content in {"good.wav": b"", "other.wav": b"", **files}.items():
            (Path(folder) / name).write_bytes(content)
        try:
            records = scan_corpus(Path(folder) / corpus, read_tags=False)
        except UserError as error:
            return one_line(error)
    for record in records:
        if record.problem is None:  # what prepare would then write
            meta = TrackMeta(labels=record.labels, relative_path=record.relative_path, num_frames=1, duration_s=1.0)
            assert decode_meta(encode_meta(meta)).labels == record.labels
            json.dumps(record.fields, ensure_ascii=False, allow_nan=False).encode()
        else:
            one_line(record.problem)
    return records


def one_line(message: object) -> str:
    assert str(message).isprintable(), message
    return str(message)


def paths(records: list[Record]) -> list[str]:
    return [record.relative_path for record in records]


@RUNS
@given(
    content=damaged(FIELDS.map(json.dumps) | VALUE.map(json.dumps) | TEXT), suffix=st.sampled_from([".json", ".txt"])
)
def test_a_sidecar_concerns_its_track_only(content: bytes, suffix: str) -> None:
    records = scanned({f"other{suffix}": content, "good.json": b'{"title": "Good"}'})
    assert isinstance(records, list), records
    assert paths(records) == ["good.wav", "other.wav"]
    assert (records[0].problem, records[0].labels.title) == (None, "Good")


@RUNS
@given(content=damaged(table() | lines("file_name")), suffix=st.sampled_from([".csv", ".jsonl"]))
@example(content=b"file_name,title\ngood.wav,T\n", suffix=".csv")
def test_a_table_is_read_or_refused_in_one_line(content: bytes, suffix: str) -> None:
    records = scanned({f"metadata{suffix}": content})
    if isinstance(records, str):
        assert "metadata" in records
    else:
        assert paths(records) == ["good.wav", "other.wav"]
        assert all(record.problem is None for record in records)


@RUNS
@given(content=damaged(lines("path")), is_zipped=st.booleans(), is_cut=st.booleans())
@example(content=b'{"path": "good.wav"}', is_zipped=True, is_cut=False)
def test_a_manifest_is_read_or_refused_in_one_line(content: bytes, is_zipped: bool, is_cut: bool) -> None:
    name = "data.jsonl.gz" if is_zipped else "data.jsonl"
    data = gzip.compress(content) if is_zipped else content
    records = scanned({name: data[: len(data) // 2] if is_cut else data}, corpus=name)
    if isinstance(records, str):
        assert "data.jsonl" in records
    else:
        assert records
        assert len({record.id for record in records}) == len(records)


@RUNS
@given(
    tags=st.dictionaries(st.sampled_from(NAMES) | TEXT, TEXT.map(lambda text: text.replace("\ud83d", "?")), max_size=5)
)
def test_any_tags_can_be_added(tags: dict[str, Any]) -> None:
    records = scanned({"good.json": b'{"title": "Good"}'})
    assert isinstance(records, list)
    tagged = with_tags(records[0], tags)
    assert tagged.labels.title == "Good"
    assert with_tags(tagged, tags) == tagged
