"""The routes: OpenAI's, and what an operator and the page need."""

from __future__ import annotations

import asyncio
import contextlib
import mimetypes
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from fastapi import FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.types import ASGIApp

from chameleon_jax.configs import ModalityConfig
from chameleon_jax.errors import ChameleonError, did_you_mean
from chameleon_jax.serving import schema
from chameleon_jax.serving.errors import ApiError, bad_request
from chameleon_jax.serving.limits import OPEN_PATHS, Guard, is_loopback, read_body
from chameleon_jax.serving.models import Models
from chameleon_jax.serving.replies import (
    Choice,
    Envelope,
    Update,
    chat_delta,
    completion_delta,
    event,
)
from chameleon_jax.serving.responses import ResponsesRequest, ResponseWriter, response_events
from chameleon_jax.serving.service import PreparedRequest, Service
from chameleon_jax.serving.settings import can_write, default_sampling, token_limit
from chameleon_jax.serving.streams import EventStream, until_gone
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from chameleon_jax.tokenizers.pictures import PictureCodec

PAGE = Path(__file__).parent / "page"

# The page is whole in itself: whatever a model writes into it can neither load nor send anything elsewhere.
_PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; object-src 'none'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def create_app(*services: Service, api_key: str | None = None, insecure: bool = False) -> ASGIApp:
    """The ASGI application of one model or several, whose configs are alike.

    With `insecure` any host name is answered without a key. Raises ConfigError for two models of one name.
    """
    models = Models(services)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        for service in services:
            await asyncio.to_thread(service.close)

    app = FastAPI(title="chameleon_jax", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    _add_generation(app, models)
    _add_information(app, models)
    page_files = _add_page(app)
    _add_errors(app)
    paths = frozenset(route.path for route in app.routes)
    check_host = api_key is None and not insecure and is_loopback(models.first.config.host)
    public = frozenset({*OPEN_PATHS, *page_files})
    app.add_middleware(
        Guard,
        config=models.first.config,
        metrics=models.first.metrics,
        api_key=api_key,
        check_host=check_host,
        public=public,
        paths=paths,
    )
    return app


def _add_generation(app: FastAPI, models: Models) -> None:
    routes = {
        "/v1/chat/completions": (schema.ChatRequest, _answer_text("chat.completion")),
        "/v1/completions": (schema.CompletionRequest, _answer_text("text_completion")),
        "/v1/images/generations": (schema.ImagesRequest, _answer_images),
        "/v1/responses": (ResponsesRequest, _answer_response),
    }
    for path, (kind, answer) in routes.items():
        app.add_route(path, _generating(models, kind, answer), methods=["POST"])


def _generating(models: Models, kind: type[schema.RequestFields], answer: Callable) -> ASGIApp:
    """A route that holds a place from before the body is read until the answer is out."""

    class Route:
        async def __call__(self, scope, receive, send):
            with models.admit() as place:
                body = await read_body(Request(scope, receive), models.first.config)
                request = await models.first.on_worker(schema.parse, kind, body)
                del body
                service = models.find(request.model)
                place.move(service)
                with contextlib.ExitStack() as held:
                    response = await until_gone(receive, self._respond(service, request, held))
                    await response(scope, receive, send)

        async def _respond(
            self, service: Service, request: schema.RequestFields, held: contextlib.ExitStack
        ) -> ASGIApp:
            prepared = await service.prepare(request)
            jobs = service.start(prepared)
            held.callback(jobs.cancel)  # whatever happens: a generator that nobody began would not
            return await answer(service, request, prepared, service.updates(prepared, jobs))

    return Route()


def _answer_text(kind: str) -> Callable:
    async def answer(
        service: Service, request: schema.RequestFields, prepared: PreparedRequest, updates: AsyncIterator[Update]
    ) -> ASGIApp:
        envelope = Envelope(kind=kind, model=service.model_name, seed=prepared.config.seed)
        is_chat, with_ids = kind == "chat.completion", bool(request.return_token_ids)
        prompt_ids = (
            {"prompt_token_ids": prepared.prompts[0].tolist()} if with_ids and len(prepared.prompts) == 1 else {}
        )
        if request.stream:
            return EventStream(_events(envelope, request, prepared, updates, prompt_ids))
        choices = [Choice(i) for i in range(len(prepared.prompts) * prepared.choices)]
        await _collect(updates, choices)
        form = prepared.content_format
        written = [choice.chat(with_ids, form) if is_chat else choice.completion(with_ids) for choice in choices]
        return JSONResponse(envelope.whole(written, prepared.usage) | prompt_ids | _notes(request))

    return answer


async def _answer_response(
    service: Service, request: ResponsesRequest, prepared: PreparedRequest, updates: AsyncIterator[Update]
) -> ASGIApp:
    writer = ResponseWriter(request=request, model=service.model_name, seed=prepared.config.seed, usage=prepared.usage)
    if request.stream:
        return EventStream(response_events(writer, updates))
    await _collect(updates, [writer])
    return JSONResponse(writer.response())


async def _collect(updates: AsyncIterator[Update], choices: list[Choice] | list[ResponseWriter]) -> None:
    try:
        async for update in updates:
            choices[update.choice].add(update)
    except ChameleonError as error:  # of the engine: the request was fine
        raise ApiError(500, str(error)) from error
    finally:
        await updates.aclose()


async def _events(
    envelope: Envelope,
    request: schema.RequestFields,
    prepared: PreparedRequest,
    updates: AsyncIterator[Update],
    prompt_ids: dict,
) -> AsyncIterator[bytes]:
    is_chat, with_ids = envelope.kind == "chat.completion", bool(request.return_token_ids)
    options = request.stream_options
    try:
        if is_chat:
            first = {"delta": {"role": "assistant", "content": ""}, "finish_reason": None, "logprobs": None}
            choices = [{"index": i, **first} for i in range(prepared.choices)]
            yield event(envelope.chunk(choices) | prompt_ids)
            prompt_ids = {}
        async for update in updates:
            form = prepared.content_format
            choice = chat_delta(update, with_ids, form) if is_chat else completion_delta(update, with_ids)
            notes = _notes(request) if update.finish_reason else {}
            yield event(envelope.chunk([choice]) | prompt_ids | notes)
            prompt_ids = {}
        if options and options.include_usage:
            yield event(envelope.chunk([]) | {"usage": prepared.usage.to_dict()} | _notes(request))
    finally:
        await updates.aclose()


def _notes(request: schema.RequestFields) -> dict:
    """What was done otherwise than asked."""
    return {"notes": request.notes} if request.notes else {}


async def _answer_images(
    service: Service, request: schema.ImagesRequest, prepared: PreparedRequest, updates: AsyncIterator[Update]
) -> ASGIApp:
    envelope = Envelope(kind="images", model=service.model_name, seed=prepared.config.seed)
    if request.stream:
        return EventStream(_image_events(envelope, request, prepared, updates))
    choices = [Choice(i) for i in range(prepared.choices)]
    await _collect(updates, choices)
    drawn = [picture for choice in choices for picture in choice.spans]
    is_url = request.response_format == "url"
    data = [
        ({"url": picture.url} if is_url else {"b64_json": picture.base64}) | picture.optional_codes()
        for picture in drawn
    ]
    reply = {"created": envelope.created, "data": data, "output_format": "png", "seed": envelope.seed}
    return JSONResponse(reply | {"usage": _image_usage(prepared)} | _notes(request))


async def _image_events(
    envelope: Envelope, request: schema.ImagesRequest, prepared: PreparedRequest, updates: AsyncIterator[Update]
) -> AsyncIterator[bytes]:
    """OpenAI's events of the Images API."""
    common = {"created_at": envelope.created, "size": request.size or "auto", "output_format": "png"}
    common |= {"quality": "auto", "background": "opaque", "seed": envelope.seed}
    previews = [0] * prepared.choices
    try:
        async for update in updates:
            if (picture := update.span) is None:
                continue
            content = {"b64_json": picture.base64, "index": update.choice, "done": picture.done, "of": picture.of}
            content |= picture.optional_codes()
            if picture.partial:
                kind = "image_generation.partial_image"
                content["partial_image_index"] = previews[update.choice]
                previews[update.choice] += 1
            else:
                kind, content["usage"] = "image_generation.completed", _image_usage(prepared)
                content |= _notes(request)
            yield event({"type": kind, **common, **content}, kind)
    finally:
        await updates.aclose()


def _image_usage(prepared: PreparedRequest) -> dict:
    usage = prepared.usage.to_dict()
    renamed = {"input_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"]}
    return renamed | {
        "total_tokens": usage["total_tokens"],
        "input_tokens_details": {"text_tokens": usage["prompt_tokens"], "image_tokens": 0},
    }


def _add_information(app: FastAPI, models: Models) -> None:
    @app.get("/v1/models")
    async def list_models() -> Response:
        return JSONResponse({"object": "list", "data": [_describe_model(service) for service in models]})

    @app.get("/v1/models/{name}")
    async def model(name: str) -> Response:
        return JSONResponse(_describe_model(models.find(name)))

    @app.post("/v1/tokens")
    async def tokens(request: Request) -> Response:
        with models.admit():
            body = await read_body(request, models.first.config)
            return await models.first.on_worker(_tokens, models, body)

    @app.get("/health")
    async def health() -> Response:
        names = ("running", "queued", "tokens_per_second", "slots", "requests", "tokens", "cache_bytes")
        own = {service.model_name: (service.status, service.stats()) for service in models}
        found = {"status": models.status, "model": models.first.model_name}
        found |= {name: sum(getattr(stats, name) for _, stats in own.values()) for name in names}
        found["models"] = {model: {"status": status} for model, (status, _) in own.items()}
        is_well = found["status"] in ("ok", "draining") and all(service.engine for service in models)
        return JSONResponse(found, status_code=200 if is_well else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(models.first.metrics.text(), media_type=CONTENT_TYPE_LATEST)


def _tokens(models: Models, body: bytes) -> Response:
    request = schema.parse(schema.TokensRequest, body)
    service = models.find(request.model)
    ids = request.ids
    if ids is None:
        ids = service.bundle.text.encode(request.text).tolist()
    outside = next((id for id in ids if not 0 <= id < service.bundle.vocab.size), None)
    if outside is not None:
        raise bad_request(f"ids: {str(outside)[:40]} is not in 0..{service.bundle.vocab.size - 1}", "ids")
    return JSONResponse({"tokens": service.pieces.describe(ids)})


def _describe_model(service: Service) -> dict[str, object]:
    """OpenAI's object, and under `chameleon` what a client needs to ask for the right things."""
    bundle, config = service.bundle, service.config
    capabilities = {
        "context": service.context,
        "vocabulary": bundle.vocab.size,
        "modalities": [_describe_modality(row, bundle) for row in bundle.vocab_config.modalities],
        "modes": _modes(bundle),
        "formats": ["chat", "completion", "lumina"],
        "limits": {
            "body_bytes": config.max_body_bytes,
            "media": config.max_media,
            "pixels": config.max_pixels,
            "choices": config.max_choices,
            "max_tokens": token_limit(config, service.context),
            "stop": config.max_stop,
        },
    }
    common = {"id": service.model_name, "object": "model", "created": service.created, "owned_by": "chameleon_jax"}
    return common | {
        "defaults": _defaults(service),
        "image_sizes": [f"{width}x{height}" for width, height in service.image_sizes],
        "chameleon": capabilities,
    }


def _defaults(service: Service) -> dict[str, object]:
    """What a request gets that leaves a field out, by the names of a request's fields; without a seed each has its own."""
    config, base = service.config, service.config.generation
    values = {"format": config.format, "partial_every": service.partial_every, "n": 1}
    values |= {"content_format": config.content_format} | ({"mode": config.mode} if config.mode else {})
    sampling = default_sampling(base, service.bundle)
    text, (pictures, _) = sampling[service.bundle.vocab.text.name], service.bundle.image_output
    values |= {name: getattr(text, name) for name in ("temperature", "top_p", "top_k", "repetition_penalty")}
    values["sampling"] = {name: settings.to_dict() for name, settings in sampling.items()}
    if pictures:
        values |= {f"image_{name}": getattr(sampling[pictures], name) for name in ("temperature", "top_p", "top_k")}
        values["max_images"] = base.most_spans(pictures)
    if base.guidance is not None:
        values |= {"guidance_text": base.guidance.text, "guidance_image": base.guidance.image}
    most = token_limit(config, service.context)
    values["max_tokens"] = min(base.max_tokens, most)
    return values if "interleaved" in _modes(service.bundle) else {"mode": service.bundle.vocab.text.name} | values


def _describe_modality(row: ModalityConfig, bundle: TokenizerBundle) -> dict[str, object]:
    """What a client needs to know of a modality; `media` is the kind of data, `codes` where there is no codec."""
    codec = bundle.codecs.get(row.name)
    media = "text" if row.codec == "bpe" else codec.media if codec else "codes"
    found = {"name": row.name, "media": media, "ids": row.ids, "span": row.span, "length": row.length}
    found |= {"reads": codec is None or codec.codes is not None, "writes": row.output and can_write(bundle, row.name)}
    if isinstance(codec, PictureCodec):
        side = codec.config.resolution
        found |= {"size_step": codec.config.grid_pixels} if codec.is_grid else {"size": f"{side}x{side}"}
    return found


def _modes(bundle: TokenizerBundle) -> list[str]:
    outputs = [modality.name for modality in bundle.vocab.modalities if modality.output]
    writes = [name for name in outputs if can_write(bundle, name)]
    return [*writes, "interleaved", "unrestricted"] if len(writes) == len(outputs) else writes


def _add_page(app: FastAPI) -> list[str]:
    """`index.html` at `/`, every other file of the page under `/page/`. Returns the paths."""
    files = sorted(path for path in PAGE.rglob("*") if path.is_file()) if PAGE.is_dir() else []
    paths = []
    for file in files:
        name = file.relative_to(PAGE).as_posix()
        if file.suffix == ".py" or any(part.startswith(("_", ".")) for part in file.relative_to(PAGE).parts):
            continue
        path = "/" if name == "index.html" else f"/page/{name}"
        paths.append(path)
        app.add_route(path, _file_route(file), methods=["GET"])
    if "/" not in paths:
        app.add_route("/", _no_page, methods=["GET"])
    return paths


def _file_route(file: Path) -> Callable:
    kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"

    async def read(request: Request) -> Response:
        return FileResponse(file, media_type=kind, headers=_PAGE_HEADERS)

    return read


async def _no_page(request: Request) -> Response:
    return JSONResponse({"message": "chameleon_jax: the API is at /v1, its description in docs/serve.md"})


def _add_errors(app: FastAPI) -> None:
    known = sorted({route.path for route in app.routes})

    @app.exception_handler(ApiError)
    async def told(request: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        path = request.scope["path"][:200]
        message = f"{request.method} {path}: {error.detail}"
        if error.status_code == 404:
            message = f"there is nothing at {path}{did_you_mean(path, known)}"
        elif error.status_code == 405:
            message = f"{path} does not take {request.method[:20]}; it takes {(error.headers or {}).get('Allow', 'another method')}"
        return ApiError(error.status_code, message, headers=error.headers).response()
