"""The models of one server: a request's `model` chooses, and without it the first answers."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence

from chameleon_jax.errors import ConfigError, did_you_mean
from chameleon_jax.serving.errors import ApiError
from chameleon_jax.serving.service import Service

# Of several models the server is as the first of these that one of them is.
_STATES = ("failed", "draining", "compiling", "ok")


class Models:
    """Services by the name of their model, each with slots of its own."""

    def __init__(self, services: Sequence[Service]):
        """Raises ConfigError for two models of one name."""
        self._services = {service.model_name: service for service in services}
        if len(self._services) < len(services):
            raise ConfigError(
                "two models are called the same: name them, as in --workdir=one=runs/a/model --workdir=two=runs/b/model"
            )
        self.first = services[0]

    def __iter__(self) -> Iterator[Service]:
        return iter(self._services.values())

    def find(self, name: str | None) -> Service:
        """Raises ApiError 404 for a name that no model has."""
        if name is None:
            return self.first
        if name not in self._services:
            names = list(self._services)
            hint = did_you_mean(name, names) or f": this server has {', '.join(map(repr, names))}"
            raise ApiError(404, f"the model '{name[:100]}' does not exist{hint}", param="model", code="model_not_found")
        return self._services[name]

    @contextlib.contextmanager
    def admit(self) -> Iterator[Place]:
        """A place for a request whose model is not known yet: with the one that has most of them. Raises ApiError 429."""
        with contextlib.ExitStack() as held:
            service = max(self, key=lambda service: service.places_left)
            held.enter_context(service.admit())
            place = Place(held, service)
            try:
                yield place
            finally:
                place.end()

    @property
    def status(self) -> str:
        found = {service.status for service in self}
        return next(state for state in _STATES if state in found)


class Place:
    """Where a request counts until it is answered."""

    def __init__(self, held: contextlib.ExitStack, service: Service):
        self._held, self._service = held, service
        self._started, self._is_asked = time.monotonic(), False

    def move(self, service: Service) -> None:
        """To the model that was asked for. Raises ApiError 429 where that has no place."""
        if service is not self._service:
            self._held.close()
            self._held.enter_context(service.admit())
            self._service = service
        self._is_asked = True

    def end(self) -> None:
        """Tell the model that was asked for, and no other, how long its request took."""
        if self._is_asked:
            self._service.took(time.monotonic() - self._started)
