"""Adapters blended into a model that plays: the bits of a merged export, whatever played before; refusals."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.errors import UserError
from musicgen_ft.generation.adapters import AdapterMixer, blended, parse_adapters
from musicgen_ft.generation.decode import Conditions, Engine, Piece
from musicgen_ft.generation.decoder import Decoder
from musicgen_ft.generation.precision import Precision
from musicgen_ft.generation.sampling import Sampling
from musicgen_ft.model.conditioning import TextStates
from musicgen_ft.model.lm import LanguageModel
from musicgen_ft.model.lora import AdapterSpec, adapter_spec, choose_trained, merged, touched_weights
from musicgen_ft.training.ema import trainable

MakeLM = Callable[..., LanguageModel]
State = dict[str, Tensor]
Trained = tuple[State, AdapterSpec]

METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "lora_targets": ("layers.*.fc1", "layers.0.self_attn"), "lora_rank": 2},
    "dora": {"method": "dora", "lora_targets": ("layers.1", "heads.2"), "lora_rank": 3, "lora_alpha": 5.0},
    "whole": {"method": "lora", "lora_targets": ("*_proj",), "lora_whole": ("out_norm", "embeddings.1", "heads.2")},
}


@pytest.fixture(scope="module")
def base(make_lm: MakeLM) -> State:
    return {name: value.clone() for name, value in make_lm().state_dict().items()}


@pytest.fixture(scope="module")
def adapters(make_lm: MakeLM) -> dict[str, Trained]:
    """What runs would have trained: their modules overlap."""
    return {name: trained(make_lm(), seed, **METHODS[name]) for seed, name in enumerate(METHODS)}


@pytest.fixture
def mixer(make_lm: MakeLM, base: State, adapters: dict[str, Trained]) -> AdapterMixer:
    return loaded(make_lm(), base, adapters)


def trained(lm: LanguageModel, seed: int, **changes: Any) -> Trained:
    config = FinetuneConfig(**changes)
    choose_trained(lm, config)
    generator = torch.Generator().manual_seed(seed)
    spec = adapter_spec(config)
    assert spec is not None
    return {n: p.detach() + 0.1 * torch.randn(p.shape, generator=generator) for n, p in trainable(lm)}, spec


def loaded(lm: LanguageModel, base: State, adapters: dict[str, Trained]) -> AdapterMixer:
    mixer = AdapterMixer(lm, base)
    for name, (tensors, spec) in adapters.items():
        mixer.add(name, tensors, spec)
    return mixer


def playing(mixer: AdapterMixer) -> State:
    return {name: value.clone() for name, value in mixer._lm.state_dict().items()}


def equal(found: State, expected: State) -> bool:
    assert found.keys() == expected.keys()
    return all(torch.equal(found[name], value) for name, value in expected.items())


# ---- bits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_adapter_at_strength_1_is_a_merged_export(
    make_lm: MakeLM, base: State, adapters: dict[str, Trained], name: str, dtype: torch.dtype
) -> None:
    """Rounded once, from fp32, to the bit; no other weight is touched."""
    mixer = loaded(make_lm().to(dtype), base, adapters)
    mixer.blend({name: 1.0})

    export = merged(base, *adapters[name])
    assert equal(playing(mixer), {weight: export[weight].to(dtype) for weight in export})
    changed = {weight for weight in base if not torch.equal(playing(mixer)[weight], base[weight].to(dtype))}
    assert changed == set(touched_weights(adapters[name][0]))


def test_what_played_before_leaves_no_trace(mixer: AdapterMixer, base: State, adapters: dict[str, Trained]) -> None:
    blends: list[dict[str, float]] = [
        {},
        {"lora": 1.0},
        {"dora": 1.0, "whole": 0.3},
        {"whole": -0.5, "lora": 1.7, "dora": 0.25},
    ]
    first = []
    for strengths in blends:
        mixer.blend(strengths)
        first.append(playing(mixer))
        mixer.blend({})
        assert equal(playing(mixer), base)
    for before, after in itertools.permutations(range(len(blends)), 2):
        mixer.blend(blends[before])
        mixer.blend(dict(reversed(blends[after].items())))
        assert equal(playing(mixer), first[after])
        assert mixer.strengths == blends[after]
    assert not any(equal(one, other) for one, other in itertools.combinations(first, 2))


def test_a_strength_of_0_is_not_to_play(mixer: AdapterMixer) -> None:
    mixer.blend({"dora": 1.0})
    alone = playing(mixer)
    mixer.blend({"lora": 0.0, "dora": 1.0, "whole": -0.0})
    assert equal(playing(mixer), alone)
    assert mixer.strengths == {"dora": 1.0}


@settings(max_examples=25, deadline=None)
@given(strengths=st.lists(st.floats(-2, 2, allow_subnormal=False), min_size=3, max_size=3))
def test_every_weight_is_the_base_and_each_change_times_its_strength(
    make_lm: MakeLM, base: State, adapters: dict[str, Trained], strengths: list[float]
) -> None:
    mixer = loaded(make_lm(), base, adapters)
    mixer.blend(dict(zip(adapters, strengths, strict=True)))

    found = playing(mixer)
    for weight, value in base.items():
        expected = value.double()
        for strength, (tensors, spec) in zip(strengths, adapters.values(), strict=True):
            expected = expected + strength * (merged(base, tensors, spec)[weight].double() - value.double())
        torch.testing.assert_close(found[weight].double(), expected, rtol=0, atol=2e-6)


def test_weights_are_changed_in_place(mixer: AdapterMixer, adapters: dict[str, Trained]) -> None:
    """A captured graph reads the memory that it was captured with."""
    pointers = {name: value.data_ptr() for name, value in mixer._lm.named_parameters()}
    mixer.blend({"lora": 1.0, "dora": 0.5})
    mixer.blend({"whole": 1.0})
    assert {name: value.data_ptr() for name, value in mixer._lm.named_parameters()} == pointers


def packed_codes(decoder: Decoder, make_text: Callable[..., TextStates]) -> Tensor:
    text = make_text(5)
    conditions = Conditions(TextStates(text.states.to(decoder.device), text.mask.to(decoder.device)))
    (codes,) = Engine(decoder).codes(conditions, [Piece(num_frames=40, seed=3, sampling=Sampling(top_k=0))])
    return codes


@pytest.mark.parametrize(
    ("device", "precision"),
    [("cpu", "fp32"), *(pytest.param("cuda", p, marks=pytest.mark.gpu) for p in ("fp32", "fp16"))],
)
def test_packed_weights_play_what_is_blended_with_the_bits_of_what_was_merged_before(
    make_lm: MakeLM,
    make_text: Callable[..., TextStates],
    base: State,
    adapters: dict[str, Trained],
    device: str,
    precision: Precision,
) -> None:
    decoder = Decoder(make_lm().to(device), precision)
    mixer = loaded(decoder.lm, base, adapters)
    heard = []
    for strengths in ({"lora": 1.0}, {}, {"dora": 0.5, "whole": -1.0}, {"whole": 1.0}, {}):
        mixer.blend(strengths)
        found = packed_codes(decoder, make_text)
        before = make_lm()
        loaded(before, base, adapters).blend(strengths)
        fresh = Decoder(before.to(device), precision)
        assert torch.equal(found, packed_codes(fresh, make_text)), strengths
        heard.append(found)
    assert torch.equal(heard[1], heard[4])
    assert len({tuple(codes.flatten().tolist()) for codes in heard}) == 4


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_a_blend_into_weights_that_are_packed_out_of_reach_is_refused(
    make_lm: MakeLM, base: State, adapters: dict[str, Trained], precision: Precision
) -> None:
    decoder = Decoder(make_lm(), precision)
    with pytest.raises(ValueError, match="packed out of reach"):
        loaded(decoder.lm, base, adapters).blend({"lora": 1.0})


def test_it_keeps_the_weights_that_are_touched_and_no_others(mixer: AdapterMixer, adapters: dict[str, Trained]) -> None:
    touched = {weight for tensors, _ in adapters.values() for weight in touched_weights(tensors)}
    assert set(mixer._pristine) == touched < set(playing(mixer))
    assert mixer.names == ("lora", "dora", "whole")


def test_the_next_blend_mends_one_that_was_interrupted(
    mixer: AdapterMixer, base: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    from musicgen_ft.generation import adapters as module

    real, calls = module.set_weight, itertools.count()

    def fails(lm: LanguageModel, name: str, value: Tensor) -> None:
        real(lm, name, value)
        if next(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "set_weight", fails)
        with pytest.raises(KeyboardInterrupt):
            mixer.blend({"lora": 1.0})
    assert not equal(playing(mixer), base)
    mixer.blend({})
    assert equal(playing(mixer), base)


def test_a_half_precision_base_is_kept_as_it_is_and_blended_in_fp32() -> None:
    base = torch.tensor([0.1, -0.3]).half()
    whole = torch.tensor([0.25, 0.7]).half()
    assert blended(base, []).dtype == torch.float32
    assert torch.equal(blended(base, []), base.float())
    torch.testing.assert_close(blended(base, [(0.5, whole)]), (base.float() + whole.float()) / 2)


@pytest.mark.gpu
def test_the_same_bits_on_a_gpu(make_lm: MakeLM, base: State, adapters: dict[str, Trained]) -> None:
    on_cpu, on_gpu = loaded(make_lm(), base, adapters), loaded(make_lm().to("cuda"), base, adapters)
    for strengths in ({"lora": 1.0}, {"dora": 0.5, "whole": 1.5}, {}):
        on_cpu.blend(strengths)
        on_gpu.blend(strengths)
        assert equal({name: value.cpu() for name, value in playing(on_gpu).items()}, playing(on_cpu))


# ---- refused ---------------------------------------------------------------------------------------------------------


def test_what_cannot_be_blended_is_refused_and_changes_nothing(mixer: AdapterMixer, base: State) -> None:
    mixer.blend({"lora": 1.0})
    before = playing(mixer)
    with pytest.raises(UserError, match=r"adapter jazz: found no such one, there are lora, dora, whole\."):
        mixer.blend({"dora": 1.0, "jazz": 1.0})
    for strength in (float("nan"), float("inf")):
        with pytest.raises(UserError, match=rf"adapter dora: found strength {strength}, expected a finite number"):
            mixer.blend({"dora": strength})
    assert equal(playing(mixer), before)
    assert mixer.strengths == {"lora": 1.0}


def test_an_adapter_that_does_not_fit_is_refused_and_the_others_play(mixer: AdapterMixer, make_lm: MakeLM) -> None:
    other, spec = trained(make_lm(ffn_dim=48), 9, **METHODS["lora"])
    with pytest.raises(UserError, match=r"adapter other: the adapter does not fit the base: layers\.0\.fc1 has "):
        mixer.add("other", other, spec)
    with pytest.raises(UserError, match="adapter lora: there is one of that name"):
        mixer.add("lora", {}, spec)
    assert mixer.names == ("lora", "dora", "whole")
    mixer.blend({"whole": 1.0})


# ---- words -----------------------------------------------------------------------------------------------------------


def test_folders_and_strengths_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c=1", "d=0.5"):
        (tmp_path / name).mkdir()
    found = parse_adapters(["a", "b=0.25", "c=1", f"{tmp_path / 'd=0.5'}=-2e-1"])
    assert found == {Path("a"): 1.0, Path("b"): 0.25, Path("c=1"): 1.0, tmp_path / "d=0.5": -0.2}
    assert parse_adapters([]) == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], r"--adapter nowhere: nowhere is no folder\. Give one that export --format adapter wrote"),
        (["nowhere=0.5"], r"--adapter nowhere=0\.5: nowhere is no folder"),
        (["a=loud"], r"--adapter a=loud: found strength 'loud', expected a number, as in FOLDER=0\.5"),
        (["a="], r"--adapter a=: found strength '', expected a number"),
        (["a=nan"], r"--adapter a=nan: found strength 'nan', expected a number"),
        (["a", "./a=0.5"], r"--adapter \./a=0\.5: a is given twice"),
    ],
)
def test_what_is_no_folder_or_strength_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match=message):
        parse_adapters(words)
