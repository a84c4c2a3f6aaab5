"""Tokens per second of greedy decoding: ours against Hugging Face's `generate` in torch, and guided images against a host loop.

    python benchmarks/decode.py                       # ~100 M parameters, batch 1 and 8, float32 and int8 weights
    python benchmarks/decode.py --images              # one image of 1,024 codes with guidance, device loop against host loop
    python benchmarks/decode.py --accelerator         # random bfloat16 weights of the 7B, batch 1 and 16, on a GPU or TPU

Each side runs in a process of its own, in turn, round by round; medians are compared. Expected on a CPU: both sides are bound by
reading the weights, so no side with float32 can pass their size over the memory's bandwidth by much; eight bits save memory
there, and time only on an accelerator. What a loop on the host costs is about the same for every model, so the device's gain is
the larger the smaller the model, or the faster the machine, is.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time

IDS, HEAD_DIM = 16384, 64


def our_model(context: int, args):
    from chameleon_jax.configs import TransformerConfig

    return TransformerConfig(
        vocab_size=IDS,
        d_model=args.hidden,
        n_layers=args.layers,
        n_heads=args.hidden // HEAD_DIM,
        n_kv_heads=args.hidden // HEAD_DIM,
        head_dim=HEAD_DIM,
        d_ff=args.hidden * 8 // 3,
        max_seq_len=context,
        compute_dtype="float32",
    )


def our_vocab(codes_per_image: int = 1024):
    from chameleon_jax.configs import text_and_image
    from chameleon_jax.vocab import Vocab

    codes, reserved = 4096, 600
    text = IDS - 4 - codes - 2 - reserved
    return Vocab.from_config(
        text_and_image(image_codes=codes, reserved=reserved, text_tokens=text, codes_per_image=codes_per_image)
    )


def ours(args) -> list[float]:
    """Seconds of each round, the first (compiling) left out."""
    import jax
    import numpy as np

    from chameleon_jax.configs import EngineConfig, GenerationConfig, SamplingConfig
    from chameleon_jax.generation.engine import Engine
    from chameleon_jax.generation.requests import Request
    from chameleon_jax.models import transformer

    context = 64 * -(-(args.prompt + args.tokens) // 64)
    model, vocab = our_model(context, args), our_vocab()
    weights = jax.jit(transformer.init, static_argnums=1)(jax.random.key(0), model)
    prompts = np.random.default_rng(0).integers(vocab.text.start, vocab.text.stop, (args.batch, args.prompt))
    greedy = SamplingConfig(temperature=0.0, top_p=1.0)
    sampling = dict.fromkeys(vocab.names, greedy)
    config = GenerationConfig(mode="unrestricted", max_tokens=args.tokens, sampling=sampling)
    seconds = []
    with Engine(weights, model, vocab, EngineConfig(slots=args.batch, block=32, weights=args.weights)) as engine:
        for _ in range(args.repeats + 1):
            started = time.perf_counter()
            streams = [engine.stream(Request(prompt=prompt, config=config)) for prompt in prompts]
            produced = sum(len(stream.result().ids) for stream in streams)
            # An output may end early by itself: count what came.
            seconds.append((time.perf_counter() - started) * args.tokens * args.batch / produced)
    return seconds[1:]


def theirs(args) -> list[float]:
    import torch
    import transformers

    torch.set_num_threads(os.cpu_count())
    torch.manual_seed(0)
    config = transformers.ChameleonConfig(
        vocab_size=IDS,
        hidden_size=args.hidden,
        intermediate_size=args.hidden * 8 // 3,
        num_hidden_layers=args.layers,
        num_attention_heads=args.hidden // HEAD_DIM,
        num_key_value_heads=args.hidden // HEAD_DIM,
        max_position_embeddings=4096,
        vocabulary_map={"<image>": 8, "IMGIMGBZ": 4},
        vq_config={"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "num_embeddings": 8},
    )
    model = transformers.ChameleonForConditionalGeneration(config).eval()
    ids = torch.randint(9, IDS, (args.batch, args.prompt))
    length = {"max_new_tokens": args.tokens, "min_new_tokens": args.tokens}
    seconds = []
    with torch.no_grad():
        for _ in range(args.repeats + 1):
            started = time.perf_counter()
            model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=1, **length
            )
            seconds.append(time.perf_counter() - started)
    return seconds[1:]


def image(args) -> list[float]:
    """One image of `tokens` codes with guidance: by the engine, or by a loop on the host over the same forward."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from chameleon_jax.configs import GenerationConfig, GuidanceConfig, SamplingConfig
    from chameleon_jax.generation.engine import generate
    from chameleon_jax.models import kv_cache, transformer
    from chameleon_jax.parallel.mesh import DECODING

    codes, guidance = args.tokens, GuidanceConfig()
    context = 64 * -(-(args.prompt + codes + 2) // 64)
    model, vocab = our_model(context, args), our_vocab(codes)
    pictures = vocab.modalities[vocab.row("image")]
    weights = jax.jit(transformer.init, static_argnums=1)(jax.random.key(0), model)
    layers = transformer.by_layer(weights)
    prompt = np.array(
        [vocab.bos, *np.random.default_rng(0).integers(vocab.text.start, vocab.text.stop, args.prompt),
        pictures.begin_marker]
    )  # fmt: skip
    sampling = SamplingConfig()  # which is the table's too
    config = GenerationConfig(mode="image", max_spans={"image": 1}, guidance=guidance)

    def by_engine() -> None:
        generate(weights, model, vocab, [prompt], config)

    @jax.jit
    def feed(tokens, positions, cache):
        out = transformer.forward(layers, tokens, positions, jnp.ones_like(tokens), model, cache=cache)
        return transformer.logits(layers, out.hidden[:, -1:], model)[:, 0], out.cache

    def by_host() -> None:
        """As the released code does it: logits to the host, mixed, masked and drawn there, one token after the other."""
        random = np.random.default_rng(0)
        _, cache = feed(
            prompt[None, :-1], np.arange(len(prompt) - 1)[None], kv_cache.create(model, 1, context, DECODING)
        )
        _, bare = feed(np.array([[vocab.bos]]), np.array([[0]]), kv_cache.create(model, 1, context, DECODING))
        cache = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), cache, bare)
        token, places = pictures.begin_marker, np.array([len(prompt) - 1, 1])
        for _ in range(codes):
            logits, cache = feed(np.full((2, 1), token), places[:, None], cache)
            full, bare_logits = np.asarray(logits)
            mixed = bare_logits + guidance.text * (full - bare_logits)
            masked = np.where(pictures.holds(np.arange(IDS)), mixed, -np.inf) / sampling.temperature
            order = np.argsort(masked)
            p = np.exp(masked[order] - masked[order[-1]])
            p /= p.sum()
            p[np.cumsum(p) <= 1 - sampling.top_p] = 0
            token, places = order[random.choice(IDS, p=p / p.sum())], places + 1

    run, seconds = by_engine if args.side == "image_engine" else by_host, []
    for _ in range(args.repeats + 1):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def accelerator(args) -> None:
    """Tokens a second of the 7B with guidance, beside the limit that reading the weights once a step sets."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from chameleon_jax.configs import EngineConfig, GenerationConfig, GuidanceConfig
    from chameleon_jax.convert.releases import release
    from chameleon_jax.generation.engine import Engine
    from chameleon_jax.generation.requests import Request
    from chameleon_jax.models import transformer
    from chameleon_jax.vocab import Vocab

    known = release("chameleon-7b")
    model = dataclasses.replace(known.model, param_dtype="bfloat16", max_seq_len=2048)
    vocab = Vocab.from_config(known.vocab)
    weights = jax.jit(transformer.init, static_argnums=1)(jax.random.key(0), model)
    read = sum(leaf.nbytes for name, leaf in weights.items() if name != "embed" and hasattr(leaf, "nbytes"))
    read += sum(leaf.nbytes for leaf in jax.tree.leaves(weights["layers"]))
    big = jnp.ones(1 << 30, jnp.bfloat16)
    total = jax.jit(lambda x: jnp.sum(x, dtype=jnp.float32))
    total(big).block_until_ready()
    started = time.perf_counter()
    for _ in range(20):
        last = total(big)
    last.block_until_ready()
    bandwidth = 20 * big.nbytes / (time.perf_counter() - started)
    del big
    for batch in (1, 16):
        prompt = np.array([vocab.bos, *range(vocab.text.start, vocab.text.start + 30)])
        config = GenerationConfig(mode="image", max_spans={"image": 1}, guidance=GuidanceConfig())
        with Engine(weights, model, vocab, EngineConfig(slots=2 * batch, block=64)) as engine:
            for name in ("compile", "measure"):
                started = time.perf_counter()
                streams = [engine.stream(Request(prompt=prompt, config=config, row_id=i)) for i in range(batch)]
                produced = sum(len(stream.result().ids) for stream in streams)
                seconds = time.perf_counter() - started
                if name == "measure":
                    step = seconds * batch / produced
                    print(
                        f"batch {batch}: {produced / seconds:.1f} tokens/s, {step * 1e3:.2f} ms a step; reading "
                        f"{read / 1e9:.1f} GB at {bandwidth / 1e9:.0f} GB/s takes {read / bandwidth * 1e3:.2f} ms: "
                        f"{read / bandwidth / step:.0%} of the limit"
                    )


SIDES = {"ours": ours, "theirs": theirs, "image_engine": image, "image_host": image}


def measure(side: str, args, **changes) -> list[float]:
    flags = {"batch": args.batch, "tokens": args.tokens, "prompt": args.prompt, "repeats": args.repeats}
    flags |= {"hidden": args.hidden, "layers": args.layers} | changes
    command = [sys.executable, __file__, f"--side={side}", *[f"--{k}={v}" for k, v in flags.items()]]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--tokens", type=int, help="a request; 96 by default, 1024 of --images")
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=768, help="a multiple of 64; with 12 layers ~100 M parameters")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=2, help="timed runs of each process")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--weights", default="compute")
    parser.add_argument("--images", action="store_true")
    parser.add_argument("--accelerator", action="store_true")
    args = parser.parse_args()
    args.tokens = args.tokens or (1024 if args.images else 96)
    if args.side:
        print(json.dumps(SIDES[args.side](args)))
    elif args.accelerator:
        accelerator(args)
    elif args.images:
        found = {"image_engine": [], "image_host": []}
        for _ in range(args.rounds):
            for side, seconds in found.items():
                seconds += measure(side, args, repeats=1)
        engine, host = (statistics.median(seconds) for seconds in found.values())
        print(
            f"image of {args.tokens:,} codes with guidance: engine {engine:.1f} s, host loop {host:.1f} s: {host / engine:.2f} x"
        )
    else:
        for batch in (1, 8):
            found = {"compute": [], "int8": [], "torch": []}
            for _ in range(args.rounds):
                found["torch"] += measure("theirs", args, batch=batch)
                for weights in ("compute", "int8"):
                    found[weights] += measure("ours", args, batch=batch, weights=weights)
            torch = statistics.median(found.pop("torch"))
            print(f"batch {batch}: torch {batch * args.tokens / torch:.1f} tokens/s")
            for weights, seconds in found.items():
                median = statistics.median(seconds)
                print(f"  ours, weights {weights}: {batch * args.tokens / median:.1f} tokens/s, {torch / median:.2f} x")


if __name__ == "__main__":
    main()
