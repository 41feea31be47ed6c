"""Reading and writing weight files; nothing is ever unpickled."""

import io
import json
import pickle
import resource
import stat
import weakref
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from musicgen_ft.errors import UserError
from musicgen_ft.weights import (
    LazyTensors,
    cast,
    from_files,
    like_of,
    read_folder,
    read_pickle,
    write_release,
    write_safetensors,
)

TENSORS = {"decoder.a": torch.arange(6.0).reshape(2, 3), "decoder.b": torch.ones(5), "text.c": torch.zeros(4)}


class Malicious:
    """Makes a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.write_text, (self.target, "executed")


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_foreign_object_is_refused_and_not_executed(tmp_path: Path, is_zip: bool) -> None:
    path, target = tmp_path / "state_dict.bin", tmp_path / "executed"
    torch.save({"best_state": TENSORS, "extra": Malicious(target)}, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(UserError, match=r"state_dict\.bin holds pickled objects other than tensors"):
        read_pickle(path)
    assert not target.exists()
    torch.load(path, weights_only=False)  # the same file does harm where it is unpickled
    assert target.read_text() == "executed"


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_plain_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    path, target = tmp_path / "state_dict.bin", tmp_path / "executed"
    path.write_bytes(pickle.dumps({"a": Malicious(target)}))
    with pytest.raises(UserError, match=r"state_dict\.bin"):
        read_pickle(path)
    assert not target.exists()


@pytest.mark.parametrize("is_zip", [True, False])
def test_tensors_and_plain_values_are_read(tmp_path: Path, is_zip: bool) -> None:
    path = tmp_path / "state_dict.bin"
    content = {"best_state": TENSORS, "xp.cfg": "dim: 3\n", "exported": True, "none": None, "list": [1, 2.5]}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    found = read_pickle(path)
    assert found.keys() == content.keys()
    assert found["list"] == [1, 2.5]
    assert all(torch.equal(found["best_state"][name], value) for name, value in TENSORS.items())


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_cut_checkpoint_is_refused_with_its_name(tmp_path: Path, is_zip: bool, share: float) -> None:
    buffer = io.BytesIO()
    torch.save(TENSORS, buffer, _use_new_zipfile_serialization=is_zip)
    path = tmp_path / "state_dict.bin"
    path.write_bytes(buffer.getvalue()[: int(share * len(buffer.getvalue()))])
    with pytest.raises(UserError, match=r"state_dict\.bin"):
        read_pickle(path)


@pytest.mark.parametrize("content", [b"\x00" * 64, b"not a checkpoint", b"<html>404</html>", b"\x80\x02."])
def test_a_file_that_is_no_checkpoint_is_refused_with_its_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "state_dict.bin"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"state_dict\.bin"):
        read_pickle(path)


def test_a_checkpoint_that_is_no_dictionary_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state_dict.bin"
    torch.save([torch.ones(2)], path)
    with pytest.raises(UserError, match="holds a list, expected a dictionary"):
        read_pickle(path)


# ---- transformers folders --------------------------------------------------------------------------------------------


def write_sharded(folder: Path, *, name: str) -> None:
    """The tensors in two files and an index, as save_pretrained writes large models."""
    stem, suffix = name.split(".")
    parts = {
        f"{stem}-00001-of-00002.{suffix}": ["decoder.a"],
        f"{stem}-00002-of-00002.{suffix}": ["decoder.b", "text.c"],
    }
    for part, keys in parts.items():
        save = save_file if suffix == "safetensors" else torch.save
        save({key: TENSORS[key] for key in keys}, folder / part)
    weight_map = {key: part for part, keys in parts.items() for key in keys}
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_single(folder: Path, *, name: str) -> None:
    save = save_file if name.endswith("safetensors") else torch.save
    save(TENSORS, folder / name)


@pytest.mark.parametrize("write", [write_single, write_sharded])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_tensors_of_a_prefix_are_read_from_every_kind_of_folder(tmp_path: Path, write: Any, name: str) -> None:
    write(tmp_path, name=name)
    found = read_folder(tmp_path, "decoder.")
    assert found.keys() == {"a", "b"}
    assert torch.equal(found["a"], TENSORS["decoder.a"])
    assert read_folder(tmp_path).keys() == TENSORS.keys()


def test_safetensors_come_before_pickles(tmp_path: Path) -> None:
    write_single(tmp_path, name="pytorch_model.bin")
    save_file({"only": torch.ones(1)}, tmp_path / "model.safetensors")
    assert read_folder(tmp_path).keys() == {"only"}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_cut_safetensors_are_refused_with_their_name(tmp_path: Path, share: float) -> None:
    path = tmp_path / "model.safetensors"
    save_file(TENSORS, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"model\.safetensors is damaged or missing"):
        read_folder(tmp_path)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    write_sharded(tmp_path, name="model.safetensors")
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(UserError, match="model-00002-of-00002"):
        read_folder(tmp_path)


def test_a_missing_part_of_pickles_is_named(tmp_path: Path) -> None:
    write_sharded(tmp_path, name="pytorch_model.bin")
    (tmp_path / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(UserError, match="pytorch_model-00002-of-00002"):
        read_folder(tmp_path)


@pytest.mark.parametrize("index", ['{"weight_map": 3}', "{}", "[]", "{"])
def test_a_broken_index_is_named(tmp_path: Path, index: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=r"model\.safetensors\.index\.json"):
        read_folder(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither model\.safetensors nor pytorch_model\.bin"):
        read_folder(tmp_path)


def test_a_foreign_object_in_a_transformers_folder_is_not_executed(tmp_path: Path) -> None:
    target = tmp_path / "executed"
    torch.save({"a": Malicious(target)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="other than tensors"):
        read_folder(tmp_path)
    assert not target.exists()


def test_written_safetensors_read_back_bit_equal_and_are_readable_by_others(tmp_path: Path) -> None:
    tensors = TENSORS | {"half": torch.randn(3, 2).half(), "strided": torch.randn(4, 5).T}
    write_safetensors(tmp_path / "model.safetensors", tensors, {"format": "pt"})
    found = read_folder(tmp_path)
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in tensors.items())
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE((tmp_path / "model.safetensors").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


# ---- written tensor by tensor ----------------------------------------------------------------------------------------

EVERY_KIND = {
    "b.half": torch.randn(3, 2).half(),
    "a.float": torch.randn(4, 1, 5),
    "brain": torch.randn(7).bfloat16(),
    "double": torch.randn(2).double(),
    "long": torch.tensor(3),
    "int": torch.arange(5, dtype=torch.int32),
    "short": torch.arange(6, dtype=torch.int16),
    "char": torch.arange(3, dtype=torch.int8),
    "byte": torch.arange(9, dtype=torch.uint8),
    "bool": torch.tensor([True, False, True]),
    "empty": torch.zeros(0, 4),
    "né": torch.ones(1),
}


def same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == value.dtype and torch.equal(found[name], value) for name, value in expected.items()
    )


def one_at_a_time(tensors: dict[str, Tensor]) -> LazyTensors:
    """Copies of the tensors, each of which must be gone when the next is asked for."""
    given: list[weakref.ref[Tensor]] = []

    def make(name: str) -> Tensor:
        assert not [reference for reference in given if reference() is not None]
        tensor = tensors[name].clone()
        given.append(weakref.ref(tensor))
        return tensor

    return LazyTensors(like_of(tensors), make)


def test_safetensors_have_the_bytes_that_their_library_writes(tmp_path: Path) -> None:
    save_file(EVERY_KIND, tmp_path / "theirs", {"format": "pt"})
    write_safetensors(tmp_path / "ours", one_at_a_time(EVERY_KIND), {"format": "pt"})

    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert same(load_file(tmp_path / "ours"), EVERY_KIND)


@pytest.mark.parametrize("mmap", [True, False])
def test_a_release_is_read_by_torch_as_what_torch_writes(tmp_path: Path, mmap: bool) -> None:
    tensors = EVERY_KIND | {"strided": torch.randn(4, 5).T}
    write_release(tmp_path / "ours.bin", "best_state", one_at_a_time(tensors), {"xp.cfg": "dim: 3\n", "exported": True})

    found = torch.load(tmp_path / "ours.bin", weights_only=True, mmap=mmap)
    assert list(found) == ["best_state", "xp.cfg", "exported"]
    assert (found["xp.cfg"], found["exported"]) == ("dim: 3\n", True)
    assert same(found["best_state"], tensors)
    assert all(value.is_contiguous() and not value.requires_grad for value in found["best_state"].values())
    found["best_state"]["a.float"][0] = 1.0  # its own memory, as of a file that torch wrote


def test_a_release_is_a_sound_zip_archive_whose_tensors_are_aligned(tmp_path: Path) -> None:
    path = tmp_path / "state_dict.bin"
    write_release(path, "best_state", EVERY_KIND, {})

    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert all(record.compress_type == zipfile.ZIP_STORED for record in archive.infolist())
    found = torch.load(path, weights_only=True, mmap=True)["best_state"]
    assert {value.data_ptr() % 64 for value in found.values() if value.numel()} == {0}
    plain = tmp_path / "plain"
    plain.touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def write_as_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    write_safetensors(path, tensors, {})


def write_as_release(path: Path, tensors: Mapping[str, Tensor]) -> None:
    write_release(path, "best_state", tensors, {})


@pytest.mark.parametrize("write", [write_as_safetensors, write_as_release])
def test_a_tensor_other_than_was_announced_is_refused(tmp_path: Path, write: Any) -> None:
    lying = LazyTensors({"a": torch.empty(3, device="meta")}, lambda name: torch.zeros(4))
    with pytest.raises(ValueError, match="announced"):
        write(tmp_path / "file", lying)


@pytest.mark.parametrize("write", [write_as_safetensors, write_as_release])
def test_a_full_disk_is_an_oserror(tmp_path: Path, write: Any) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write(tmp_path / "file", {"a": torch.zeros(5000), "b": torch.zeros(5000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# ---- lazy tensors ----------------------------------------------------------------------------------------------------


def test_lazy_tensors_are_made_when_they_are_asked_for_and_not_before() -> None:
    asked: list[str] = []

    def make(name: str) -> Tensor:
        asked.append(name)
        return TENSORS[name]

    lazy = LazyTensors(like_of(TENSORS), make)
    joined = cast(lazy, torch.float16) | {"decoder.b": torch.zeros(2), "new": torch.ones(3)}
    assert list(joined) == [*TENSORS, "new"]
    assert {name: (tuple(value.shape), value.dtype) for name, value in like_of(joined).items()} == {
        "decoder.a": ((2, 3), torch.float16),
        "decoder.b": ((2,), torch.float32),
        "text.c": ((4,), torch.float16),
        "new": ((3,), torch.float32),
    }
    assert all(value.is_meta for value in like_of(joined).values())
    assert asked == []

    assert torch.equal(joined["decoder.a"], TENSORS["decoder.a"].half())
    assert torch.equal(joined["decoder.b"], torch.zeros(2))
    assert asked == ["decoder.a"]
    with pytest.raises(KeyError):
        joined["nothing"]


def test_files_are_mapped_anew_after_a_part_and_the_old_mapping_is_let_go(tmp_path: Path) -> None:
    tensors = {f"layers.{i}": torch.full((1000,), float(i)) for i in range(20)}
    save_file(tensors, tmp_path / "model.safetensors")
    mappings: list[list[weakref.ref[Tensor]]] = []

    def read() -> Mapping[str, Tensor]:
        assert not [reference for mapping in mappings for reference in mapping if reference() is not None]
        found = read_folder(tmp_path)
        mappings.append([weakref.ref(value) for value in found.values()])
        return found

    lazy = from_files(read, num_parts=4)
    assert all(torch.equal(lazy[name], value) for name, value in tensors.items())
    assert len(mappings) == 4
