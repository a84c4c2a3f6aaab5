"""Every setting of every run, as frozen keyword-only dataclasses that check themselves.

A config is made once, on the main thread, by gin or by Python alike, and is complete and valid from then on.
Types are checked when the object is made, then `validate` checks the rules of fields and between fields. Nothing below the
entry points reads gin, flags or the environment.
"""

from chameleon_jax.configs.data import (
    DataConfig,
    SourceConfig,
    StoreConfig,
    TokenizeConfig,
    TrainTokenizerConfig,
)
from chameleon_jax.configs.generation import (
    MAX_STOP_IDS,
    SAMPLING_PRESETS,
    CaptionEvalConfig,
    EngineConfig,
    GenerationConfig,
    GuidanceConfig,
)
from chameleon_jax.configs.model import (
    MeshConfig,
    NumericsConfig,
    PatchEncoderConfig,
    TransformerConfig,
)
from chameleon_jax.configs.serving import ServeConfig
from chameleon_jax.configs.sound import SoundConfig, SoundTrainConfig
from chameleon_jax.configs.tokenizers import (
    ImageConfig,
    VQConfig,
    VQTrainConfig,
)
from chameleon_jax.configs.training import (
    CheckpointConfig,
    InitConfig,
    LossConfig,
    OptimConfig,
    PretrainConfig,
    RunConfig,
    TrainableConfig,
    TrainConfig,
)
from chameleon_jax.configs.vocab import ModalityConfig, SamplingConfig, VocabConfig, text_and_image

__all__ = [
    "MAX_STOP_IDS",
    "SAMPLING_PRESETS",
    "CaptionEvalConfig",
    "CheckpointConfig",
    "DataConfig",
    "EngineConfig",
    "GenerationConfig",
    "GuidanceConfig",
    "ImageConfig",
    "InitConfig",
    "LossConfig",
    "MeshConfig",
    "ModalityConfig",
    "NumericsConfig",
    "OptimConfig",
    "PatchEncoderConfig",
    "PretrainConfig",
    "RunConfig",
    "SamplingConfig",
    "ServeConfig",
    "SoundConfig",
    "SoundTrainConfig",
    "SourceConfig",
    "StoreConfig",
    "TokenizeConfig",
    "TrainConfig",
    "TrainTokenizerConfig",
    "TrainableConfig",
    "TransformerConfig",
    "VQConfig",
    "VQTrainConfig",
    "VocabConfig",
    "text_and_image",
]
