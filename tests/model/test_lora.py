"""What is trained of a model: adapters by their definition, what is frozen and how it is held, how it is merged."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.errors import UserError
from musicgen_ft.model.conditioning import TextStates
from musicgen_ft.model.lm import LanguageModel
from musicgen_ft.model.lora import (
    AdapterSpec,
    FrozenLinear,
    LoRALinear,
    adapter_spec,
    check_method,
    choose_trained,
    in_4_bits,
    is_partial,
    matching,
    merged,
)
from musicgen_ft.training.ema import trainable

MakeLM = Callable[..., LanguageModel]
MakeText = Callable[..., TextStates]

ATTENTION = [f"{a}_attn.{x}_proj" for a in ("self", "cross") for x in ("q", "k", "v", "out")]


def lora(**changes: Any) -> FinetuneConfig:
    settings: dict[str, Any] = {"method": "lora", "lora_rank": 3, "lora_alpha": 5.0}
    return FinetuneConfig(**{**settings, **changes})


def logits(lm: LanguageModel, text: TextStates) -> Tensor:
    codes = torch.randint(11, (2, 4, 7), generator=torch.Generator().manual_seed(0))
    found: Tensor = lm(codes, text)
    return found


def walk(lm: LanguageModel) -> dict[str, Tensor]:
    """Moves what is trained to somewhere else, and returns it."""
    torch.manual_seed(1)
    for _, parameter in trainable(lm):
        parameter.data += 0.1 * torch.randn_like(parameter)
    return {name: parameter.detach() for name, parameter in trainable(lm)}


def spec_of(config: FinetuneConfig) -> AdapterSpec:
    spec = adapter_spec(config)
    assert spec is not None
    return spec


# ---- adapters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_new_adapter_changes_nothing_to_the_bit(make_lm: MakeLM, make_text: MakeText, method: str) -> None:
    lm, text = make_lm(), make_text(5, 2)
    expected = logits(lm, text)
    choose_trained(lm, lora(method=method, lora_targets=("layers.*", "heads", "text_proj")))

    assert torch.equal(logits(lm, text), expected)


def test_a_begins_as_a_linear_layer_of_the_seed_and_b_as_zero(make_lm: MakeLM) -> None:
    lms = [make_lm(), make_lm(), make_lm()]
    for lm, seed in zip(lms, (4, 4, 5), strict=True):
        choose_trained(lm, lora(seed=seed))
    first, second, other = (dict(trainable(lm)) for lm in lms)

    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if name.endswith("lora_A"))
    a = first["layers.1.fc2.lora_A"]
    assert a.shape == (3, 40)
    assert 0.9 / 40**0.5 < a.abs().max() <= 1 / 40**0.5
    assert not first["layers.1.fc2.lora_B"].any()


def test_gradients_flow_into_adapters_and_nothing_else(make_lm: MakeLM, make_text: MakeText) -> None:
    lm = make_lm()
    choose_trained(lm, lora(lora_targets=("*.q_proj", "layers.1.fc1"), lora_whole=("heads.2",)))
    walk(lm)  # B is no longer zero: it would keep all gradients from A
    logits(lm, make_text(5, 2)).pow(2).sum().backward()

    adapted = [f"layers.{i}.{a}_attn.q_proj" for i in (0, 1) for a in ("self", "cross")] + ["layers.1.fc1"]
    expected = {f"{name}.{part}" for name in adapted for part in ("lora_A", "lora_B")} | {"heads.2.weight"}
    assert {name for name, parameter in lm.named_parameters() if parameter.grad is not None} == expected
    assert all(parameter.grad.any() for parameter in lm.parameters() if parameter.grad is not None)
    assert {name for name, _ in trainable(lm)} == expected


def test_lora_by_its_definition() -> None:
    torch.manual_seed(0)
    base, x = nn.Linear(7, 4), torch.randn(2, 3, 7)
    layer = LoRALinear(base, AdapterSpec(rank=2, alpha=6.0), torch.Generator())
    nn.init.normal_(layer.lora_B)

    expected = x @ base.weight.T + base.bias + 3.0 * (x @ layer.lora_A.T) @ layer.lora_B.T
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-6)
    assert AdapterSpec(rank=4, alpha=6.0, rslora=True).scale == 3.0


def test_dora_by_its_definition() -> None:
    """The direction of every row is V / |V|, its length is learned; no gradient goes through the norm."""
    torch.manual_seed(0)
    base, x = nn.Linear(7, 4), torch.randn(2, 3, 7)
    layer = LoRALinear(base, AdapterSpec(rank=2, alpha=6.0, dora=True), torch.Generator())
    torch.testing.assert_close(layer.magnitude, base.weight.norm(dim=1))
    assert layer.magnitude is not None
    nn.init.normal_(layer.lora_B)
    nn.init.normal_(layer.magnitude)

    direction = base.weight + 3.0 * layer.lora_B @ layer.lora_A
    unit = direction / direction.norm(dim=1, keepdim=True).detach()
    expected = x @ (layer.magnitude[:, None] * unit).T + base.bias
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-6)
    parameters = [layer.lora_A, layer.lora_B, layer.magnitude]
    found = torch.autograd.grad(layer(x).pow(2).sum(), parameters)
    for gradient, by_definition in zip(found, torch.autograd.grad(expected.pow(2).sum(), parameters), strict=True):
        torch.testing.assert_close(gradient, by_definition, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dora", [False, True])
def test_dropout_is_on_the_adapters_path_alone(dora: bool) -> None:
    torch.manual_seed(0)
    base, x = nn.Linear(7, 4), torch.randn(5, 7)
    layer = LoRALinear(base, AdapterSpec(rank=2, alpha=2.0, dropout=1.0, dora=dora), torch.Generator())
    torch.testing.assert_close(layer.train()(x), base(x))
    nn.init.normal_(layer.lora_B)
    assert not torch.allclose(layer.eval()(x), base(x))
    if not dora:
        torch.testing.assert_close(layer.train()(x), base(x))


# ---- choosing --------------------------------------------------------------------------------------------------------


def test_by_default_every_linear_layer_of_the_transformer_has_an_adapter(make_lm: MakeLM) -> None:
    lm = make_lm()
    choose_trained(lm, lora())

    adapted = {name for name, module in lm.named_modules() if isinstance(module, LoRALinear)}
    assert adapted == {f"layers.{i}.{x}" for i in (0, 1) for x in (*ATTENTION, "fc1", "fc2")}
    assert [name for name, _ in trainable(lm)][:2] == [f"layers.0.self_attn.q_proj.lora_{x}" for x in "AB"]


def test_full_trains_all_but_what_is_frozen(make_lm: MakeLM) -> None:
    lm = make_lm()
    names = {name for name, _ in lm.named_parameters()}
    choose_trained(lm, FinetuneConfig())
    assert {name for name, _ in trainable(lm)} == names

    choose_trained(lm, FinetuneConfig(freeze=("embeddings", "layers.0", "*norm", "text_proj")))
    frozen = {n for n in names if n.startswith(("embeddings.", "layers.0.", "text_proj.")) or "norm." in n}
    assert {name for name, _ in trainable(lm)} == names - frozen
    assert is_partial(FinetuneConfig(freeze=("layers.0",)))
    assert not is_partial(FinetuneConfig())


def test_what_is_frozen_has_no_adapter_and_what_is_fresh_is_trained_whole(make_lm: MakeLM) -> None:
    lm = make_lm()
    config = lora(freeze=("layers.0", "heads.1"), lora_whole=("heads",), lora_targets=("layers.*.fc1", "text_proj"))
    choose_trained(lm, config, fresh=("text_proj",))

    expected = {"layers.1.fc1.lora_A", "layers.1.fc1.lora_B", "text_proj.weight", "text_proj.bias"}
    assert {name for name, _ in trainable(lm)} == expected | {f"heads.{k}.weight" for k in (0, 2, 3)}


def test_a_pattern_names_modules_their_parts_and_near_ones() -> None:
    names = ["text_proj", "layers.0.fc1", "layers.0.self_attn.q_proj", "layers.1.fc1", "layers.10.fc1"]
    assert matching(names, ["layers.0"], "freeze") == set(names[1:3])
    assert matching(names, ["layers.1?.*", "*.q_proj"], "freeze") == {names[2], names[4]}
    assert matching(names, [], "freeze") == set()
    with pytest.raises(UserError, match=r"^--freeze layers\.\*\.fc3: no module .*Near ones: layers\.0\.fc1"):
        matching(names, ["layers.*.fc3"], "freeze")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (FinetuneConfig(freeze=("*",)), "nothing is left to train"),
        (lora(freeze=("layers",)), "every module that it names is frozen or trained whole"),
        (lora(lora_targets=("*norm*",)), r"--lora_targets \*norm\*: no module"),
        (lora(freeze=("text_proj",)), "text_proj begins anew with --text_encoder, it has to be trained"),
    ],
)
def test_what_leaves_nothing_to_train_is_refused(make_lm: MakeLM, config: FinetuneConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        choose_trained(make_lm(), config, fresh=("text_proj",) if "begins anew" in message else ())


# ---- how the frozen is held ------------------------------------------------------------------------------------------


def test_a_base_in_bf16_gives_the_logits_of_one_in_fp32_under_autocast(make_lm: MakeLM, make_text: MakeText) -> None:
    """To the bit: autocast would round the weights anyway. The adapters stay in fp32."""
    wide, narrow, text = make_lm(), make_lm(), make_text(5, 2)
    choose_trained(wide, lora(base_dtype="fp32"), compute_dtype=torch.bfloat16)
    choose_trained(narrow, lora(), compute_dtype=torch.bfloat16)
    for lm in (wide, narrow):
        walk(lm)
    dtypes = {name: parameter.dtype for name, parameter in narrow.named_parameters()}
    assert {name for name, dtype in dtypes.items() if dtype == torch.bfloat16} == {
        f"layers.{i}.{x}.base.weight" for i in (0, 1) for x in (*ATTENTION, "fc1", "fc2")
    }

    with torch.autocast("cpu", torch.bfloat16):
        losses = [logits(lm, text).float().pow(2).mean() for lm in (wide, narrow)]
    assert torch.equal(*losses)
    pairs = zip(losses, (wide, narrow), strict=True)
    gradients = [torch.autograd.grad(loss, [p for _, p in trainable(lm)]) for loss, lm in pairs]
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))
    assert {gradient.dtype for gradient in gradients[1]} == {torch.float32}


def test_a_base_in_bf16_computes_in_fp32_where_nothing_is_cast(make_lm: MakeLM, make_text: MakeText) -> None:
    lm, rounded, text = make_lm(), make_lm(), make_text(5, 2)
    for name, parameter in rounded.named_parameters():
        if name.startswith("layers.") and "norm" not in name:
            parameter.data = parameter.data.bfloat16().float()
    choose_trained(lm, lora(base_dtype="bf16", lora_targets=("*.fc1",)))

    found = logits(lm, text)
    assert found.dtype == torch.float32
    assert torch.equal(found, logits(rounded, text))
    assert isinstance(lm.get_submodule("layers.0.fc2"), FrozenLinear)


def test_what_is_trained_is_never_narrowed(make_lm: MakeLM) -> None:
    lm = make_lm()
    choose_trained(lm, FinetuneConfig(freeze=("layers.0",)), compute_dtype=torch.bfloat16)
    narrow = {name for name, parameter in lm.named_parameters() if parameter.dtype != torch.float32}
    assert narrow == {f"layers.0.{x}.weight" for x in (*ATTENTION, "fc1", "fc2")}
    assert all(parameter.dtype == torch.float32 for _, parameter in trainable(lm))


def test_qlora_needs_a_cuda_device() -> None:
    with pytest.raises(UserError, match="--method qlora: weights in 4 bits need a CUDA device, found cpu"):
        check_method(lora(method="qlora"), "cpu")
    check_method(lora(), "cpu")


def test_qlora_needs_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r'bitsandbytes is not installed.* pip install "musicgen-ft\[bitsandbytes\]"'):
        check_method(lora(method="qlora"), "gpu")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_layer_in_4_bits_is_near_the_layer_and_takes_an_adapter(device: str) -> None:
    """On the CPU too, where bitsandbytes computes, though not the same twice: a run there is refused."""
    pytest.importorskip("bitsandbytes", minversion="0.49" if device == "cpu" else None)
    torch.manual_seed(0)
    linear, x = nn.Linear(256, 128, bias=False), torch.randn(6, 256).to(device)
    layer = LoRALinear(in_4_bits(linear, torch.float32), AdapterSpec(rank=2, alpha=2.0), torch.Generator()).to(device)
    expected = x @ linear.weight.T.to(device)

    error = (layer(x) - expected).norm() / expected.norm()
    assert 0.01 < error < 0.2
    assert layer.weight.dtype == torch.uint8
    layer(x).pow(2).sum().backward()
    assert layer.lora_B.grad is not None
    assert layer.lora_B.grad.any()


def test_qlora_holds_the_layers_matrices_in_4_bits_and_nothing_else(make_lm: MakeLM) -> None:
    pytest.importorskip("bitsandbytes")
    lm = make_lm()
    choose_trained(lm, lora(method="qlora", lora_targets=("*.fc1",)), compute_dtype=torch.bfloat16)

    narrow = {name for name, module in lm.named_modules() if type(module).__name__ == "Linear4bit"}
    assert narrow == {
        *(f"layers.{i}.{x}" for i in (0, 1) for x in (*ATTENTION, "fc2")),
        *(f"layers.{i}.fc1.base" for i in (0, 1)),
    }
    assert {name for name, _ in trainable(lm)} == {f"layers.{i}.fc1.lora_{x}" for i in (0, 1) for x in "AB"}


# ---- merging ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lora", "dora"])
def test_a_merged_model_gives_the_logits_of_the_adapted_one(make_lm: MakeLM, make_text: MakeText, method: str) -> None:
    lm, text = make_lm(), make_text(5, 2)
    base, plain = copy.deepcopy(lm.state_dict()), logits(lm, text)
    config = lora(method=method, lora_targets=("layers.*", "text_proj", "heads.3"), lora_whole=("out_norm", "heads.0"))
    choose_trained(lm, config)
    trained = walk(lm)

    states = [dict(merged(base, trained, spec_of(config))) for _ in range(2)]
    other = make_lm(seed=9)
    other.load_state_dict(states[0])

    assert all(torch.equal(states[1][name], value) for name, value in states[0].items())  # bit-stable
    assert states[0].keys() == base.keys()
    found, expected = logits(other, text), logits(lm, text)
    assert (found - expected).abs().max() < 2e-6
    assert (expected - plain).abs().max() > 0.1
    for name in ("embeddings.0.weight", "layers.0.self_norm.bias", "text_proj.bias"):
        assert torch.equal(states[0][name], base[name])


def test_a_half_precision_base_is_merged_in_fp32(make_lm: MakeLM) -> None:
    lm = make_lm()
    choose_trained(lm, lora())
    trained = walk(lm)
    base = {name: value.half() for name, value in make_lm().state_dict().items()}
    state = merged(base, trained, spec_of(lora()))

    name = "layers.1.fc2"
    a, b = (trained[f"{name}.lora_{x}"] for x in "AB")
    assert torch.equal(state[f"{name}.weight"], base[f"{name}.weight"].float() + 5 / 3 * (b @ a))
    assert state.like[f"{name}.weight"].dtype == torch.float32
    assert state["out_norm.weight"].dtype == torch.float16


def test_every_tensor_that_was_trained_has_to_find_its_place(make_lm: MakeLM) -> None:
    lm = make_lm()
    choose_trained(lm, lora(lora_targets=("*.fc1",), lora_whole=("out_norm",)))
    trained, base, spec = walk(lm), make_lm().state_dict(), spec_of(lora())
    merged(base, trained, spec)

    wrong: list[tuple[dict[str, Tensor], str]] = [
        ({**trained, "layers.7.fc1.lora_A": torch.ones(3, 24)}, r"layers\.7\.fc1 is no module of it"),
        ({**trained, "layers.0.fc2.lora_A": torch.ones(3, 40)}, r"layers\.0\.fc2 has .*, expected .*lora_B"),
        (
            {**trained, "layers.0.fc1.lora_A": torch.ones(3, 25)},
            r".*0\.fc1 has .*\(3, 25\).*expected .*\(3, 24\)",
        ),
        ({**trained, "layers.0.fc1.magnitude": torch.ones(40)}, r"layers\.0\.fc1 has .*magnitude"),
        ({**trained, "out_norm.weight": torch.ones(25)}, r"out_norm\.weight is \(25,\), the base's \(24,\)"),
        ({**trained, "in_norm.weight": torch.ones(24)}, r"in_norm\.weight has no place in it"),
    ]
    for changed, message in wrong:
        with pytest.raises(UserError, match=f"the adapter does not fit the base: {message}"):
            merged(base, changed, spec)
