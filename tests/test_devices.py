"""What a device can do."""

import pytest
import torch

from musicgen_ft.devices import bf16_words, computes_in_bf16


@pytest.mark.parametrize(
    ("capabilities", "found"),
    [
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": False, "amx_bf16": True}, True),
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),  # torch acts as if, and is slower
        ({}, False),
    ],
)
def test_a_cpu_computes_in_bf16_where_it_has_the_instructions(
    capabilities: dict[str, bool], found: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert computes_in_bf16(torch.device("cpu")) is found


@pytest.mark.parametrize(("has_bf16", "words"), [(True, ["--precision", "bf16"]), (False, [])])
def test_nano_is_trained_in_bf16_where_the_cpu_computes_in_it(
    has_bf16: bool, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_bf16})
    assert bf16_words() == words


def test_this_cpu_is_asked() -> None:
    assert computes_in_bf16(torch.device("cpu")) in (True, False)


@pytest.mark.gpu
def test_a_gpu_computes_in_bf16() -> None:
    assert computes_in_bf16(torch.device("cuda")) is (torch.cuda.get_device_capability() >= (8, 0))
