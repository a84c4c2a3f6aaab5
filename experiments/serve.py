"""Serve a model: an OpenAI-compatible API and a page, from one process.

Examples:
  python -m experiments.serve --workdir=runs/emoji/model
  python -m experiments.serve --workdir=runs/emoji/model --port=9000 --slots=16
  python -m experiments.serve --workdir=runs/emoji/model --workdir=digits=runs/three/model
  python -m experiments.serve --workdir=runs/chameleon-34b --mesh=tensor=8 --weights=bfloat16
  python -m experiments.serve --workdir=runs/emoji/model --content_format=markdown --mode=interleaved
  CHAMELEON_API_KEY=... python -m experiments.serve --workdir=runs/chameleon --host=0.0.0.0

Then open http://127.0.0.1:8000, or point a client at http://127.0.0.1:8000/v1. The workdir is that of `experiments.pretrain` or
`experiments.convert`; its newest checkpoint that verifies is used. Other machines reach the server only with --host, which needs a
key. It listens at once, and says "serving" when it is loaded and compiled. SIGTERM lets running answers finish, then exits with
code 0. Of several workdirs a request's `model` chooses. docs/serve.md has all requests, settings and limits.
"""

import dataclasses
import os

from absl import flags

from chameleon_jax import cli
from chameleon_jax.configs import ServeConfig
from chameleon_jax.errors import ConfigError


def _flags(values):
    text = "FOLDER or NAME=FOLDER of a run; once for each model"
    flags.DEFINE_multi_string("workdir", None, text, flag_values=values, required=True)
    flags.DEFINE_string("host", None, "same as --gin.ServeConfig.host", flag_values=values)
    flags.DEFINE_integer("port", None, "same as --gin.ServeConfig.port", flag_values=values)
    slots = "requests that run at one time; same as --gin.EngineConfig.slots"
    flags.DEFINE_integer("slots", None, slots, flag_values=values)
    formats = ["auto", "completion", "chat", "lumina"]
    text = "of requests that name none; auto is what the model was trained on; same as --gin.ServeConfig.format"
    flags.DEFINE_enum("format", None, formats, text, flag_values=values)
    text = "what requests get that do not say: a modality, several joined by +, or interleaved; same as --gin.ServeConfig.mode"
    flags.DEFINE_string("mode", None, text, flag_values=values)
    text = "of message.content: words alone, all in order, or pictures as markdown; same as --gin.ServeConfig.content_format"
    flags.DEFINE_enum("content_format", None, ["text", "parts", "markdown"], text, flag_values=values)
    text = "most ids of an answer; same as --gin.ServeConfig.max_tokens"
    flags.DEFINE_integer("max_tokens", None, text, flag_values=values)
    weights = "'compute', 'bfloat16' or 'int8'; same as --gin.EngineConfig.weights"
    flags.DEFINE_string("weights", None, weights, flag_values=values)
    key = "that clients must send; better in the environment: CHAMELEON_API_KEY"
    flags.DEFINE_string("api_key", None, key, flag_values=values)
    origin = "a web page that may use the API, as https://chat.example.org; * needs a key; same as --gin.ServeConfig.cors_origin"
    flags.DEFINE_multi_string("cors_origin", None, origin, flag_values=values)
    cli.define_mesh(values)
    flags.DEFINE_boolean("insecure", False, "serve other machines without a key", flag_values=values)


def main(config: ServeConfig, args) -> None:
    cli.log_times()
    engine = {name: getattr(args, name) for name in ("slots", "weights") if getattr(args, name) is not None}
    if args.cors_origin:
        args.cors_origin = tuple(args.cors_origin)
    own = ("host", "port", "format", "mode", "max_tokens", "content_format", "cors_origin")
    flags = {name: getattr(args, name) for name in own if getattr(args, name) is not None}
    config = dataclasses.replace(config, engine=dataclasses.replace(config.engine, **engine), **flags)
    try:
        from chameleon_jax.serving.app import create_app
        from chameleon_jax.serving.server import bind, check_access, serve
        from chameleon_jax.serving.service import Service
        from chameleon_jax.serving.startup import name_models, start_engine
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed: pip install 'chameleon-jax[serve]'") from error

    api_key = args.api_key if args.api_key is not None else os.environ.get("CHAMELEON_API_KEY") or None
    check_access(config, api_key, args.insecure)
    sock = bind(config)

    from chameleon_jax.generation.loading import load_parts
    from chameleon_jax.parallel.mesh import make_mesh
    from chameleon_jax.serving.metrics import Metrics

    mesh, metrics = make_mesh(args.mesh) if args.mesh else None, Metrics()
    services = {
        workdir: Service(**vars(load_parts(workdir)), config=config, model_name=name, metrics=metrics)
        for workdir, name in name_models(args.workdir, config.model_name).items()
    }
    app = create_app(*services.values(), api_key=api_key, insecure=args.insecure)

    def start() -> None:
        for workdir, service in services.items():
            start_engine(service, workdir, mesh)

    serve(list(services.values()), app, sock, start)


if __name__ == "__main__":
    cli.run(main, ServeConfig, __doc__, add_flags=_flags, workdir=False)
