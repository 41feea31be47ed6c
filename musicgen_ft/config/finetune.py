"""What a user may choose of ``finetune``."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from musicgen_ft.config.checks import not_negative, positive, probability


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
        positive(
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
        positive(self, "valid_every_steps", "valid_max_clips", "save_every_steps", "log_every_steps")
        positive(self, "keep_last", "timeout_minutes", "lora_rank", "lora_alpha", "forgetting_s", "sample_s")
        not_negative(self, "warmup_steps", "weight_decay", "num_workers", "seed", "forgetting_clips")
        probability(self, "dropout", "ema_decay", "cfg_dropout", "lr_min_ratio", "word_dropout", "beta1", "beta2")
        probability(self, "merge_text_p", "drop_desc_p", "field_keep_p", "field_dropout", "melody_dropout")
        probability(self, "lora_dropout")
        optional = ("devices", "micro_batch_size", "save_every_minutes", "milestone_every_steps")
        for name in (*optional, "early_stop_validations", "sample_every_steps"):
            if getattr(self, name) not in (None, "auto"):
                positive(self, name)

    @property
    def is_open(self) -> bool:
        """Whether something is left to be chosen by the machine's memory."""
        return "auto" in (self.method, self.recompute, self.micro_batch_size)
