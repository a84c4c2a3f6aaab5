"""Early-fusion mixed-modal models in JAX: text and images as one stream of tokens."""

__version__ = "0.1.0"
