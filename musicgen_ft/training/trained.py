"""The model that a run has come to, whole."""

from collections.abc import Mapping

from torch import Tensor

from musicgen_ft.checkpoint.base import Base
from musicgen_ft.config.finetune import FinetuneConfig
from musicgen_ft.model.lora import adapter_spec, is_partial, merged
from musicgen_ft.training.run import RunInfo, check_base
from musicgen_ft.weights import from_files, state_sha256


def whole_model(
    config: FinetuneConfig, info: RunInfo, base: Base, trained: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """What a run trained, over its base where that was not all of it; adapters are merged, exactly, in fp32."""
    if not is_partial(config):
        return trained
    check_base(info, state_sha256(from_files(base.lm_state)))
    return merged(from_files(base.lm_state), trained, adapter_spec(config))
