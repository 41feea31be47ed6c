"""Claims about separating stems: equal to demucs' own, in memory that does not grow; nothing that a file holds runs."""

import functools
import gc
import importlib.util
import json
import pickle
from collections.abc import Iterable, Iterator
from fractions import Fraction
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.error import URLError

import huggingface_hub
import numpy as np
import pytest
import soxr
import torch
import yaml
from huggingface_hub.errors import LocalEntryNotFoundError
from omegaconf import OmegaConf
from safetensors.torch import save_file

from musicgen_ft import demucs_models, stems
from musicgen_ft.audio import Samples
from musicgen_ft.errors import UserError
from musicgen_ft.stems import Separator, converted

demucs_apply = pytest.importorskip("demucs.apply")
from demucs import hf, pretrained, states  # noqa: E402
from demucs.demucs import Demucs  # noqa: E402
from demucs.hdemucs import HDemucs  # noqa: E402
from demucs.htdemucs import HTDemucs  # noqa: E402

demucs_states: Any = states  # untyped
RATE = 44100
SOURCES = ["drums", "bass", "other", "vocals"]
WINDOW = 8820  # samples: 0.2 s, and 6615 from one window to the next
STRIDE = 6615


def ht_demucs(seed: int = 0, segment: Any = Fraction(1, 5)) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes: dict[str, Any] = {"channels": 8, "depth": 2, "nfft": 512, "t_layers": 1, "t_heads": 2}
        return HTDemucs(sources=SOURCES, bottom_channels=8, segment=segment, **sizes).eval()


def other_demucs(kind: str) -> Any:
    """The older models: their windows are as long as they are told, or see what lies around."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        if kind == "Demucs":
            sizes: dict[str, Any] = {"channels": 4, "depth": 3, "lstm_layers": 0, "segment": Fraction(1, 5)}
            return Demucs(sources=SOURCES, **sizes).eval()
        sizes = {"channels": 4, "depth": 6, "segment": Fraction(1, 2)}
        return HDemucs(sources=SOURCES, **sizes).eval()


def package(model: Any, *, half: bool = True) -> dict[str, Any]:
    """What demucs itself saves; released files have numbers of numpy's in their training's settings."""
    saved: dict[str, Any] = demucs_states.serialize_model(model, OmegaConf.create({"epochs": 3}), half=half)
    saved["training_args"]["best"] = np.float64(0.25)
    return saved


def write_th(folder: Path, model: Any, signature: str = "aaaa1111", *, half: bool = True) -> Path:
    demucs_states.save_with_checksum(package(model, half=half), folder / f"{signature}.th")
    (path,) = folder.glob(f"{signature}-*.th")
    return path


def write_safetensors(path: Path, model: Any) -> Path:
    """As the Hugging Face hub has it."""
    args, kwargs = model._init_args_kwargs
    segment = kwargs["segment"]
    coded = {"_type": "fraction", "numerator": segment.numerator, "denominator": segment.denominator}
    metadata = {
        "klass": f"{type(model).__module__}.{type(model).__qualname__}",
        "args": json.dumps(args),
        "kwargs": json.dumps({**kwargs, "segment": coded}),
    }
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, path, metadata)
    return path


def noise(num_samples: int, channels: int = 2, seed: int = 5) -> Samples:
    drawn = np.random.default_rng(seed).standard_normal((channels, num_samples)).astype(np.float32)
    return np.asarray(0.3 * drawn * np.linspace(1, 0.2, num_samples, dtype=np.float32))


def cut(samples: Samples, size: int) -> Iterator[Samples]:
    for start in range(0, samples.shape[1], size):
        yield samples[:, start : start + size]


def joined(blocks: Iterable[Samples]) -> Samples:
    return np.concatenate(list(blocks), axis=1)


def whole(model: Any, samples: Samples, wanted: list[str]) -> Samples:
    """demucs' own separation of the whole track, and the sum of some stems."""
    separated = demucs_apply.apply_model(model, torch.from_numpy(samples)[None], shifts=0)
    summed: Samples = separated[:, [model.sources.index(name) for name in wanted]].sum(1)[0].numpy()
    return summed


# ---- separating ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_samples", [1, 100, STRIDE, WINDOW - 1, WINDOW, WINDOW + 1, 2 * STRIDE, 40_001])
@pytest.mark.parametrize("size", [977, 30_000])
def test_a_track_in_blocks_gives_what_demucs_gives_for_the_whole(num_samples: int, size: int) -> None:
    model, samples = ht_demucs(), noise(num_samples)

    found = joined(Separator(model).stems(cut(samples, size), ["vocals", "other"]))

    expected = whole(model, samples, ["vocals", "other"])
    assert np.abs(expected).max() > (0.01 if num_samples > 1 else 1e-3)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", ["Demucs", "HDemucs"])
@pytest.mark.parametrize("num_samples", [5000, 50_001])
def test_so_it_does_with_the_older_models(kind: str, num_samples: int) -> None:
    model, samples = other_demucs(kind), noise(num_samples)

    found = joined(Separator(model).stems(cut(samples, 9001), ["bass"]))

    np.testing.assert_array_equal(found, whole(model, samples, ["bass"]))


def test_a_window_of_another_length_gives_another_result() -> None:
    """Else the tests above could not tell a wrong window from a right one."""
    samples = noise(40_001)
    first, second = (
        joined(Separator(ht_demucs(segment=segment)).melody([samples])) for segment in (Fraction(1, 5), Fraction(1, 4))
    )
    assert np.abs(first - second).max() > 0.01


def test_the_melody_is_all_but_drums_and_bass_and_the_instrumental_all_but_vocals() -> None:
    separator, samples = Separator(ht_demucs()), noise(20_000)
    drums, bass, other, vocals = (joined(separator.stems([samples], [name])) for name in SOURCES)

    np.testing.assert_allclose(joined(separator.melody([samples])), other + vocals, atol=1e-6)
    np.testing.assert_allclose(joined(separator.instrumental([samples])), drums + bass + other, atol=1e-6)
    assert (separator.sample_rate, separator.channels, separator.sources) == (RATE, 2, tuple(SOURCES))


def test_one_channel_counts_for_both_and_three_are_refused() -> None:
    separator, samples = Separator(ht_demucs()), noise(20_000, channels=1)

    found = joined(separator.melody([samples]))

    np.testing.assert_array_equal(found, joined(separator.melody([samples.repeat(2, axis=0)])))
    with pytest.raises(ValueError, match=r"shape \[3, 20\]"):
        next(separator.melody([noise(20, channels=3)]))


def test_no_samples_give_none() -> None:
    assert list(Separator(ht_demucs()).melody([])) == []


def test_a_stem_that_the_model_does_not_know_is_told() -> None:
    separator = Separator(ht_demucs())
    with pytest.raises(UserError, match="separates drums, bass, other, vocals: it has no piano"):
        next(separator.stems([noise(10)], ["vocals", "piano"]))


def bytes_of_tensors() -> int:
    storages = (value.untyped_storage() for value in gc.get_objects() if type(value) is torch.Tensor)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


@pytest.mark.parametrize("num_models", [1, 2])
def test_memory_does_not_grow_with_the_track(num_models: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held while a track is read, and how far it is read ahead of what was given out."""
    monkeypatch.setattr(stems, "_BLOCK_S", 0.1)
    models = [ht_demucs(), ht_demucs(1, Fraction(1, 4))]
    separator = Separator(demucs_apply.BagOfModels(models[:num_models]))

    before = bytes_of_tensors()

    def held(num_blocks: int) -> tuple[int, int]:
        num_read = num_given = 0

        def blocks() -> Iterator[Samples]:
            nonlocal num_read
            for seed in range(num_blocks):
                num_read += 4000
                yield noise(4000, seed=seed)

        most_bytes = most_ahead = 0
        for number, piece in enumerate(separator.melody(blocks())):
            num_given += piece.shape[1]
            if number % 3 == 0:
                most_bytes = max(most_bytes, bytes_of_tensors() - before)
            most_ahead = max(most_ahead, num_read - num_given)
        assert num_given == num_read == 4000 * num_blocks
        return most_bytes, most_ahead

    short, long = held(8), held(24)

    assert 100_000 < long[0] < 1.3 * short[0]
    assert long[1] <= short[1] + 4000 <= 40_000


# ---- opening ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", [True, False])
def test_a_file_of_demucs_opens_to_what_demucs_makes_of_it(tmp_path: Path, half: bool) -> None:
    path, samples = write_th(tmp_path, ht_demucs(), half=half), noise(20_000)
    expected = whole(pretrained.get_model("aaaa1111", repo=tmp_path), samples, ["vocals", "other"])

    for place in (path, tmp_path):
        np.testing.assert_array_equal(joined(Separator.open(str(place)).melody([samples])), expected)


def test_a_bag_of_models_is_their_weighted_mean(tmp_path: Path) -> None:
    write_th(tmp_path, ht_demucs(0), "aaaa1111")
    write_th(tmp_path, ht_demucs(1, Fraction(1, 4)), "bbbb2222")
    bag = {"models": ["aaaa1111", "bbbb2222"], "weights": [[1.0, 0.5, 2.0, 0.0], [0.0, 1.0, 1.5, 1.0]]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(bag))
    model, samples = pretrained.get_model("mine", repo=tmp_path), noise(33_333)

    found = joined(Separator.open(str(tmp_path)).stems(cut(samples, 5000), SOURCES))

    np.testing.assert_allclose(found, whole(model, samples, SOURCES), atol=1e-6)
    np.testing.assert_array_equal(
        joined(Separator.open(str(tmp_path)).stems([samples], ["vocals"])), whole(model, samples, ["vocals"])
    )


def test_the_files_of_the_hub_open_to_what_demucs_makes_of_them(tmp_path: Path) -> None:
    path, samples = write_safetensors(tmp_path / "cccc3333.safetensors", ht_demucs(3)), noise(20_000)
    expected = whole(hf.load_safetensors_model(path).eval(), samples, ["vocals", "other"])

    np.testing.assert_array_equal(joined(Separator.open(str(path)).melody([samples])), expected)


def test_opening_draws_no_random_numbers(tmp_path: Path) -> None:
    path, before = write_th(tmp_path, ht_demucs()), torch.get_rng_state()
    Separator.open(str(path))
    assert torch.equal(torch.get_rng_state(), before)


class Runs:
    """A pickle that calls a function when it is opened."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("where", ["klass", "args", "kwargs", "state", "training_args"])
def test_a_file_that_would_run_something_is_refused(tmp_path: Path, where: str) -> None:
    trace = tmp_path / "trace"
    evil = {**package(ht_demucs()), where: Runs(Path.touch, trace)}
    torch.save(evil, tmp_path / "evil.th")
    torch.load(tmp_path / "evil.th", weights_only=False)
    assert trace.exists()  # it would
    trace.unlink()

    with pytest.raises(UserError, match=r"evil\.th holds pickled objects other than tensors"):
        Separator.open(str(tmp_path / "evil.th"))

    assert not trace.exists()


@pytest.mark.parametrize("function", [functools.partial, np.frombuffer, HTDemucs.load_state_dict, eval])
def test_nor_may_it_call_what_lies_near(tmp_path: Path, function: Any) -> None:
    torch.save({**package(ht_demucs()), "args": Runs(function, "1")}, tmp_path / "evil.th")
    with pytest.raises(UserError, match="Nothing is ever unpickled"):
        Separator.open(str(tmp_path / "evil.th"))


def test_a_model_in_a_file_is_not_made_by_its_pickle(tmp_path: Path) -> None:
    """The class's name is allowed; calling it gives nothing but a stand-in, which is no model."""
    made: list[object] = []
    torch.save({**package(ht_demucs()), "klass": Runs(HTDemucs, SOURCES)}, tmp_path / "evil.th")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HTDemucs, "__init__", lambda self, *args, **kwargs: made.append(self))
        with pytest.raises(UserError, match="holds no model of demucs'"):
            Separator.open(str(tmp_path / "evil.th"))
    assert made == []


@pytest.mark.parametrize("missing", ["klass", "args", "kwargs", "state"])
@pytest.mark.parametrize("instead", [None, Fraction(1, 2), [3], {"sources": [], "depth": 0}])
def test_a_file_without_a_model_is_told(tmp_path: Path, missing: str, instead: Any) -> None:
    content = {key: value for key, value in package(ht_demucs()).items() if key != missing}
    if instead is not None:
        content[missing] = instead
    torch.save(content, tmp_path / "no.th")
    with pytest.raises(UserError, match=r"no\.th holds no model of demucs'[^\n]*$"):
        Separator.open(str(tmp_path / "no.th"))


def test_a_quantised_model_is_refused(tmp_path: Path) -> None:
    torch.save({**package(ht_demucs()), "state": {"__quantized": True}}, tmp_path / "q.th")
    with pytest.raises(UserError, match="a quantised model"):
        Separator.open(str(tmp_path / "q.th"))


def test_damaged_files_are_told(tmp_path: Path) -> None:
    path = write_th(tmp_path, ht_demucs())
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="its sha256 does not begin with"):
        Separator.open(str(path))
    with pytest.raises(UserError, match="damaged"):
        Separator.open(str(path.rename(tmp_path / "cut.th")))

    (tmp_path / "cut.safetensors").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="is damaged, or holds no model"):
        Separator.open(str(tmp_path / "cut.safetensors"))
    model = write_safetensors(tmp_path / "other.safetensors", ht_demucs())
    metadata = {"klass": "subprocess.Popen", "args": '["true"]', "kwargs": "{}"}
    save_file({"a": torch.zeros(2)}, model, metadata)
    with pytest.raises(UserError, match=r"class subprocess\.Popen"):
        Separator.open(str(model))


def test_a_folder_of_several_models_without_a_list_is_told(tmp_path: Path) -> None:
    write_th(tmp_path, ht_demucs(0), "aaaa1111")
    write_th(tmp_path, ht_demucs(1), "bbbb2222")
    with pytest.raises(UserError, match="holds 2 models"):
        Separator.open(str(tmp_path))

    (tmp_path / "mine.yaml").write_text("models: [aaaa1111, dddd4444]")
    with pytest.raises(UserError, match="lacks the model dddd4444"):
        Separator.open(str(tmp_path))
    for text in ("models: 3", "[]", "weights: [[1]]", "a: [", "models: [aaaa1111]\nweights: [[1, 2]]", "models: []"):
        (tmp_path / "mine.yaml").write_text(text)
        with pytest.raises(UserError, match=r"mine\.yaml lists"):
            Separator.open(str(tmp_path))


# ---- released models -------------------------------------------------------------------------------------------------


@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A release of a tiny model, as demucs lists its own, on a server that is a folder; no hub, and empty caches."""
    server = tmp_path / "server" / "tiny_models"
    server.mkdir(parents=True)
    path = write_th(server, ht_demucs(7))
    listing = tmp_path / "remote"
    listing.mkdir()
    (listing / "tiny.yaml").write_text("models: ['aaaa1111']")
    (listing / "tiny_q.yaml").write_text("models: ['eeee5555']")
    (listing / "files.txt").write_text(f"# models\nroot: elsewhere/\nffff6666-00.th\nroot: tiny_models/\n{path.name}\n")
    monkeypatch.setattr(pretrained, "REMOTE_ROOT", listing)
    monkeypatch.setattr(pretrained, "ROOT_URL", f"{(tmp_path / 'server').as_uri()}/")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)

    def unreachable(repo_id: str, file: str) -> str:
        raise LocalEntryNotFoundError(f"no {file} of {repo_id}")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    return path


def melody_of(place: str) -> Samples:
    return joined(Separator.open(place).melody([noise(20_000)]))


def test_a_name_is_fetched_into_the_cache_that_demucs_uses_and_then_found_there(released: Path, tmp_path: Path) -> None:
    expected = melody_of(str(released))

    np.testing.assert_array_equal(melody_of("tiny"), expected)

    cached = tmp_path / "torch" / "hub" / "checkpoints" / released.name
    assert cached.read_bytes() == released.read_bytes()
    released.unlink()
    np.testing.assert_array_equal(melody_of("tiny"), expected)


def test_a_name_is_fetched_from_the_hub_where_it_can_be(
    released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_safetensors(tmp_path / "aaaa1111.safetensors", ht_demucs(8))
    asked: list[tuple[str, str]] = []

    def download(repo_id: str, file: str) -> str:
        asked.append((repo_id, file))
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)

    np.testing.assert_array_equal(melody_of("tiny"), melody_of(str(path)))

    assert asked == [("adefossez/Demucs-tiny", "aaaa1111.safetensors")]


def test_a_fetched_file_with_another_checksum_is_refused(released: Path, tmp_path: Path) -> None:
    released.write_bytes(b"something else")
    with pytest.raises(UserError, match=r"tiny is neither in the caches .*\(invalid hash value"):
        Separator.open("tiny")
    assert not list((tmp_path / "torch" / "hub" / "checkpoints").iterdir())


def test_without_a_network_the_message_says_what_to_do(released: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise URLError("unreachable")

    monkeypatch.setattr(torch.hub, "download_url_to_file", no_network)
    with pytest.raises(UserError, match=r"^demucs' model tiny is neither in .*unreachable.*give its file or folder\.$"):
        Separator.open("tiny")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"no aaaa1111\.safetensors of adefossez/Demucs-tiny"):
        Separator.open("tiny")


def test_an_unknown_name_is_told_with_those_that_are_known(released: Path) -> None:
    for name in ("htdemux", "tiny_q", "models/mine.th"):
        with pytest.raises(UserError, match=rf"^{name} is neither .* which are tiny\. Use htdemucs\.$"):
            Separator.open(name)


def test_the_released_names_of_the_installed_demucs_are_all_listed_with_a_checksum() -> None:
    bags = [yaml.safe_load(path.read_text()) for path in pretrained.REMOTE_ROOT.glob("*.yaml")]
    urls = [demucs_models._url(signature) for bag in bags for signature in bag["models"]]
    assert len(urls) >= 20
    assert all(len(demucs_models._checksum(Path(url))) == 8 for url in urls)
    assert demucs_models._url("955717e8").endswith("/hybrid_transformer/955717e8-8726e21a.th")


def test_where_demucs_is_not_installed_the_message_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"demucs 4\.1 or later, which is not installed\. pip install"):
        Separator.open()


# ---- rate and channels -----------------------------------------------------------------------------------------------


def test_blocks_are_converted_as_a_whole_track_is() -> None:
    samples = noise(100_003)

    found = joined(converted(cut(samples, 7001), from_rate=RATE, to_rate=32000, channels=1))

    expected = soxr.resample(samples.mean(axis=0), RATE, 32000, quality="HQ")
    assert abs(found.shape[1] - 100_003 * 32000 / RATE) <= 1
    np.testing.assert_allclose(found[0], expected[: found.shape[1]], atol=1e-5)


def test_channels_are_kept_or_repeated() -> None:
    stereo, mono = noise(5000), noise(5000, channels=1)
    np.testing.assert_array_equal(joined(converted([stereo], from_rate=8000, to_rate=8000, channels=2)), stereo)
    np.testing.assert_array_equal(
        joined(converted([mono], from_rate=8000, to_rate=8000, channels=2)), mono.repeat(2, axis=0)
    )
    with pytest.raises(ValueError, match="2 channels, expected 1 or 3"):
        list(converted([stereo], from_rate=8000, to_rate=8000, channels=3))


def test_the_package_of_demucs_is_pickled_as_these_tests_say(tmp_path: Path) -> None:
    """The name of a file ends with its checksum, and its pickle names the class, a fraction and numpy's numbers."""
    path = write_th(tmp_path, ht_demucs())
    assert sha256(path.read_bytes()).hexdigest()[:8] == path.stem.partition("-")[2]
    assert sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path)) == [
        "demucs.htdemucs.HTDemucs",
        "fractions.Fraction",
        "numpy._core.multiarray.scalar",
        "numpy.dtype",
    ]
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
