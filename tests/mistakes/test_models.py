"""Mistakes with models: pretrain, generate, serve, evaluate, convert."""

import pytest

from tests.mistakes.runner import Mistake, check, copy_of, rows

FILES = " --gin_file={gin}/smoke.gin --gin.TRAIN={store} --gin.HELDOUT={store}"
TRAIN = "pretrain --workdir={here}/w" + FILES
STORE = "pretrain --workdir={here}/w --gin_file={gin}/smoke.gin --gin.HELDOUT={store}"

PRETRAINING = [
    Mistake("no workdir", "pretrain", ("--workdir is required",)),
    Mistake("a misspelt workdir", "pretrain --wordir=x", ("--workdir is required", "'--wordir' is no flag")),
    Mistake("nothing to do", "pretrain --workdir={here}/w", ("PretrainConfig.train is not set",)),
    Mistake(
        "stores that the gin file wants",
        "pretrain --workdir={here}/w --gin_file={gin}/digits.gin",
        ("TRAIN is required",),
    ),
    Mistake(
        "a store that is not there", STORE + " --gin.TRAIN=no", ("no: no such token store", "experiments.tokenize")
    ),
    Mistake("words for a store", STORE + " --gin.TRAIN={text}", ("notes.txt: no such token store",)),
    Mistake("a tokenizer for a store", STORE + " --gin.TRAIN={tokenizer}", ("{tokenizer} is no token store",)),
    Mistake("pictures for a store", STORE + " --gin.TRAIN={data}", ("{data} is no token store",)),
    Mistake("a run for a store", STORE + " --gin.TRAIN={model}", ("{model} is no token store",)),
    Mistake(
        "too few ids",
        TRAIN + " --gin.TransformerConfig.vocab_size=20",
        ("20 is smaller than the 320", "vocab_size=320"),
    ),
    Mistake("heads that do not divide", TRAIN + " --gin.TransformerConfig.n_heads=3", ("n_heads 3 is not a multiple",)),
    Mistake("a norm order that is none", TRAIN + " --gin.TransformerConfig.norm_order=swim", ("did you mean 'swin'?",)),
    Mistake(
        "rows longer than the model's", TRAIN + " --gin.TransformerConfig.max_seq_len=8", ("seq_len 64 exceeds", "8")
    ),
    Mistake("rows shorter than a picture", TRAIN + " --gin.DataConfig.seq_len=8", ("{store}", "raise seq_len")),
    Mistake("steps below one", TRAIN + " --gin.TrainConfig.steps=-5", ("steps must be at least 1, got -5",)),
    Mistake("steps with a point", TRAIN + " --gin.TrainConfig.steps=1e3", ("steps: expected int, got 1000.0",)),
    Mistake("no rows", TRAIN + " --gin.TrainConfig.batch_size=0", ("batch_size must be at least 1",)),
    Mistake("rows that no mesh divides", TRAIN + " --gin.TrainConfig.batch_size=3", ("3 is not a multiple",)),
    Mistake("a rate in words", TRAIN + " --gin.OptimConfig.learning_rate=high", ("expected float, got 'high'",)),
    Mistake("a rate below zero", TRAIN + " --gin.OptimConfig.learning_rate=-1", ("must be positive, got -1",)),
    Mistake("a misspelt rate", TRAIN + " --gin.OptimConfig.lerning_rate=1", ("did you mean 'learning_rate'?",)),
    Mistake("more devices than there are", TRAIN + " --gin.MeshConfig.data=64", ("8 devices cannot be divided",)),
    Mistake(
        "a weight below zero", TRAIN + " --gin.StoreConfig.weight=-1", ("weight must be positive and finite, got -1",)
    ),
    Mistake("a number for a config", TRAIN + " --gin.PretrainConfig.data=3", ("data: expected DataConfig, got 3",)),
    Mistake("a word for stores", TRAIN + " --gin.DataConfig.stores=x", ("expected a list of StoreConfig, got 'x'",)),
    Mistake("a step that is not there", TRAIN + " --rollback_to=3", ("no step 3 in", "saved: none")),
    Mistake("batches passed over for nothing", TRAIN + " --skip_batches=3", ("--skip_batches", "--rollback_to")),
    Mistake(
        "a process too many",
        TRAIN + " --num_processes=2 --process_id=5 --coordinator=localhost:9",
        ("--process_id 5 is not one of 0..1",),
    ),
    Mistake("processes without a place", TRAIN + " --num_processes=2", ("give --coordinator, --process_id",)),
    Mistake(
        "a converted model's workdir",
        "pretrain --workdir={model}" + FILES,
        ("holds a converted model", "InitConfig.workdir"),
    ),
    Mistake(
        "a store's workdir",
        "pretrain --workdir={store}" + FILES,
        ("{store} is a token store", "choose another --workdir"),
    ),
    Mistake(
        "a tokenizer's workdir",
        "pretrain --workdir={tokenizer}" + FILES,
        ("is a tokenizer", "choose another --workdir"),
    ),
    Mistake("a file for a workdir", "pretrain --workdir={text}" + FILES, ("notes.txt cannot be made or written",)),
    Mistake(
        "a place where nothing is written", "pretrain --workdir=/proc/x" + FILES, ("/proc/x cannot be made or written",)
    ),
    Mistake(
        "a store that was not finished",
        STORE + " --gin.TRAIN={here}/s",
        ("shard 00000 is not committed: run experiments.tokenize again",),
        copy_of("store", "s", lambda s: [file.unlink() for file in (s / "commits").iterdir()]),
    ),
]

WITHOUT = "generate --workdir={model} --out={here}/o"
ASK = WITHOUT + " --prompt=hi"
ELSEWHERE = "generate --out={here}/o --prompt=hi --workdir="
COPIED = ELSEWHERE + "{here}/m"

GENERATING = [
    Mistake("no workdir", "generate --out=o", ("--workdir is required",)),
    Mistake("no place to write", "generate --workdir={model}", ("--out is required",)),
    Mistake("a misspelt flag", ASK + " --propmt=hi", ("'--propmt=hi' (did you mean '--prompt'?)",)),
    Mistake("no outputs", ASK + " --count=0", ("--count is 0; ask for at least 1",)),
    Mistake("a word for a number", ASK + " --count=two", ("--count=two: not a whole number",)),
    Mistake("a mode that is none", ASK + " --mode=imge", ("did you mean 'image'?",)),
    Mistake("a form that is none", ASK + " --format=chatt", ("did you mean 'chat'?",)),
    Mistake(
        "a place for a picture that is not given", WITHOUT + " --prompt='<image> what'", ("<image>", "add --image=FILE")
    ),
    Mistake(
        "more places than pictures",
        WITHOUT + " --prompt='<image><image>' --image={picture}",
        ("2 <image> placeholders and 1",),
    ),
    Mistake("a picture that is not there", ASK + " --image=no.png", ("no.png cannot be read",)),
    Mistake("words for a picture", ASK + " --image={text}", ("{text}: not a JPEG, PNG",)),
    Mistake("a folder for a picture", ASK + " --image={data}", ("{data} cannot be read: Is a directory",)),
    Mistake("a modality that is none", ASK + " --media=sound=a.wav", ("no modality 'sound'", "text, image")),
    Mistake("data without a name", ASK + " --media=image", ("write --media=NAME=FILE",)),
    Mistake("a temperature below zero", ASK + " --temperature=-1", ("temperature must be finite and >= 0, got -1.0",)),
    Mistake("a temperature that is no number", ASK + " --temperature=nan", ("temperature: expected float, got NaN",)),
    Mistake("a share above 1", ASK + " --top_p=2", ("top_p must be in (0, 1]",)),
    Mistake("a cut below zero", ASK + " --top_k=-3", ("top_k must be in 0..",)),
    Mistake("no tokens", ASK + " --max_tokens=0", ("max_tokens must be at least 1",)),
    Mistake("pictures below zero", ASK + " --max_images=-1", ("'image' must be at least 1", "got -1")),
    Mistake("a seed below zero", ASK + " --seed=-1", ("seed must be in 0..4294967295, got -1",)),
    Mistake("a size that it cannot draw", ASK + " --image_size=8x8", ("no size but 16x16",)),
    Mistake("a size in words", ASK + " --image_size=8by8", ("in pixels like 768x512",)),
    Mistake("more devices than there are", ASK + " --mesh=tensor=16", ("16 devices, there are 8",)),
    Mistake("decoding of nobody", ASK + " --sampling=best", ("<meta|anole|lumina>",)),
    Mistake("a mapping without quotes", ASK + " '--gin.GenerationConfig.max_spans={{image: 1}}'", ("with quotes",)),
    Mistake("a file as output", ASK + " --out={text}", ("notes.txt cannot be made", "choose another --out")),
    Mistake(
        "a place where nothing is written", ASK + " --out=/proc/x", ("/proc/x cannot be made", "choose another --out")
    ),
    Mistake(
        "a workdir that is not there", ELSEWHERE + "nowhere", ("nowhere", "no such folder", "experiments.pretrain")
    ),
    Mistake("a file for a workdir", ELSEWHERE + "{text}", ("it is a file",)),
    Mistake("a store for a workdir", ELSEWHERE + "{store}", ("it is a token store",)),
    Mistake("a tokenizer for a workdir", ELSEWHERE + "{tokenizer}", ("it is a tokenizer",)),
    Mistake("a release for a workdir", ELSEWHERE + "{release}", ("experiments.convert --source={release}",)),
    Mistake("a folder too high", ELSEWHERE + "{root}", ("that is {model}",)),
    Mistake("a folder too deep", ELSEWHERE + "{model}/checkpoints/3", ("that is {model}",)),
    Mistake(
        "no tokenizer",
        COPIED,
        ("bundle {here}/m/tokenizer does not exist",),
        copy_of("model", "m", lambda m: (m / "tokenizer").rename(m / "elsewhere")),
    ),
    Mistake(
        "a damaged tokenizer",
        COPIED,
        ("vqgan.safetensors is damaged", "copy the tokenizer again"),
        copy_of("model", "m", lambda m: (m / "tokenizer" / "vqgan.safetensors").write_text("x")),
    ),
    Mistake(
        "damaged weights",
        COPIED,
        ("no step in {here}/m/checkpoints can be used", "copy a good step back"),
        copy_of("model", "m", lambda m: [f.write_bytes(b"x") for f in m.rglob("d/*") if f.is_file()]),
    ),
]

SERVING = [
    Mistake("no workdir", "serve", ("--workdir is required",)),
    Mistake("a workdir that is not there", "serve --port=0 --workdir=nowhere", ("nowhere", "no such folder")),
    Mistake("a release", "serve --port=0 --workdir={release}", ("experiments.convert --source={release}",)),
    Mistake("a store", "serve --port=0 --workdir={store}", ("it is a token store",)),
    Mistake("a port too high", "serve --workdir={model} --port=99999", ("port must be in 0..65535, got 99999",)),
    Mistake("a port in words", "serve --workdir={model} --port=http", ("--port=http: not a whole number",)),
    Mistake("the world without a key", "serve --workdir={model} --host=0.0.0.0", ("CHAMELEON_API_KEY", "--insecure")),
    Mistake(
        "a host that is none",
        "serve --workdir={model} --host=no.such.host --api_key=x",
        ("cannot listen on no.such.host",),
    ),
    Mistake("an empty key", "serve --workdir={model} --api_key=", ("the API key is empty",)),
    Mistake("no slots", "serve --workdir={model} --port=0 --slots=0", ("slots must be at least 1, got 0",)),
    Mistake("weights that are none", "serve --workdir={model} --weights=int4", ("did you mean 'int8'?",)),
    Mistake("a misspelt field", "serve --workdir={model} --gin.ServeConfig.prot=1", ("did you mean 'port'?",)),
]

EXAMINE = (
    "evaluate --gin_file={gin}/emoji_evaluate.gin --gin.DATA={data} --gin.SourceConfig.path=records.jsonl --workdir="
)

EVALUATING = [
    Mistake("nothing to examine with", "evaluate --workdir={model}", ("CaptionEvalConfig.source is not set",)),
    Mistake(
        "data that the gin file wants",
        "evaluate --workdir={model} --gin_file={gin}/emoji_evaluate.gin",
        ("DATA is required",),
    ),
    Mistake("data that are not there", EXAMINE + "{model} --gin.DATA=no", ("no/records.jsonl' matches no file",)),
    Mistake("too few captions", EXAMINE + "{model}", ("6 different captions are not enough for 10 choices",)),
    Mistake(
        "one choice", EXAMINE + "{model} --gin.CaptionEvalConfig.choices=1", ("choices must be at least 2, got 1",)
    ),
    Mistake("a tokenizer for a workdir", EXAMINE + "{tokenizer}", ("it is a tokenizer",)),
    Mistake("a workdir that is not there", EXAMINE + "nowhere", ("no such folder",)),
]

CONVERT = "convert --source={model} --output={here}/o"

CONVERTING = [
    Mistake("no source", "convert --output={here}/o", ("--source is required",)),
    Mistake("no output", "convert --source={model}", ("--output is required",)),
    Mistake("a source that is not there", "convert --source=no --output={here}/o", ("no is not a folder",)),
    Mistake("words for a source", "convert --source={text} --output={here}/o", ("notes.txt is not a folder",)),
    Mistake("pictures for a source", "convert --source={data} --output={here}/o", ("{data} is no checkpoint",)),
    Mistake(
        "a release without weights", "convert --source={release} --output={here}/o", ("neither model.safetensors",)
    ),
    Mistake("a layout that is none", CONVERT + " --to=meat", ("did you mean 'meta'?",)),
    Mistake("a release that is none", CONVERT + " --preset=chameleon-8b", ("did you mean 'chameleon-7b'?",)),
    Mistake("another release", CONVERT + " --preset=chameleon-7b", ("is not chameleon-7b: its d_model is 16",)),
    Mistake("another norm order", CONVERT + " --norm_order=swin", ("has norm order 'pre', 'swin' was asked for",)),
    Mistake("ranks without Meta's layout", CONVERT + " --shards=2", ("--shards is for --to=meta",)),
    Mistake("files of nothing", CONVERT + " --to=hf --max_shard_gb=0", ("must be positive",)),
    Mistake("a codec given and left out", CONVERT + " --without_codec --vqgan=x", ("drop one of them",)),
    Mistake("a codec that is not there", CONVERT + " --vqgan=no.ckpt", ("no.ckpt does not exist",)),
    Mistake("a resolution of one size", CONVERT + " --resolution=64", ("--resolution is for pictures of many",)),
    Mistake("a codec that no other program has", CONVERT + " --to=hf", ("patch_size 4", "--without_codec")),
    Mistake("a tokenizer that is not there", CONVERT + " --tokenizer=no.json", ("no.json",)),
    Mistake(
        "a full folder", "convert --source={model} --output={data}", ("not an empty folder: give another --output",)
    ),
    Mistake(
        "a file as output", "convert --source={model} --output={text}/o", ("notes.txt is a file", "another --output")
    ),
    Mistake("itself", "convert --source={model} --output={model}", ("give another --output",)),
]


@rows([*PRETRAINING, *GENERATING, *SERVING, *EVALUATING])
def test_trained_models(mistake, places, tmp_path, capfd):
    check(mistake, places, tmp_path, capfd)


@rows(CONVERTING)
def test_convert(mistake, places, tmp_path, capfd):
    pytest.importorskip("torch")
    check(mistake, places, tmp_path, capfd)
