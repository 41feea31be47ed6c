"""``nano``: a complete MusicGen at toy size, so that everything runs with no network and on any machine.

Its weights are random, from a fixed seed: it shows and tests the whole job, but it does not make music. Same
architecture as the released models, smaller numbers.
"""

import shutil
import string
from pathlib import Path
from typing import Any

import torch
from transformers import EncodecConfig, EncodecModel, T5Config, T5EncoderModel, T5Tokenizer

from musicgen_ft.checkpoint import transformers_format
from musicgen_ft.checkpoint.audiocraft_format import bandwidth_kbps
from musicgen_ft.codec import Codec
from musicgen_ft.files import atomic_folder, user_cache
from musicgen_ft.model.conditioning import TextEncoder
from musicgen_ft.model.lm import LanguageModel, LMConfig

_RECIPE = 1
"""Counts up whenever the weights change, so that an older copy in the cache is not taken."""
_SEED = 2306
_WORDS = """
a and the with of in at is track song piece music tune groove loop slow fast calm bright dark warm soft hard gentle
driving deep heavy light happy sad dreamy energetic relaxed playful hypnotic melancholic uplifting bouncy techno house
ambient drum bass hip hop waltz chiptune reggae rock lullaby jazz blues folk pop electronic dance classical funk disco
trance piano guitar synth lead pad pluck strings bell bells organ flute snare kick hat hats clap drums percussion
arpeggio chords melody beat bpm tempo key major minor sharp flat genre moods instrument keywords four three
"""


def nano_folder() -> Path:
    """The folder of ``nano`` in transformers format, built at the first call and then kept in the user's cache."""
    folder = user_cache() / f"nano-{_RECIPE}"
    if not (folder / "config.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        try:
            with atomic_folder(folder) as temporary:
                write_nano(temporary)
        except OSError:
            if not (folder / "config.json").is_file():  # else another process built it meanwhile
                raise
    return folder


def write_nano(folder: Path) -> None:
    """Writes ``nano`` into an existing folder: the same bytes at every call on one machine."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        codec = Codec(_encodec(), id="nano")
        text_encoder = TextEncoder(_t5(), _tokenizer(), id="nano")
        config = LMConfig(
            dim=128,
            num_heads=2,
            num_layers=4,
            ffn_dim=512,
            n_q=codec.spec.n_q,
            card=codec.spec.card,
            delays=tuple(range(codec.spec.n_q)),
            text_dim=text_encoder.dim,
        )
        lm = LanguageModel(config)
        lm.init_weights()
    transformers_format.write_folder(folder, lm.state_dict(), config, codec, text_encoder)


def _encodec() -> EncodecModel:
    """EnCodec at 16 kHz, 50 frames per second, 4 codebooks of 256, with the topology of the released one."""
    model: EncodecModel = EncodecModel(
        EncodecConfig(
            target_bandwidths=[bandwidth_kbps(4, 256, 50)],
            sampling_rate=16_000,
            num_filters=8,
            hidden_size=32,
            upsampling_ratios=[8, 5, 4, 2],
            codebook_size=256,
            codebook_dim=32,
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


def _t5() -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(
            vocab_size=len(_vocabulary()),
            d_model=64,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_decoder_layers=0,
            num_heads=4,
            feed_forward_proj="relu",
        )
    )


def _tokenizer() -> T5Tokenizer:
    return T5Tokenizer(vocab=_vocabulary(), extra_ids=0)


def _vocabulary() -> list[tuple[str, float]]:
    """Special tokens, words of music, and every printable ASCII character; a whole word beats its spelling."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    words = [(f"▁{word}", -6.0) for word in sorted(set(_WORDS.split()) - set(string.printable))]
    characters = [(character, -8.0) for character in string.printable if not character.isspace()]
    return special + words + characters
