"""The card of a shards folder: its README.md, with the hub's front matter. It names no folder of the user's."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import PurePath, PureWindowsPath
from typing import Any

import yaml

from musicgen_ft.shards.format import SPLITS, Manifest, Split
from musicgen_ft.shards.track import TrackMeta

MAX_GENRES = 30
HUB_SPLITS: dict[Split, str] = {"train": "train", "valid": "validation"}
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
LARGEST = "10M<n<100M"

# Told elsewhere on the card, or of the machine only.
_NOT_SETTINGS = ("corpus", "out", "base", "device", "workers", "engine", "lease_s", "shard_mib")


def dataset_card(manifest: Manifest, tracks: Iterable[TrackMeta]) -> str:
    """Markdown with the hub's front matter.

    Args:
        manifest: of the shards.
        tracks: all of them, in any order.
    """
    name = _name(manifest)
    return f"""{_front(manifest, name)}
# {name}

{sum(manifest.num_tracks.values())} tracks of music as EnCodec codes, prepared for fine-tuning MusicGen with
musicgen-ft {manifest.toolkit_version}. It holds no audio files: the codec's decoder makes sound of the codes.

{_splits(manifest)}
{_genres(tracks)}
## Read it

The shards are tar files in [WebDataset](https://github.com/webdataset/webdataset)'s format:

```python
{read_snippet(manifest)}```

Codes are uint16 `[K, T]`: {manifest.codec.n_q} codebooks of {manifest.codec.card} entries,
{manifest.codec.frame_rate:g} frames a second, without MusicGen's delay pattern.{_stereo(manifest)}

## Train from it

```
musicgen-ft finetune SHARDS --out run --base {_published(manifest.base)}
```

## How it was made

```
musicgen-ft prepare CORPUS --out SHARDS --base {_published(manifest.base)}
```

{_making(manifest)}
## Licence

Unknown: the corpus' own; fill in. Codes are a copy of the music: whoever may not share the audio may not share these.
"""


def read_snippet(manifest: Manifest) -> str:
    """A program that reads the tracks of the first split that has any, from the folder that it is run in."""
    shards = next((manifest.of(split) for split in SPLITS if manifest.of(split)), ())
    pattern = shards[0].name if shards else "train-000000.tar"
    if len(shards) > 1:  # an update may have left gaps between their numbers
        split, numbers = shards[0].split, [shard.name[len(shards[0].split) + 1 : -len(".tar")] for shard in shards]
        is_unbroken = int(numbers[-1]) - int(numbers[0]) == len(numbers) - 1
        pattern = f"{split}-{{{f'{numbers[0]}..{numbers[-1]}' if is_unbroken else ','.join(numbers)}}}.tar"
    return f"""import io
import json

import numpy as np
import webdataset as wds

for sample in wds.WebDataset("{pattern}", shardshuffle=False):
    codes = np.load(io.BytesIO(sample["codes.npy"]), allow_pickle=False)
    track = json.loads(sample["json"])
    print(sample["__key__"], codes.shape, track["duration_s"], track["labels"])
"""


def _front(manifest: Manifest, name: str) -> str:
    files = [
        {"split": HUB_SPLITS[split], "path": f"{split}-*.tar"} for split in SPLITS if manifest.num_tracks[split] > 0
    ]
    values = {
        "pretty_name": name,
        "license": "unknown",
        "task_categories": ["text-to-audio"],
        "tags": ["music", "audio", "encodec", "musicgen", "webdataset", "musicgen-ft"],
        "size_categories": [_size(sum(manifest.num_tracks.values()))],
        **({"configs": [{"config_name": "default", "data_files": files}]} if files else {}),
    }
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True)}---"


def _size(num_tracks: int) -> str:
    return next((name for below, name in SIZES if num_tracks < below), LARGEST)


def _name(manifest: Manifest) -> str:
    corpus = manifest.config.get("corpus")
    return _cell(PureWindowsPath(str(corpus)).name) if corpus else "shards"


def _published(text: str) -> str:
    """A name or a hub id as it is; of a folder of the user's, its name only."""
    is_local = text.startswith((".", "~")) or PurePath(text).is_absolute() or PureWindowsPath(text).is_absolute()
    if is_local or text.count("/") > 1 or "\\" in text:
        return PureWindowsPath(text).name or "corpus"
    return text


def _cell(text: str) -> str:
    """Text that stays in its cell of a table, and in its line."""
    return " ".join(text.split()).replace("|", "\\|")


def _table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in lines)


def _splits(manifest: Manifest) -> str:
    rows = [
        (split, manifest.num_tracks[split], f"{manifest.duration_s[split] / 3600:.2f}", len(manifest.of(split)))
        for split in SPLITS
    ]
    return _table(("split", "tracks", "hours", "shards"), rows)


def _genres(tracks: Iterable[TrackMeta]) -> str:
    count, seconds = Counter[str](), defaultdict[str, float](float)
    described, total = 0, 0
    for track in tracks:
        genre = track.labels.genre or "unknown"
        count[genre] += 1
        seconds[genre] += track.duration_s
        described += track.labels.description is not None
        total += 1
    ordered = sorted(count, key=lambda genre: (-seconds[genre], genre))
    rows = [(_cell(genre), count[genre], f"{seconds[genre] / 3600:.2f}") for genre in ordered[:MAX_GENRES]]
    rest = ordered[MAX_GENRES:]
    if rest:
        hours = sum(seconds[genre] for genre in rest) / 3600
        rows.append((f"{len(rest)} more", sum(count[genre] for genre in rest), f"{hours:.2f}"))
    return _table(("genre", "tracks", "hours"), rows) + f"\n{described} of {total} tracks have a description.\n"


def _stereo(manifest: Manifest) -> str:
    if manifest.codec.channels == 1:
        return ""
    return " The codebooks of the left and of the right channel take turns."


def _making(manifest: Manifest) -> str:
    codec = manifest.codec
    told = {
        "codec": f"{_published(codec.id)}, {codec.sample_rate} Hz, {'stereo' if codec.channels == 2 else 'mono'}",
        "codec's weights, SHA-256": codec.sha256,
        "files of the corpus left out": len(manifest.rejected),
        "toolkit": f"musicgen-ft {manifest.toolkit_version}",
        **({"melody": "its chroma is in each track's chroma.npy"} if manifest.chroma is not None else {}),
    }
    settings = {name: value for name, value in _flat(manifest.config).items() if name not in _NOT_SETTINGS}
    return _table(("", ""), ((name, _setting(value)) for name, value in {**told, **settings}.items()))


def _setting(value: object) -> str:
    return _cell(_published(value) if isinstance(value, str) else json.dumps(value))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a config by dotted names; those that say nothing are left out."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        elif value is not None and value != "":
            found[f"{prefix}{name}"] = value
    return found
