"""Losses, optimiser, checkpoints and a whole pretraining run."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Literal

from chameleon_jax.config_base import Config
from chameleon_jax.configs.data import DataConfig
from chameleon_jax.configs.model import MeshConfig, TransformerConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig(Config):
    """Cross-entropy per modality with z-loss (Chameleon, section 2.3.2: 1e-5 log^2 Z)."""

    z_loss: float = 1e-5
    # By modality; of one not named, the vocabulary's.
    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    chunk: int = 1024  # tokens whose logits exist at one time on a device

    def validate(self):
        self.require(self.z_loss >= 0, f"z_loss must not be negative, got {self.z_loss}")
        for name, weight in self.weights.items():
            self.require(
                weight >= 0 and math.isfinite(weight),
                f"weights: that of '{name}' must be finite and not negative, got {weight}",
            )
        self.require(self.chunk >= 1, f"chunk must be at least 1, got {self.chunk}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig(Config):
    """AdamW as in the Chameleon paper, section 2.3.1."""

    learning_rate: float = 1e-4
    warmup_steps: int | None = None  # None: the paper's 4,000, but no more than a tenth of the run
    schedule: Literal["exponential", "cosine", "constant"] = "exponential"
    exponential_rate: float = 0.01  # curve of the exponential decay; the schedule itself ends at exactly 0
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-5
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    skip_nonfinite: bool = True  # a step whose loss or gradient is not finite changes nothing and is counted

    def validate(self):
        self.require(self.learning_rate > 0, f"learning_rate must be positive, got {self.learning_rate}")
        self.require((self.warmup_steps or 0) >= 0, f"warmup_steps must not be negative, got {self.warmup_steps}")
        self.require(0 < self.exponential_rate < 1, f"exponential_rate must be in (0, 1), got {self.exponential_rate}")
        self.require(
            0 <= self.beta1 < 1 and 0 <= self.beta2 < 1, f"betas must be in [0, 1), got {self.beta1}, {self.beta2}"
        )
        self.require(self.eps > 0, f"eps must be positive, got {self.eps}")
        self.require(self.weight_decay >= 0, f"weight_decay must not be negative, got {self.weight_decay}")
        self.require(self.clip_norm > 0, f"clip_norm must be positive, got {self.clip_norm}")

    def warmup_of(self, steps: int) -> int:
        """Warm-up of a run of `steps`. The paper's 4,000 would end a short run before it has learned anything."""
        return min(4000, steps // 10) if self.warmup_steps is None else self.warmup_steps


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig(Config):
    """When to save and what to keep."""

    every_steps: int = 1000
    keep: int = 3  # newest verified steps that stay; at least 2
    keep_every: int = 0  # steps divisible by it are never deleted; 0 = none

    def validate(self):
        self.require(self.every_steps >= 1, f"every_steps must be at least 1, got {self.every_steps}")
        self.require(self.keep >= 2, f"keep must be at least 2 (one may be damaged), got {self.keep}")
        self.require(self.keep_every >= 0, f"keep_every must not be negative, got {self.keep_every}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """Length, batch and rhythm of a run."""

    steps: int
    batch_size: int  # rows of seq_len tokens in one optimiser step, over all devices
    microbatches: int = 1
    seed: int = 0
    log_every: int = 10
    eval_every: int = 500
    eval_batches: int = 8
    sample_every: int = 0  # steps between two pages of what the model makes of held-out documents; 0 = none
    sample_prompts: tuple[str, ...] = ()  # in place of the texts of these documents
    peak_flops: float = 0.0  # FLOP/s of one device for MFU; 0 = from the table of known devices, else measured
    memory_gb: float = 0.0  # of a device, 10^9 bytes; a run that needs far more does not start; 0 = as it says

    def validate(self):
        self.require(self.sample_every >= 0, f"sample_every must not be negative, got {self.sample_every}")
        for name in (
            "steps",
            "batch_size",
            "microbatches",
            "log_every",
            "eval_every",
            "eval_batches",
        ):
            self.require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        self.require(
            self.batch_size % self.microbatches == 0,
            f"batch_size {self.batch_size} is not a multiple of microbatches {self.microbatches}",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitConfig(Config):
    """Weights to start from: a workdir of ours, trained or made by `experiments.convert`. A resumed run does not read it."""

    workdir: str
    step: int | None = None  # None: the newest that verifies
    parameters: tuple[str, ...] = ("*",)  # patterns of paths, as 'layers/*'; the others start from scratch

    def validate(self):
        self.require(bool(self.workdir), "workdir is empty")
        self.require(self.step is None or self.step >= 0, f"step must not be negative, got {self.step}")
        self.require(len(self.parameters) > 0, "parameters is empty: nothing would be taken; leave init_from out")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainableConfig(Config):
    """Which parameters are trained; what is frozen has no moments and no weight decay.

    Anole's way of adding pictures to a model that reads them: parameters=("head",), rows=("image",), by the name of the modality.
    """

    parameters: tuple[str, ...] = ("*",)  # patterns of paths, as in "layers/attn/*"; * matches / too
    rows: tuple[str, ...] = ()  # named ids of the vocabulary; of embed and head only theirs are trained; empty = all

    def validate(self):
        self.require(len(self.parameters) > 0, "parameters is empty: nothing would be trained")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig(Config):
    """What every training run has, whatever its task."""

    train: TrainConfig
    init_from: InitConfig | None = None  # where a run without a checkpoint of its own starts; None: from scratch
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    trainable: TrainableConfig = dataclasses.field(default_factory=TrainableConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)

    # Fields that may differ between a run and its resumption; a change anywhere else is refused, but for `shaped_by_steps`.
    FREE_ON_RESUME: typing.ClassVar[tuple[str, ...]] = (
        "mesh.", "checkpoint.", "init_from", "train.log_every", "train.eval_every", "train.eval_batches", "train.peak_flops",
        "train.sample_every", "train.sample_prompts", "train.memory_gb",
    )  # fmt: skip

    def shaped_by_steps(self, then: int) -> str:
        """What would have been otherwise in a run planned for `then` steps, had `train.steps` been known; empty if nothing."""
        optim = self.optim
        if optim.schedule != "constant":
            return f"the learning rate decays ({optim.schedule}) to 0 at the last step; schedule='constant' does not"
        if (before := optim.warmup_of(then)) != (now := optim.warmup_of(self.train.steps)):
            return f"the warm-up would be {now} steps and not {before}; set OptimConfig.warmup_steps={before}"
        return ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PretrainConfig(RunConfig):
    """A whole pretraining run."""

    model: TransformerConfig
    data: DataConfig
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)

    FREE_ON_RESUME: typing.ClassVar[tuple[str, ...]] = (
        *RunConfig.FREE_ON_RESUME, "data.cache_bytes", "data.prefetch", "data.eval_stores", "model.remat", "model.scan_unroll",
    )  # fmt: skip

    def shaped_by_steps(self, then: int) -> str:
        if any(store.stage == 2 for store in self.data.stores):
            return "the second stage of the data begins at a fraction of the steps"
        return super().shaped_by_steps(then)

    def validate(self):
        self.require(
            self.data.seq_len <= self.model.max_seq_len,
            f"data.seq_len {self.data.seq_len} exceeds model.max_seq_len {self.model.max_seq_len}",
        )
