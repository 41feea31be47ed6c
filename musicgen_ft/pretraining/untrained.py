"""nano's codec and text encoder before they have learned anything: the released architecture, smaller numbers."""

import string
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from transformers import EncodecConfig, EncodecModel, T5Config, T5EncoderModel, T5Tokenizer

from musicgen_ft.checkpoint.audiocraft_format import bandwidth_kbps
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.synthesis.genres import GENRES

_WORDS = """
a and the with of in at is track song piece music tune groove loop slow fast calm bright dark warm soft hard gentle
driving deep heavy light happy sad dreamy energetic relaxed playful hypnotic melancholic uplifting bouncy techno house
ambient drum bass hip hop waltz chiptune reggae rock lullaby jazz blues folk pop electronic dance classical funk disco
trance piano guitar synth lead pad pluck strings bell bells organ flute snare kick hat hats clap drums percussion
arpeggio chords melody beat bpm tempo key major minor sharp flat genre moods instrument keywords four three
swing kit moderate feels sounds this played on play together mood it
"""
_TEMPI_BPM = range(40, 221)


@dataclass(frozen=True, kw_only=True)
class NanoSizes:
    """The numbers that are smaller than the released models': with half-precision weights below 16 MiB."""

    num_filters: int = 16
    """Channels of EnCodec's first convolution."""
    latent_dim: int = 64
    """Width of EnCodec's latents and codebook entries."""
    text_layers: int = 2
    """Layers of T5, of width 64."""
    dim: int = 192
    """Width of the language model."""
    head_dim: int = 32
    """Width of a head, half of the released models'. Of three heads in each layer a third of all did nothing but bring
    together the codebooks that the delay pattern holds apart, and few were left for the beat."""
    num_layers: int = 6
    """Its layers."""


def untrained_encodec(sizes: NanoSizes) -> EncodecModel:
    """EnCodec at 16 kHz, 50 frames per second, 4 codebooks of 256, with the topology of the released one."""
    model: EncodecModel = EncodecModel(
        EncodecConfig(
            target_bandwidths=[bandwidth_kbps(4, 256, 50)],
            sampling_rate=16_000,
            num_filters=sizes.num_filters,
            hidden_size=sizes.latent_dim,
            upsampling_ratios=[8, 5, 4, 2],
            codebook_size=256,
            codebook_dim=sizes.latent_dim,
            use_causal_conv=False,
            use_conv_shortcut=False,
        )
    )
    model.requires_grad_(False)
    _fill_codebooks(model)
    return model


@torch.no_grad()
def _fill_codebooks(model: EncodecModel) -> None:
    """Each level's entries are latents, or what the levels above leave of them, of a varied signal.

    Entries drawn from a normal distribution would all lie on one side of the latents: one code for all sounds.
    """
    residual = model.encoder(_varied_signal())[0].T  # [T, hidden_size]
    for layer in model.quantizer.layers:
        codebook: Any = layer.codebook
        codebook.embed.copy_(residual[torch.randperm(len(residual))[: len(codebook.embed)]])
        codebook.embed_avg.copy_(codebook.embed)
        codebook.inited.fill_(1)
        residual = residual - codebook.decode(codebook.encode(residual))


def _varied_signal(num_notes: int = 200, note_length: int = 1600) -> torch.Tensor:
    """Notes of random pitches, noises and loudness at 16 kHz: float [1, 1, L]."""
    time_s = torch.arange(note_length) / 16_000
    notes = []
    for _ in range(num_notes):
        pitches = 60 * 2 ** (6 * torch.rand(3, 1))  # three tones of 60 to 3840 Hz
        tones = torch.sin(2 * torch.pi * pitches * time_s).sum(0)
        loudness = 10 ** (-2 * torch.rand(2))
        notes.append(0.2 * loudness[0] * tones + 0.2 * loudness[1] * torch.randn(note_length))
    return torch.cat(notes)[None, None]


def untrained_text_encoder(sizes: NanoSizes) -> TextEncoder:
    """T5 of width 64 with a tokenizer of its own."""
    return TextEncoder(_t5(sizes.text_layers), _tokenizer(), id="nano")


def _t5(num_layers: int) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(_vocabulary()),
            d_model=64,
            d_kv=16,
            d_ff=128,
            num_layers=num_layers,
            num_decoder_layers=0,
            num_heads=4,
            feed_forward_proj="relu",
        )
    )


def _tokenizer() -> T5Tokenizer:
    return T5Tokenizer(vocab=_vocabulary(), extra_ids=0)


def _vocabulary() -> list[tuple[str, float]]:
    """Special tokens, words of music, notes, tempi, all printable ASCII characters; a whole word beats its spelling."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    notes = {letter + accidental for letter in "ABCDEFGabcdefg" for accidental in ("", "#", "b")}
    known = {*_WORDS.split(), *_rule_words()}
    known |= {word.capitalize() for word in known} | notes | {"BPM", *map(str, _TEMPI_BPM)}
    words = [(f"▁{word}", -6.0) for word in sorted(known)]
    characters = [(character, -8.0) for character in string.printable if not character.isspace()]
    return special + words + characters


def _rule_words() -> Iterator[str]:
    """What captions of synthesized music may say, of every genre."""
    for genre in GENRES.values():
        kits = [genre.drums.kit] if genre.drums else []
        instruments = [name for part in genre.parts for name in part.instruments]
        moods = [mood for moods in genre.moods.values() for mood in moods]
        for text in (genre.name, genre.noun, *kits, *instruments, *moods):
            yield from text.split()
