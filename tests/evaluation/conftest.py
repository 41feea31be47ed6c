"""A CLAP of toy size with random weights, in the format of the released ones."""

import json
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, PreTrainedTokenizerFast

WORDS = ["<s>", "<pad>", "</s>", "<unk>", "slow", "waltz", "with", "piano", "techno", "fast", "a"]


@pytest.fixture(scope="session")
def clap_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Windows of 1 s at 8 kHz, 6 wide; not to be changed."""
    folder = tmp_path_factory.mktemp("clap")
    text = {
        "vocab_size": len(WORDS), "hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 3,
        "intermediate_size": 20, "max_position_embeddings": 20, "pad_token_id": 1, "projection_dim": 6,
    }  # fmt: skip
    audio = {
        "window_size": 4, "num_mel_bins": 16, "spec_size": 64, "patch_size": 4, "patch_stride": [4, 4], "num_classes": 5,
        "hidden_size": 32, "projection_dim": 6, "depths": [1, 1], "num_attention_heads": [2, 2], "num_hidden_layers": 2,
        "patch_embeds_hidden_size": 16,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=6))
        for name, parameter in model.named_parameters():
            if "projection" in name and parameter.ndim == 2:
                parameter.data.normal_()  # else all sounds are alike to it
    model.save_pretrained(folder)
    ClapFeatureExtractor(
        feature_size=16, sampling_rate=8000, hop_length=80, max_length_s=1, fft_window_size=256, frequency_max=4000,
        truncation="rand_trunc", padding="repeatpad",
    ).save_pretrained(folder)  # fmt: skip
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "clap"
    assert (folder / "model.safetensors").is_file()
    return folder
