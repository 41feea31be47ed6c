"""The tables of names, both ways; that they are the peers' own names is proven in tests/parity."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from musicgen_ft.checkpoint.names import (
    Pair,
    audiocraft_pairs,
    codec_pairs,
    from_ours,
    lazily_from_ours,
    to_ours,
    transformers_pairs,
)
from musicgen_ft.codec import Codec
from musicgen_ft.errors import UserError
from musicgen_ft.model.lm import LanguageModel, LMConfig
from musicgen_ft.weights import LazyTensors, like_of

MakeLM = Callable[..., LanguageModel]
PairsOf = Callable[[LMConfig], list[Pair]]
TABLES = [audiocraft_pairs, transformers_pairs]
SHAPES = [{"num_layers": 1, "n_q": 1, "delays": (0,)}, {}, {"num_layers": 3, "n_q": 2, "delays": (0, 1)}]


def equal(state: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return state.keys() == other.keys() and all(
        torch.equal(value, other[name]) and value.dtype == other[name].dtype for name, value in state.items()
    )


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (value.shape, value.dtype) for name, value in state.items()}


@pytest.mark.parametrize("pairs_of", TABLES)
@pytest.mark.parametrize("changes", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_tensors_come_back_bit_equal_from_their_names(
    make_lm: MakeLM, pairs_of: PairsOf, changes: dict[str, object], dtype: torch.dtype
) -> None:
    lm = make_lm(**changes)
    pairs = pairs_of(lm.config)
    ours = {name: value.to(dtype) for name, value in lm.state_dict().items()}
    theirs = from_ours(ours, pairs)
    assert equal(to_ours(theirs, pairs, where="test"), ours)
    assert equal(from_ours(to_ours(theirs, pairs, where="test"), pairs), theirs)
    assert sum(value.numel() for value in theirs.values()) == sum(value.numel() for value in ours.values())


@pytest.mark.parametrize("pairs_of", TABLES)
def test_each_rule_moves_its_own_tensors_and_no_others(make_lm: MakeLM, pairs_of: PairsOf) -> None:
    lm = make_lm()
    ours = lm.state_dict()
    pairs = pairs_of(lm.config)
    assert sorted(name for pair in pairs for name in pair.ours) == sorted(ours)
    for pair in pairs:
        of_pair = {name: ours[name] for name in pair.ours}
        theirs = from_ours(of_pair, [pair])
        assert tuple(theirs) == pair.theirs
        assert torch.equal(theirs[pair.theirs[0]], torch.cat([ours[name] for name in pair.ours]))
        assert equal(to_ours(theirs, [pair], where="test"), of_pair)


def test_audiocraft_packs_queries_keys_and_values_in_this_order(make_lm: MakeLM) -> None:
    lm = make_lm()
    ours = lm.state_dict()
    packed = from_ours(ours, audiocraft_pairs(lm.config))["transformer.layers.1.cross_attention.in_proj_weight"]
    for part, x in zip(packed.split(24), "qkv", strict=True):
        assert torch.equal(part, ours[f"layers.1.cross_attn.{x}_proj.weight"])


@pytest.mark.parametrize("pairs_of", TABLES)
def test_missing_and_left_over_names_are_listed(make_lm: MakeLM, pairs_of: PairsOf) -> None:
    lm = make_lm()
    pairs = pairs_of(lm.config)
    theirs = from_ours(lm.state_dict(), pairs)
    gone = sorted(theirs)[5]
    del theirs[gone]
    theirs["new.weight"] = torch.zeros(1)
    with pytest.raises(UserError) as caught:
        to_ours(theirs, pairs, where="the/file.bin")
    assert f"the/file.bin does not hold the tensors of a MusicGen of its kind: 1 missing ({gone}); 1 left over" in str(
        caught.value
    )
    assert "(new.weight)" in str(caught.value)


def test_a_long_list_of_names_is_cut(make_lm: MakeLM) -> None:
    lm = make_lm()
    with pytest.raises(UserError, match=r"0 left over\. Use an unchanged base") as caught:
        to_ours({}, audiocraft_pairs(lm.config), where="empty")
    assert ", and 28 more" in str(caught.value)  # of 36 names in audiocraft's format


def test_our_own_state_must_be_whole_too(make_lm: MakeLM) -> None:
    lm = make_lm()
    with pytest.raises(UserError, match=r"this model .* 1 missing \(text_proj\.bias\)"):
        from_ours({k: v for k, v in lm.state_dict().items() if k != "text_proj.bias"}, audiocraft_pairs(lm.config))


@pytest.mark.parametrize("pairs_of", TABLES)
def test_tensors_converted_one_by_one_are_those_converted_at_once(make_lm: MakeLM, pairs_of: PairsOf) -> None:
    lm = make_lm()
    ours: dict[str, Tensor] = lm.state_dict()
    asked: list[str] = []

    def make(name: str) -> Tensor:
        asked.append(name)
        return ours[name]

    found = lazily_from_ours(LazyTensors(like_of(ours), make), pairs_of(lm.config))
    expected = from_ours(ours, pairs_of(lm.config))
    assert asked == []
    assert list(found) == list(expected)
    assert equal(dict(found), expected)
    assert shapes(found.like) == shapes(expected)
    assert sorted(asked) == sorted(ours)
    with pytest.raises(UserError, match="1 missing"):
        lazily_from_ours({k: v for k, v in ours.items() if k != "text_proj.bias"}, pairs_of(lm.config))


# ---- the codec -------------------------------------------------------------------------------------------------------


def test_codec_tensors_come_back_bit_equal_from_audiocrafts_names(nano_codec: Codec) -> None:
    state = nano_codec.model.state_dict()
    pairs = codec_pairs(state, num_residual_layers=1)
    theirs = from_ours(state, pairs)
    assert len(theirs) == len(state)
    assert equal(to_ours(theirs, pairs, where="test"), state)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("encoder.layers.0.conv.bias", "encoder.model.0.conv.conv.bias"),
        (
            "encoder.layers.4.block.1.conv.parametrizations.weight.original0",
            "encoder.model.4.block.1.conv.conv.weight_g",
        ),
        ("encoder.layers.13.lstm.weight_ih_l0", "encoder.model.13.lstm.weight_ih_l0"),
        ("encoder.layers.15.conv.parametrizations.weight.original1", "encoder.model.15.conv.conv.weight_v"),
        ("decoder.layers.0.conv.bias", "decoder.model.0.conv.conv.bias"),
        ("decoder.layers.1.lstm.bias_hh_l1", "decoder.model.1.lstm.bias_hh_l1"),
        ("decoder.layers.3.conv.bias", "decoder.model.3.convtr.convtr.bias"),
        ("decoder.layers.12.conv.parametrizations.weight.original1", "decoder.model.12.convtr.convtr.weight_v"),
        ("decoder.layers.7.block.3.conv.bias", "decoder.model.7.block.3.conv.conv.bias"),
        ("decoder.layers.15.conv.bias", "decoder.model.15.conv.conv.bias"),
        ("quantizer.layers.2.codebook.embed_avg", "quantizer.vq.layers.2._codebook.embed_avg"),
    ],
)
def test_codec_names_are_those_of_the_specification(nano_codec: Codec, ours: str, theirs: str) -> None:
    pairs = codec_pairs(nano_codec.model.state_dict(), num_residual_layers=1)
    assert Pair((ours,), (theirs,)) in pairs
