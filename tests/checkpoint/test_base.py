"""Opening a base by name, by folder, by hub id; what a user is told where there is none."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from musicgen_ft.checkpoint import base as base_module
from musicgen_ft.checkpoint.base import Base, build_lm, license_of, open_base, stream_lm
from musicgen_ft.errors import UserError
from musicgen_ft.model.conditioning import TextStates
from musicgen_ft.model.lm import LanguageModel

Hub = Any
"""tests/checkpoint/conftest.py's."""


def states_equal(lm: LanguageModel, other: LanguageModel) -> bool:
    ours, theirs = lm.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# ---- folders ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flavour", ["audiocraft", "transformers"])
def test_a_folder_of_either_format_opens_with_all_its_parts(
    flavour: str, request: pytest.FixtureRequest, toy_lm: LanguageModel, nano_codec: Any, text_encoder: Any
) -> None:
    folder = request.getfixturevalue(f"{flavour}_folder")
    base = open_base(str(folder))
    assert (base.flavour, base.folder) == (flavour, folder)
    assert base.lm_config.text_padding == flavour
    assert states_equal(base.lm(), toy_lm)
    assert base.codec().spec.sha256 == nano_codec.spec.sha256
    expected = text_encoder.encode(["calm piano"]).states
    assert torch.equal(base.text_encoder().encode(["calm piano"]).states, expected)


def test_a_folder_that_holds_both_formats_opens_as_transformers(
    audiocraft_folder: Path, transformers_folder: Path, toy_lm: LanguageModel
) -> None:
    shutil.copytree(audiocraft_folder, transformers_folder, dirs_exist_ok=True)
    base = open_base(str(transformers_folder))
    assert base.flavour == "transformers"
    assert states_equal(base.lm(), toy_lm)


def test_a_config_without_weights_of_its_own_does_not_hide_an_audiocraft_folder(
    audiocraft_folder: Path, transformers_folder: Path
) -> None:
    shutil.copy(transformers_folder / "config.json", audiocraft_folder)
    assert open_base(str(audiocraft_folder)).flavour == "audiocraft"


def test_parts_are_read_when_they_are_asked_for(transformers_folder: Path) -> None:
    (transformers_folder / "model.safetensors").write_bytes(b"damaged")
    base = open_base(str(transformers_folder))
    assert base.lm_config.n_q == 4
    with pytest.raises(UserError, match="damaged"):
        base.lm()


def test_a_model_is_opened_in_fp32_and_trainable(audiocraft_folder: Path) -> None:
    lm = open_base(str(audiocraft_folder)).lm()
    assert {(p.dtype, p.requires_grad, p.device.type) for p in lm.parameters()} == {(torch.float32, True, "cpu")}


@pytest.mark.parametrize("flavour", ["audiocraft", "transformers"])
def test_training_one_model_does_not_change_what_the_base_gives_next(
    flavour: str, request: pytest.FixtureRequest, toy_lm: LanguageModel
) -> None:
    base = open_base(str(request.getfixturevalue(f"{flavour}_folder")))
    for parameter in base.lm().parameters():
        parameter.data += 1.0
    assert states_equal(base.lm(), toy_lm)


def test_a_tensor_of_another_shape_than_the_config_says_is_named(toy_lm: LanguageModel) -> None:
    state = toy_lm.state_dict() | {"heads.2.weight": torch.zeros(5, 24)}
    with pytest.raises(UserError, match=r"here: heads\.2\.weight has shape \(5, 24\), its config says \(256, 24\)"):
        build_lm(toy_lm.config, state, where="here")
    with pytest.raises(UserError, match="here: "):
        stream_lm(toy_lm.config, state, where="here")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@torch.no_grad()
def test_a_streamed_model_computes_the_same_and_has_no_layer_in_memory_before_or_after(
    toy_lm: LanguageModel, make_text: Callable[..., TextStates], dtype: torch.dtype
) -> None:
    config = toy_lm.config
    state = {name: value.to(dtype) for name, value in toy_lm.state_dict().items()}
    codes = torch.randint(config.card, (2, config.n_q, 7), generator=torch.Generator().manual_seed(0))
    text = make_text(3, 2, dim=config.text_dim)
    lm = stream_lm(config, state, where="here")

    for _ in range(2):  # its layers can be read again
        assert all(value.is_meta for value in lm.layers.parameters())
        assert not any(value.is_meta for name, value in lm.named_parameters() if not name.startswith("layers."))
        found, expected = lm.predict(codes, text), build_lm(config, state, where="here").eval().predict(codes, text)
        torch.testing.assert_close(found.logits, expected.logits, rtol=0, atol=0, equal_nan=True)
    assert all(value.is_meta for value in lm.layers.parameters())


def test_a_folder_without_a_musicgen_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no MusicGen base"):
        open_base(str(tmp_path))


@pytest.mark.parametrize("name", ["nanoo", "./missing", "/no/where", "~/no-where-at-all", "a/b/c"])
def test_a_name_that_can_be_no_hub_id_is_refused_at_once(name: str) -> None:
    with pytest.raises(UserError, match="no such folder, and no hub id"):
        open_base(name)


def test_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "state_dict.bin"
    file.touch()
    with pytest.raises(UserError, match="no such folder"):
        open_base(str(file))


# ---- the licence -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "card", "expected"),
    [
        ("nano", None, "mit"),
        ("facebook/musicgen-small", None, "cc-by-nc-4.0"),
        ("someone/else", None, "unknown"),
        ("folder", "---\ntags: [x]\nlicense: apache-2.0\n---\n# Card\n", "apache-2.0"),
        ("facebook/musicgen-small", "---\nlicense: cc-by-nc-4.0\n---\n", "cc-by-nc-4.0"),
        ("folder", "# A card without front matter\n", "unknown"),
    ],
)
def test_the_licence_is_what_the_card_says(tmp_path: Path, name: str, card: str | None, expected: str) -> None:
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    assert license_of(Base(name, tmp_path, "transformers")) == expected


# ---- the hub ---------------------------------------------------------------------------------------------------------


def test_a_base_of_the_hub_is_fetched_once_and_then_taken_from_the_cache(
    hub: Hub, go_offline: Callable[[], None], transformers_folder: Path, toy_lm: LanguageModel
) -> None:
    hub.repos["someone/toy"] = transformers_folder
    assert states_equal(open_base("someone/toy").lm(), toy_lm)
    assert "model.safetensors" in hub.downloads()
    assert len(set(hub.downloads())) == len(hub.downloads())

    downloads = hub.downloads()
    open_base("someone/toy")
    assert hub.downloads() == downloads

    go_offline()
    hub.requests.clear()
    base = open_base("someone/toy")
    assert states_equal(base.lm(), toy_lm)
    assert hub.requests == []


def test_only_the_weights_that_will_be_read_are_fetched(
    hub: Hub, audiocraft_folder: Path, transformers_folder: Path
) -> None:
    for file in audiocraft_folder.glob("*.bin"):
        shutil.copy(file, transformers_folder)
    (transformers_folder / "pytorch_model.bin").write_bytes(b"the same once more")
    hub.repos["someone/both"] = transformers_folder
    assert open_base("someone/both").flavour == "transformers"
    assert [name for name in hub.downloads() if name.endswith((".bin", ".safetensors"))] == ["model.safetensors"]


def test_an_audiocraft_base_of_the_hub_opens_offline_afterwards(
    hub: Hub, go_offline: Callable[[], None], audiocraft_folder: Path
) -> None:
    hub.repos["someone/old"] = audiocraft_folder
    shutil.move(audiocraft_folder / "t5", audiocraft_folder.parent / "t5")
    base = open_base("someone/old")
    assert (base.flavour, hub.downloads()) == ("audiocraft", ["compression_state_dict.bin", "state_dict.bin"])
    go_offline()
    assert open_base("someone/old").folder == base.folder


def test_a_cached_base_opens_when_the_network_is_gone(
    hub: Hub, cut_network: Callable[[], None], transformers_folder: Path, toy_lm: LanguageModel
) -> None:
    hub.repos["someone/toy"] = transformers_folder
    open_base("someone/toy")
    cut_network()
    assert states_equal(open_base("someone/toy").lm(), toy_lm)


def test_the_token_goes_to_the_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch, transformers_folder: Path) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    hub.repos["someone/private"] = transformers_folder
    open_base("someone/private")
    assert {authorization for _, _, authorization in hub.requests} == {"Bearer hf_secret"}


def test_without_a_token_none_is_sent(hub: Hub, transformers_folder: Path) -> None:
    hub.repos["someone/public"] = transformers_folder
    open_base("someone/public")
    assert {authorization for _, _, authorization in hub.requests} == {None}


def test_an_unknown_id_is_told_with_the_hubs_answer(hub: Hub) -> None:
    with pytest.raises(UserError, match=r"someone/nothing: the hub answered 404 .* Check the spelling") as caught:
        open_base("someone/nothing")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("status", "code"), [(401, "RepoNotFound"), (401, "GatedRepo"), (403, "GatedRepo")])
def test_a_private_or_gated_base_is_told_with_the_hubs_answer(hub: Hub, status: int, code: str) -> None:
    hub.refused["someone/gated"] = (status, code)
    with pytest.raises(UserError, match=f"the hub answered {status} .*hf auth login"):
        open_base("someone/gated")


def test_a_repository_without_weights_is_told(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "README.md").write_text("empty")
    hub.repos["someone/empty"] = tmp_path / "repo"
    with pytest.raises(UserError, match=r"holds no weights of a MusicGen, only \['README\.md'\]"):
        open_base("someone/empty")


def test_without_a_network_a_base_that_is_not_cached_is_told(hub: Hub, cut_network: Callable[[], None]) -> None:
    cut_network()
    with pytest.raises(UserError, match=r"neither a folder nor in the local cache .* the hub cannot be reached"):
        open_base("someone/toy")


def test_offline_a_base_that_is_not_cached_is_told(hub: Hub, go_offline: Callable[[], None]) -> None:
    go_offline()
    with pytest.raises(UserError, match=r"neither a folder nor in the local cache .* HF_HUB_OFFLINE is set"):
        open_base("someone/toy")
    assert hub.requests == []


@pytest.mark.parametrize("cut", ["go_offline", "cut_network"])
def test_a_download_that_was_interrupted_is_told(
    hub: Hub, cut: str, request: pytest.FixtureRequest, transformers_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos["someone/toy"] = transformers_folder
    with monkeypatch.context() as patch:
        patch.setattr(base_module, "_hub_names", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            open_base("someone/toy")  # configs are in the cache, weights are not
    request.getfixturevalue(cut)()
    with pytest.raises(UserError, match="someone/toy is neither a folder nor in the local cache"):
        open_base("someone/toy")


def test_a_hub_that_fails_is_told_as_unreachable(hub: Hub) -> None:
    hub.refused["someone/toy"] = (500, "Internal")
    with pytest.raises(UserError, match=r"someone/toy .* the hub cannot be reached"):
        open_base("someone/toy")


def test_an_id_that_the_hub_would_not_take_is_told(hub: Hub) -> None:
    with pytest.raises(UserError, match="neither a folder nor a valid hub id"):
        open_base("some one/to y")


def run_process(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_the_environment_alone_sets_hub_cache_token_and_offline_switch(
    hub: Hub, transformers_folder: Path, tmp_path: Path
) -> None:
    hub.repos["someone/toy"] = transformers_folder
    program = "from musicgen_ft.checkpoint.base import open_base; print(open_base('someone/toy').folder)"
    environment = {"HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_TOKEN": "hf_secret"}

    online = run_process(program, **environment, HF_HUB_OFFLINE="0")
    assert online.stdout.startswith(str(tmp_path / "cache")), online.stderr
    assert {authorization for _, path, authorization in hub.requests if "toy" in path} == {"Bearer hf_secret"}

    hub.requests.clear()
    offline = run_process(program, **environment, HF_HUB_OFFLINE="1")
    assert offline.stdout == online.stdout, offline.stderr
    assert hub.requests == []


@pytest.mark.network
def test_a_released_base_opens(tmp_path: Path) -> None:
    """Fetches 2.4 GB: run it by hand."""
    program = (
        "from musicgen_ft.checkpoint.base import open_base as o; b = o('facebook/musicgen-small'); b.lm(); b.codec()"
    )
    done = run_process(program, HF_HUB_CACHE=str(tmp_path), HF_HUB_OFFLINE="0")
    assert done.returncode == 0, done.stderr
