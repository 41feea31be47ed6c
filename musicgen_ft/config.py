"""What a user may choose, one frozen dataclass for each recipe; defaults stand here and nowhere else.

A YAML of ``configs/<recipe>/`` is one of these classes: flat, every key a field. Imports no torch, so that ``--help``
answers at once.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml

from musicgen_ft.errors import UserError


@dataclass(frozen=True, kw_only=True)
class SynthesizeConfig:
    """A small labelled corpus, made by rule: wav files with a JSON of labels beside each."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ()

    out: Path
    """Folder to make."""
    tracks: int = 32
    """Number of tracks; the genres take turns."""
    duration_s: float = 20.0
    """Seconds of each track."""
    genres: tuple[str, ...] = ()
    """Only these genres; none means all."""
    seed: int = 0
    """Other seeds give other music."""
    workers: int | None = None
    """Processes that share the tracks, the files are the same; none means one for each core, where there are many."""

    def __post_init__(self) -> None:
        _positive(self, "tracks", "duration_s")
        if self.workers is not None:
            _positive(self, "workers")


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """A folder of labelled audio becomes EnCodec codes in WebDataset shards."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("corpus",)

    corpus: Path
    """Folder of audio with labels: .txt, .json, metadata.csv or .jsonl, tags, folder names; or a manifest."""
    out: Path
    """Folder of shards to make, to go on with, or to bring up to date."""
    base: str = "nano"
    """Whose EnCodec encodes: nano, a hub id (facebook/musicgen-small), or a folder."""
    channels: Literal[1, 2] | None = None
    """2 encodes left and right, for a stereo model: of a stereo base, or one that finetune makes of a mono base."""
    valid_fraction: float = 0.1
    """Share of the groups held out for validation; at least one of two or more."""
    split_by: str = "auto"
    """What stays on one side: track, album, artist, folder, a column; auto: album where there are five, else track."""
    duplicates: Literal["drop", "keep"] = "drop"
    """drop: of several tracks of one recording, in whatever format, the best is kept; keep: all, on one side."""
    auto_labels: bool = True
    """Hear tempo and key where the labels have none."""

    min_duration_s: float = 1.0
    """Shorter tracks are left out."""
    trim_silence: bool = True
    """Cut whole seconds of silence off both ends."""
    trim_fades: bool = False
    """Cut off the second half of fade-outs, which teach the model to end in silence."""
    max_silent_share: float = 0.5
    """Tracks with more silence are left out."""
    min_loudness_lufs: float = -50.0
    """Quieter tracks are left out."""
    max_clipped_share: float = 1.0
    """Tracks with a larger share of clipped samples are left out; square waves look clipped, so all stay by default."""
    max_dc_offset: float = 0.1
    """Tracks with a larger DC offset (full scale is 1) are left out."""
    min_bandwidth_khz: float = 0.0
    """Tracks of a narrower true bandwidth are left out; an MP3 of 128 kb/s has about 16."""
    min_codec_snr_db: float | None = None
    """Tracks that the codec carries worse are left out: what EnCodec loses, the model cannot learn."""
    codec_check_s: float = 30.0
    """Seconds of each track decoded again, to measure that; 0 measures nothing."""

    vocals: Literal["keep", "remove"] = "keep"
    """remove: encode what demucs leaves without them; the released models know no singing."""
    melody: Literal["mix", "stems"] = "mix"
    """For a melody base: take the melody of everything, or of what demucs leaves without drums and bass."""
    stems_model: str = "htdemucs"
    """Which demucs: a name, or a file."""
    window_s: float = 30.0
    """Seconds encoded at a time: more is faster and takes more memory."""
    shard_mib: int = 64
    """Size at which a shard is full, in MiB; one is 44 hours of mono at 32 kHz."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    workers: int | None = None
    """Tracks at once on this machine; none means one for each core, as far as the memory goes."""
    engine: Literal["local", "ray"] = "local"
    """ray: on all machines of a Ray cluster (ray.init finds it), or of one that is begun here."""
    lease_s: float = 60.0
    """A worker elsewhere that gave no sign for so long is taken for dead, and its shards are made by others."""

    def __post_init__(self) -> None:
        _positive(self, "window_s", "shard_mib", "lease_s")
        _not_negative(self, "min_duration_s", "max_dc_offset", "min_bandwidth_khz", "codec_check_s")
        _probability(self, "valid_fraction", "max_silent_share", "max_clipped_share")
        if self.valid_fraction == 1:
            raise ValueError("valid_fraction: found 1, expected less: nothing would be left to train on.")
        if not self.split_by.strip():
            raise ValueError("split_by: found nothing, expected auto, track, album, artist, folder or a column.")
        if self.workers is not None:
            _positive(self, "workers")


@dataclass(frozen=True, kw_only=True)
class InspectConfig:
    """What is in a corpus or in shards: hours, labels, quality, duplicates, what would be left out and why."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("place",)

    place: Path
    """Folder of labelled audio, or of shards."""
    out: Path | None = None
    """HTML page to write; none means NAME.html in the working directory."""
    captions: int = 0
    """Print so many captions of each of a few tracks, exactly as training draws them."""
    finetune_config: str | None = None
    """Whose caption settings: a name in configs/finetune, or a file; none means the defaults."""
    prepare_config: str | None = None
    """Whose rules, for a corpus: a name in configs/prepare, or a file; none means the defaults."""
    players: int = 12
    """Tracks to listen to on the page, at most; 0 means none."""
    workers: int | None = None
    """Files measured at once; none means one for each core."""
    seed: int = 0
    """Of the captions."""

    def __post_init__(self) -> None:
        _not_negative(self, "captions", "players", "seed")
        if self.workers is not None:
            _positive(self, "workers")


@dataclass(frozen=True, kw_only=True)
class FinetuneConfig:
    """A MusicGen language model is fine-tuned on shards of codes."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("shards",)

    shards: str | None = None
    """Folder of shards, from prepare, or the URL (http, s3 ...) of one, which is copied to the user's cache first."""
    out: Path | None = None
    """Folder of the run to make."""
    resume: Path | None = None
    """Folder of a run to take up again where it was; shards, out and all else come from the run."""
    base: str | None = None
    """Model to start from: nano, a hub id, a folder; none means the one whose codec made the shards."""
    text_encoder: str | None = None
    """A frozen T5, flan-T5 or mT5 in place of the base's own: a hub id, a folder. Its projection is learned anew."""
    seed: int = 0
    """Of the order of samples, crops, captions and dropouts."""

    method: Literal["full", "lora", "dora", "qlora", "auto"] = "full"
    """full: all weights; lora, dora: small adapters on frozen ones; qlora: lora over a base in 4 bits, on CUDA; auto:
    of full, lora and qlora the first that fits this machine's memory, as plan tells it."""
    lora_rank: int = 16
    """Rank of the adapters."""
    lora_alpha: float = 16.0
    """Their update is scaled by alpha / rank."""
    lora_dropout: float = 0.0
    """On the adapters' inputs, in training."""
    lora_targets: tuple[str, ...] = ("layers.*",)
    """Linear layers with adapters, by name pattern: layers.*.self_attn, *.q_proj, layers.1?.fc1, text_proj, heads.*."""
    lora_whole: tuple[str, ...] = ()
    """Modules trained whole beside the adapters, by name pattern: text_proj, embeddings, heads, *norm*."""
    freeze: tuple[str, ...] = ()
    """Modules that are not trained, by name pattern: embeddings, layers.0, layers.*.cross_attn."""
    base_dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the layers' frozen matrices; auto: bf16 where they are multiplied in bf16 anyway, else fp32."""

    max_steps: int = 1000
    """Optimizer steps of the run."""
    batch_size: int = 16
    """Clips of one optimizer step, over all devices and accumulated micro-batches."""
    micro_batch_size: int | Literal["auto"] | None = None
    """Clips at once on one device, at most; none means the batch size over the devices. Less takes less memory; auto:
    as many as fit."""
    segment_s: float = 30.0
    """Seconds of a clip; shorter tracks are padded, and the padding is masked."""
    lr: float = 1.0e-5
    """Peak learning rate; adapters want about ten times more, 1.0e-4."""
    warmup_steps: int = 50
    """Steps in which the learning rate rises to its peak."""
    lr_min_ratio: float = 0.0
    """Where the cosine ends, as a share of the peak."""
    optimizer: Literal["adamw", "adamw8bit", "muon"] = "adamw"
    """adamw8bit: AdamW with moments in 8 bits (embeddings' in 32): a quarter of their memory; slower on a CPU.
    muon: Muon for the layers' matrices, AdamW for the rest: from random weights it learns in about half the steps."""
    beta1: float = 0.9
    """AdamW's first moment."""
    beta2: float = 0.95
    """AdamW's second moment."""
    weight_decay: float = 0.1
    """Of matrices and embeddings; norms and biases do not decay."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm."""
    dropout: float = 0.0
    """Of the transformer in training; MusicGen was trained with none."""
    ema_decay: float = 0.99
    """Of the averaged weights that are validated and exported; 0 keeps no average."""
    ema_every_steps: int = 1
    """Steps between two updates of the average."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 mixed on a GPU that has it, else fp32."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """What a loss or gradient that is not finite does: stop the run, or skip its step, told and counted."""
    recompute: Literal["none", "selective", "full", "auto"] = "none"
    """Activations computed again rather than kept: of the feed-forward parts (selective), or of whole layers; auto: as
    few as fit."""
    loss_chunk_frames: int = 4096
    """Frames whose logits are held at a time."""

    cfg_dropout: float = 0.3
    """Share of the samples that train the null condition of classifier-free guidance."""
    cfg_dropout_scope: Literal["sample", "step"] = "sample"
    """Drawn for each sample, or for a whole step at once as audiocraft does."""
    melody_dropout: float = 0.5
    """For a melody base: share of the samples that lose their melody but keep their text."""
    text_padding: Literal["audiocraft", "transformers"] | None = None
    """What cross-attention does with padded text; none means as the base's format has it."""
    caption_source: Literal["auto", "description", "fields", "template"] = "auto"
    """description: as it is; fields: composed of genre, moods and so on; auto: the description where there is one,
    else composed; template: by caption_template."""
    caption_template: str = ""
    """As "a {genre} track[ with {instrument}], {bpm} bpm": clauses and [parts] without their fields are left out."""
    trigger: str = ""
    """Text before every caption: the name by which prompts will call the style."""
    merge_text_p: float = 0.0
    """Share of the captions that the fields are merged into, as audiocraft does; 0 for a small corpus."""
    drop_desc_p: float = 0.0
    """In merged captions, share that loses its description."""
    field_keep_p: float = 0.5
    """In merged captions, probability that a field is kept."""
    field_dropout: float = 0.0
    """Share of the fields that are left out of composed captions and templates; one always stays."""
    shuffle_fields: bool = False
    """Fields of composed captions, and the words of moods and keywords in all captions, in any order."""
    word_dropout: float = 0.0
    """Share of the words that are left out."""

    valid_every_steps: int = 100
    """Steps between two validations on held-out tracks."""
    valid_max_clips: int = 64
    """Clips of one validation, at most."""
    early_stop_validations: int | None = None
    """End the run when the validation loss has not fallen for so many validations; none makes all steps."""
    forgetting_clips: int = 8
    """Clips that the base plays to captions of other genres before training, to see what is forgotten; 0 for none.
    With text_encoder there are none."""
    forgetting_s: float = 5.0
    """Seconds of each, at most segment_s."""
    save_every_steps: int = 100
    """Steps between two checkpoints to resume from."""
    save_every_minutes: float | None = None
    """One more whenever the last is so old."""
    keep_last: int = 2
    """Newest checkpoints that stay on the disk; of two, the older is there should the newer be damaged."""
    milestone_every_steps: int | None = None
    """Checkpoints of these steps stay for ever."""
    sample_every_steps: int | None = None
    """Play the prompts whenever so many steps are made, beside the base's playing; none never."""
    sample_prompts: tuple[str, ...] = ()
    """What to play then; none means captions of held-out tracks."""
    sample_s: float = 10.0
    """Seconds of each sample."""
    log_every_steps: int = 1
    """Steps between two lines of metrics."""
    tensorboard: bool = True
    """Log to TensorBoard too; metrics.csv is always written."""
    wandb: Literal["off", "auto", "online", "offline"] = "off"
    """auto: online where wandb has an account, else offline."""
    wandb_project: str = "musicgen-ft"
    """Project in wandb."""

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    """Kind of device."""
    devices: int | None = None
    """Devices of this machine; none means all GPUs, or one CPU process."""
    num_nodes: int = 1
    """Machines."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """Of several devices: ddp, which auto means, holds the model on each; fsdp shares it out, for those too large."""
    num_workers: int = 0
    """Processes that read shards ahead, for each device; reading takes under 1 ms a clip."""
    timeout_minutes: float = 30.0
    """Processes that hear nothing of another one for so long give up, and name it."""

    def __post_init__(self) -> None:
        _positive(
            self,
            "max_steps",
            "batch_size",
            "loss_chunk_frames",
            "segment_s",
            "lr",
            "max_grad_norm",
            "ema_every_steps",
            "num_nodes",
        )
        _positive(self, "valid_every_steps", "valid_max_clips", "save_every_steps", "log_every_steps")
        _positive(self, "keep_last", "timeout_minutes", "lora_rank", "lora_alpha", "forgetting_s", "sample_s")
        _not_negative(self, "warmup_steps", "weight_decay", "num_workers", "seed", "forgetting_clips")
        _probability(self, "dropout", "ema_decay", "cfg_dropout", "lr_min_ratio", "word_dropout", "beta1", "beta2")
        _probability(self, "merge_text_p", "drop_desc_p", "field_keep_p", "field_dropout", "melody_dropout")
        _probability(self, "lora_dropout")
        optional = ("devices", "micro_batch_size", "save_every_minutes", "milestone_every_steps")
        for name in (*optional, "early_stop_validations", "sample_every_steps"):
            if getattr(self, name) not in (None, "auto"):
                _positive(self, name)

    @property
    def is_open(self) -> bool:
        """Whether something is left to be chosen by the machine's memory."""
        return "auto" in (self.method, self.recompute, self.micro_batch_size)


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """Before anything is downloaded: how a base can be trained within a memory, GiB for each part, and the command."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ()

    base: str
    """Model to start from: small, medium, large, melody, stereo-..., nano, a hub id of those, or a folder."""
    memory_gib: float | None = None
    """Memory of a device, in GiB; none means this machine's GPU, or its RAM."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Kind of device; auto: a GPU where there is one or memory_gib is given, else the CPU."""
    devices: int = 1
    """Devices that share a batch, each with so much memory."""
    segment_s: float | None = None
    """Seconds of a clip; none means as finetune_config says."""
    batch_size: int | None = None
    """Clips of one optimizer step; none means as finetune_config says."""
    method: Literal["full", "lora", "dora", "qlora", "auto"] | None = None
    """Only this one; none means as finetune_config says."""
    recompute: Literal["none", "selective", "full", "auto"] | None = None
    """Only this one; none means as finetune_config says."""
    finetune_config: str = "auto"
    """All else of the run: a name in configs/finetune, or a file; auto leaves open what can be chosen."""

    def __post_init__(self) -> None:
        _positive(self, "devices")
        for name in ("memory_gib", "segment_s", "batch_size"):
            if getattr(self, name) is not None:
                _positive(self, name)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """A run, or another base, becomes a generator folder that audiocraft and transformers open and play."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("run",)
    ALIASES: ClassVar[dict[str, str]] = {"from": "base"}

    run: Path | None = None
    """Folder of the run, from finetune."""
    base: str | None = None
    """In place of a run: a base to convert as it is, also said as --from: a hub id or a folder."""
    out: Path
    """Generator folder to make."""
    format: Literal["both", "audiocraft", "transformers", "adapter"] = "both"
    """Whose loader opens it; adapter: of a lora or dora run only what was trained, in PEFT's format."""
    checkpoint: Literal["best", "last"] = "best"
    """best by validation loss (last where there was no validation), or last."""
    weights: Literal["auto", "ema", "raw"] = "auto"
    """Averaged or raw weights; auto: averaged where the run has them."""
    dtype: Literal["float32", "float16"] | None = None
    """Of the language model's tensors; none means float32 for a run, and the base's own. Releases are float16."""
    channels: Literal[1, 2] | None = None
    """Of a base: 2 makes a mono one stereo."""

    def __post_init__(self) -> None:
        if (self.run is None) == (self.base is None):
            raise ValueError("expected a RUN, or --from BASE, and not both.")
        if self.run is not None and self.channels is not None:
            raise ValueError("--channels goes with --from: a run has the channels of its shards.")
        if self.run is None and self.format == "adapter":
            raise ValueError("--format adapter goes with a RUN that trained one: a base holds none.")


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """A run or a generator is measured and listened to beside its base: one page, and its numbers as JSON."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("model", "shards")

    model: str
    """Folder of a run, or a generator: nano, a hub id, a folder."""
    shards: str | None = None
    """Folder of shards, or the URL of one; none means those that the run was trained on."""
    out: Path
    """Folder to make: index.html, evaluation.json, sounds."""
    base: str | None = None
    """What to compare with; none means what the model was trained from, "none" nothing."""
    checkpoint: Literal["best", "last"] = "best"
    """Of a run: best by validation loss, or last."""
    weights: Literal["auto", "ema", "raw"] = "auto"
    """Of a run: averaged or raw weights; auto: averaged where it has them."""
    pieces: int = 16
    """Pieces that each model plays, to captions of held-out tracks; distances want many."""
    duration_s: float = 10.0
    """Seconds of each."""
    segment_s: float | None = None
    """Seconds of a clip whose loss is measured; none means as in the run's training."""
    valid_max_clips: int | None = None
    """Clips whose loss is measured, of each split, at most; none means as in the run's validation."""
    clap: str | None = None
    """CLAP for how sound fits its text: a folder, or a hub id, which is fetched; none takes laion/larger_clap_music
    where it is in the cache already."""
    judge: Path | None = None
    """Folder of labelled audio of many genres, none of it trained on: a judge learns them, and hears what is played. Or
    nano: the one that comes with it, of the genres of synthesize; or a file of train/nano_judge.py."""
    others: str | None = None
    """Shards of other music than was trained on: whether it plays that as well as before, too."""
    players: int = 6
    """Prompts to listen to on the page, at most."""
    seed: int = 0
    """Of the first piece; each further one counts up."""
    batch_size: int = 4
    """Pieces, and clips, at once."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    wandb: Literal["off", "auto", "online", "offline"] = "off"
    """auto: online where wandb has an account, else offline."""
    wandb_project: str = "musicgen-ft"
    """Project in wandb."""

    def __post_init__(self) -> None:
        _positive(self, "pieces", "duration_s", "batch_size")
        _not_negative(self, "players", "seed")
        for name in ("segment_s", "valid_max_clips"):
            if getattr(self, name) is not None:
                _positive(self, name)
        if self.judge is not None and self.duration_s < 1:
            raise ValueError(
                f"duration_s: found {self.duration_s} with --judge, expected 1 or more: less tells no genre."
            )
        if self.pieces * self.duration_s < 2:
            raise ValueError(
                f"found {self.pieces} x {self.duration_s:g} s of music, expected at least 2 s for a distance. "
                "Give more --pieces, or a longer --duration_s."
            )


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Prompts become WAV files, each with a JSON beside it that says how it was made."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("generator",)

    generator: str
    """nano, a hub id, or a folder: a base, or what export wrote."""
    prompt: tuple[str, ...] = ()
    """What to play; give --prompt again for more. An empty one is unconditional."""
    prompts: Path | None = None
    """File with a prompt on each line, or .jsonl with prompt, seed, duration_s, cfg_coef, negative_prompt; run again,
    it goes on where it was stopped."""
    out: Path
    """Folder for the files."""
    melody: Path | None = None
    """Audio file whose melody all prompts follow, for a generator made from a melody base."""
    adapter: tuple[str, ...] = ()
    """FOLDER or FOLDER=STRENGTH of an adapter of this generator, 1 where not said; give it again to blend several."""
    audio_prompt: Path | None = None
    """Audio file that all pieces go on from; it is their beginning, and counts in duration_s."""
    negative_prompt: str = ""
    """What guidance leads away from; an empty one is the usual null condition."""
    duration_s: float = 10.0
    """Seconds of audio; beyond what the model was trained on, by a moving window."""
    top_k: int | None = None
    """Draw from the k most likely codes; 0 means all. Where nothing is said: 250 of 2048, and that share of others."""
    top_p: float = 0.0
    """Draw from the most likely codes that make up p; above 0 it replaces top_k."""
    temperature: float = 1.0
    """Above 1 more adventurous, below 1 safer, 0 always the most likely code."""
    cfg_coef: float = 3.0
    """How closely to follow the prompt; 1 switches guidance off."""
    cfg_coef_beta: float | None = None
    """Double guidance, with a melody: how much more the prompt counts than the melody alone; none is single."""
    two_step_cfg: bool = False
    """Predict with and without the prompt in two passes in place of one: less memory, more time."""
    seed: int = 0
    """Of the first prompt; each further one counts up."""
    batch_size: int = 4
    """Prompts at once."""
    stride_s: float = 18.0
    """Seconds by which the window moves on in long pieces."""
    retry_silent: int = 0
    """Times that a piece is played again that fell silent or into a loop, with seed + 1000000, + 2000000, ...; it is
    broken off as soon as that is certain, but for the last time."""
    engine: Literal["native", "audiocraft", "transformers"] = "native"
    """Whose code plays."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dtype: Literal["auto", "fp32", "bf16", "fp16", "int8"] = "auto"
    """Of the layers' weights. auto is fp16 on a GPU, and on a CPU where it loses nothing, else fp32; bf16 and int8 are
    faster on a CPU, and no longer give the same codes."""

    def __post_init__(self) -> None:
        _positive(self, "duration_s", "batch_size", "stride_s")
        given: dict[str, object] = {"audio_prompt": self.audio_prompt, "negative_prompt": self.negative_prompt.strip()}
        given |= {"cfg_coef_beta": self.cfg_coef_beta, "dtype": self.dtype if self.dtype != "auto" else None}
        if self.engine != "native" and any(given.values()):
            name = next(name for name, value in given.items() if value)
            raise ValueError(f"{name}: found one for --engine {self.engine}, it is for --engine native.")
        _not_negative(self, "temperature", "cfg_coef", "seed", "retry_silent")
        if self.top_k is not None:
            _not_negative(self, "top_k")
        if self.cfg_coef_beta is not None:
            _not_negative(self, "cfg_coef_beta")
        _probability(self, "top_p")
        if not self.prompt and self.prompts is None:
            raise ValueError("prompt: found none, expected at least one. Give --prompt TEXT, or --prompts FILE.")
        if self.retry_silent and self.temperature == 0:
            raise ValueError("--retry_silent: at --temperature 0 every seed plays the same. Leave one of them out.")
        if self.adapter and self.engine != "native":
            raise ValueError(
                f"--adapter goes with --engine native, found {self.engine}: that one plays merged exports."
            )


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """A page on this machine to type prompts, drop a melody or a clip, and hear two models side by side."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ("generator",)

    generator: tuple[str, ...]
    """One or more, the base before the tuned: nano, a hub id, or a folder."""
    adapter: tuple[str, ...] = ()
    """Adapter over the first generator, on a slider; give --adapter again for more. The right side begins with it."""
    host: str = "127.0.0.1"
    """Address to listen at. Any other lets every machine that reaches it play, without a password."""
    port: int = 7860
    """Port to listen at; 0 takes a free one."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    max_duration_s: float = 120.0
    """Seconds of the longest piece that the page offers."""
    max_models: int = 2
    """Models kept in memory; the one that has not played for longest goes."""

    def __post_init__(self) -> None:
        _positive(self, "max_duration_s", "max_models")
        _not_negative(self, "port")
        if self.port > 65535:
            raise ValueError(f"port: found {self.port}, expected at most 65535.")
        if not self.generator:
            raise ValueError("generator: found none, expected at least one, such as nano.")


HELD_OUT_GENRES = ("reggae", "chiptune")
"""Genres of the rules that nano is never trained on: what fine-tuning is shown on."""


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The whole job in one go: synthesize, prepare, finetune, export, evaluate, sample."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ()

    out: Path
    """Folder for everything that it makes."""
    corpus: Path | None = None
    """Your own folder of labelled audio; none synthesizes one, and music to judge by."""
    genre: str = HELD_OUT_GENRES[0]
    """What is synthesized: a genre of the rules; nano has never heard reggae and chiptune."""
    base: str = "nano"
    """Model to start from."""
    finetune_config: str = "demo_lora"
    """Config of finetune: a name in configs/finetune, or a file."""
    tracks: int = 192
    """Tracks to synthesize, of 10 s."""
    old_tracks: int = 160
    """Tracks of the genres that nano knows, to train on beside them: without any, they are forgotten."""
    max_steps: int | None = None
    """Optimizer steps; none means the config's."""
    prompt: tuple[str, ...] = ()
    """What to play in the end; none means captions of the corpus."""
    pieces: int = 24
    """Pieces that base and tuned play to be compared, of the genre and of others."""
    duration_s: float = 10.0
    """Seconds of each piece and sample."""
    seed: int = 0
    """Of everything."""

    def __post_init__(self) -> None:
        _positive(self, "tracks", "pieces", "duration_s")
        _not_negative(self, "old_tracks")
        if self.corpus is None and self.duration_s < 1:
            raise ValueError(f"duration_s: found {self.duration_s}, expected 1 or more: less tells no genre.")


@dataclass(frozen=True, kw_only=True)
class PretrainNanoConfig:
    """Makes nano from nothing: corpus, codec, text encoder, language model. What is done already is not done again."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ()

    out: Path
    """Folder for everything that it makes; ``nano/`` in it is the base."""
    tracks: int = 7200
    """Tracks to synthesize, of all genres but those held out."""
    held_out: tuple[str, ...] = HELD_OUT_GENRES
    """Genres to leave out."""
    duration_s: float = 10.0
    """Seconds of each track."""
    codec_tracks: int = 500
    """Tracks that the codec learns from."""
    codec_steps: int = 6000
    """Optimizer steps of the codec."""
    text_steps: int = 1500
    """Optimizer steps of the text encoder."""
    finetune_config: str = "pretrain_nano"
    """Config of finetune for the language model: a name in configs/finetune, or a file."""
    max_steps: int | None = None
    """Optimizer steps of the language model; none means the config's. A run that has begun keeps its own."""
    seed: int = 1
    """Of everything; reports use seeds far from it."""

    def __post_init__(self) -> None:
        _positive(self, "tracks", "duration_s", "codec_tracks", "codec_steps", "text_steps")


@dataclass(frozen=True, kw_only=True)
class NanoJudgeConfig:
    """Makes the judge that comes with nano: it tells the genres of synthesize."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ()

    out: Path
    """Folder for what it makes; genres.npz is the judge."""
    base: str = "nano"
    """Whose codec it is to hear through."""
    tracks: int = 960
    """Tracks that it learns from, of all genres in turn."""
    test_tracks: int = 240
    """Other tracks, of which it is told how many it is right about."""
    duration_s: float = 10.0
    """Seconds of each."""
    seed: int = 950_000
    """Of the tracks; the next one is that of the others. Training has those below 1000."""

    def __post_init__(self) -> None:
        _positive(self, "tracks", "test_tracks")
        if not self.duration_s >= 1:
            raise ValueError(f"duration_s: found {self.duration_s}, expected 1 or more: less tells no genre.")
        if not self.seed >= 1000:
            raise ValueError(f"seed: found {self.seed}, expected 1000 or more: training has those below.")


@dataclass(frozen=True, kw_only=True)
class NanoReportConfig:
    """How good the bundled base is: its codec, its losses and what captions steer, on music that no training saw."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ()

    out: Path
    """Folder to make: report.json, and report.html to look at and listen to."""
    base: str = "nano"
    """What to measure: nano, or a folder of a base that was trained on synthesized music."""
    card: bool = False
    """Write the figures into the model card, README.md in the base's folder."""
    finetuning: Path | None = None
    """Folder of train/nano_finetuning.py, whose figures then stand in the report, too."""
    held_out: tuple[str, ...] = HELD_OUT_GENRES
    """Genres that the base was not trained on: none of its clips is asked for them."""
    clips: int = 30
    """Unseen clips of each genre, for the codec, and to be generated."""
    judge_clips: int = 30
    """Other unseen clips of each genre, to train the judge of genres."""
    duration_s: float = 10.0
    """Seconds of each clip; tempo is heard from 5 on."""
    top_k: int | None = None
    """As of sample."""
    temperature: float = 1.0
    """As of sample."""
    cfg_coef: float = 3.0
    """As of sample."""
    batch_size: int = 8
    """Clips at once."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    seed: int = 900_000
    """Of the judge's clips; the next one is that of the unseen clips. Training has those below 1000."""

    def __post_init__(self) -> None:
        _positive(self, "clips", "batch_size")
        _not_negative(self, "temperature", "cfg_coef")
        if self.top_k is not None:
            _not_negative(self, "top_k")
        if not self.duration_s >= 1:
            raise ValueError(f"duration_s: found {self.duration_s}, expected 1 or more: less tells no genre.")
        if not self.judge_clips >= 2:
            raise ValueError(f"judge_clips: found {self.judge_clips}, expected 2 or more.")
        if not self.seed >= 1000:
            raise ValueError(f"seed: found {self.seed}, expected 1000 or more: training has those below.")


@dataclass(frozen=True, kw_only=True)
class NanoFinetuningConfig:
    """Whether nano learns a genre that it has never heard: by all weights, by adapters, and not from wrong captions."""

    POSITIONAL: ClassVar[tuple[str, ...]] = ()

    out: Path
    """Folder for everything that it makes; finetuning.json holds the figures."""
    base: str = "nano"
    """What to fine-tune: nano, or a folder of a base that was trained on synthesized music."""
    genre: str = HELD_OUT_GENRES[0]
    """What it is to learn."""
    held_out: tuple[str, ...] = HELD_OUT_GENRES
    """Genres that the base was not trained on; the others are not to be forgotten."""
    tracks: int = 192
    """Tracks of the genre to learn from."""
    old_tracks: int = 160
    """Tracks of the others beside them, in the arms that have them."""
    judge_tracks: int = 240
    """Tracks of all genres that the judge learns from, of another base than nano, whose judge comes with it."""
    duration_s: float = 10.0
    """Seconds of each track."""
    finetune_config: str = "demo"
    """Config of finetune: a name in configs/finetune, or a file."""
    max_steps: int | None = None
    """Optimizer steps; none means the config's."""
    pieces: int = 40
    """Pieces that are played to captions of unseen tracks, of the genre and of the others."""
    piece_s: float = 10.0
    """Seconds of each piece."""
    seed: int = 910_000
    """Of the tracks; the next two are those of the unseen ones and of the judge's."""

    def __post_init__(self) -> None:
        _positive(self, "tracks", "old_tracks", "judge_tracks", "duration_s", "pieces", "piece_s")


def to_plain(config: Any) -> dict[str, Any]:
    """The config as plain values, for YAML, checkpoints and loggers."""
    return {name: _plain(value) for name, value in asdict(config).items()}


def write_yaml(path: Path, config: Any) -> None:
    """Writes the resolved config."""
    path.write_text(yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True), encoding="utf-8")


def config_folder() -> Path:
    """The shipped configs: the checkout's where there is one, else the installed package's."""
    package = Path(__file__).parent
    checkout = package.parent
    return checkout / "configs" if (checkout / "pyproject.toml").is_file() else package / "configs"


def config_path(recipe: str, name: str) -> Path:
    """The YAML that ``--config`` means: a file, or the name of a shipped one.

    Raises:
        UserError: listing the names that there are.
    """
    shipped = config_folder() / recipe
    for path in (Path(name), shipped / f"{name}.yaml"):
        if path.is_file():
            return path
    names = ", ".join(sorted(path.stem for path in shipped.glob("*.yaml"))) or "none"
    raise UserError(f"--config {name}: no such file, and no shipped config of {recipe}. Shipped: {names}.")


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def _positive(config: Any, *names: str) -> None:
    for name in names:
        if not getattr(config, name) > 0:
            raise ValueError(f"{name}: found {getattr(config, name)}, expected a number above 0.")


def _not_negative(config: Any, *names: str) -> None:
    for name in names:
        if not getattr(config, name) >= 0:
            raise ValueError(f"{name}: found {getattr(config, name)}, expected 0 or more.")


def _probability(config: Any, *names: str) -> None:
    for name in names:
        if not 0.0 <= getattr(config, name) <= 1.0:
            raise ValueError(f"{name}: found {getattr(config, name)}, expected a number from 0 to 1.")
