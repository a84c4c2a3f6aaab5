"""The server: where it listens, what it calls the model, and what a client may ask of it."""

from __future__ import annotations

import dataclasses
from typing import Literal

from chameleon_jax.config_base import Config
from chameleon_jax.configs.generation import EngineConfig, GenerationConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig(Config):
    """`experiments.serve`. `generation` holds what a request that does not say otherwise gets; its mode and seed are not used."""

    host: str = "127.0.0.1"
    port: int = 8000  # 0 = any free one, which the log names
    model_name: str = ""  # what clients call the model, where there is one; empty = the name of the workdir
    cors_origin: tuple[str, ...] = ()  # scheme, host and port of web pages that may use the API; * = all
    # Of requests that do not name theirs; auto = what the model was trained on, an empty mode = text.
    format: Literal["auto", "completion", "chat", "lumina"] = "auto"
    mode: str = ""
    # Of a chat's `message.content`: words alone, with the data beside it; all in order; or pictures as markdown among the words.
    content_format: Literal["text", "parts", "markdown"] = "text"
    generation: GenerationConfig = dataclasses.field(default_factory=GenerationConfig)
    engine: EngineConfig = dataclasses.field(default_factory=EngineConfig)
    partial_every: int = 0  # codes between two previews of a streamed span; 0 = an eighth of the longest

    max_body_bytes: int = 20_000_000
    max_media: int = 8  # pictures and other data of a prompt
    max_pixels: int = 50_000_000  # of each of them
    max_choices: int = 8  # `n`
    max_tokens: int = 0  # of an output; 0 = the context
    max_stop: int = 4  # stop strings
    request_seconds: float = 600.0  # from the last byte of a request to the last of its answer
    body_seconds: float = 60.0  # for all of a request's body
    idle_seconds: float = 120.0  # that a client may take to accept the next piece of its answer
    drain_seconds: float = 30.0  # that streams get to finish after SIGTERM

    def validate(self):
        self.require(0 <= self.port <= 65535, f"port must be in 0..65535, got {self.port}")
        for origin in self.cors_origin:
            self.require(
                origin == "*" or (origin.startswith(("http://", "https://")) and origin.count("/") == 2),
                f"cors_origin must be like https://chat.example.org, without a path, got {origin!r}",
            )
        for name in ("max_body_bytes", "max_pixels", "max_choices"):
            self.require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("partial_every", "max_media", "max_tokens", "max_stop"):
            self.require(getattr(self, name) >= 0, f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("request_seconds", "body_seconds", "idle_seconds", "drain_seconds"):
            self.require(getattr(self, name) > 0, f"{name} must be positive, got {getattr(self, name)}")
