"""Mistakes on the way from raw data to ids: tokenize, train_tokenizer, extend_tokenizer, inspect."""

import json

from tests.mistakes.runner import Mistake, check, copy_of, file_of, rows, run

FILE = "tokenize --workdir={here}/w --gin_file={gin}/digits_tokenize.gin"
TOKENIZE = FILE + " --gin.MANIFEST={manifest} --gin.TOKENIZER={tokenizer}"
RECORDS = FILE + " --gin.MANIFEST={here}/m.jsonl --gin.TOKENIZER={tokenizer}"
SAME = " --gin_file={gin}/digits_tokenize.gin --gin.MANIFEST={manifest} --gin.TOKENIZER={tokenizer}"


def record(**fields):
    return file_of("m.jsonl", json.dumps(fields) + "\n")


TOKENIZING = [
    Mistake("no workdir", "tokenize", ("--workdir is required",)),
    Mistake("a misspelt workdir", "tokenize --wordir=x", ("--workdir is required", "'--wordir' is no flag")),
    Mistake("nothing to read", "tokenize --workdir={here}/w", ("TokenizeConfig.sources is not set",)),
    Mistake("a value that the gin file wants", FILE, ("MANIFEST is required by the gin file", "--gin.MANIFEST=")),
    Mistake("a gin file that is not there", TOKENIZE + " --gin_file=no.gin", ("gin file 'no.gin' does not exist",)),
    Mistake(
        "a misspelt gin file",
        TOKENIZE + " --gin_file={gin}/digit.gin",
        ("does not exist", "did you mean", "digits.gin"),
    ),
    Mistake("a picture as gin file", TOKENIZE + " --gin_file={picture}", ("{picture} is no gin file", "not text")),
    Mistake("words as gin file", TOKENIZE + " --gin_file={text}", ("notes.txt", "line 1")),
    Mistake(
        "a misspelt config",
        TOKENIZE + " --gin.TokeniseConfig.seed=1",
        ("'TokeniseConfig' (did you mean 'TokenizeConfig'?)",),
    ),
    Mistake("a misspelt field", TOKENIZE + " --gin.TokenizeConfig.sed=1", ("no field 'sed' (did you mean 'seed'?)",)),
    Mistake("a word for a number", TOKENIZE + " --gin.TokenizeConfig.seed=one", ("seed: expected int, got 'one'",)),
    Mistake(
        "a binding without a value", TOKENIZE + " --gin.TokenizeConfig.seed", ("has no '='", "--gin.Config.field=value")
    ),
    Mistake(
        "another config's field",
        TOKENIZE + " --gin.TrainConfig.steps=1",
        ("'TrainConfig.steps' is not used by TokenizeConfig",),
    ),
    Mistake("an unknown kind", TOKENIZE + " --gin.SourceConfig.kind=folderr", ("'jsonl'", "did you mean 'folder'?")),
    Mistake(
        "a word for a source", TOKENIZE + " --gin.TokenizeConfig.sources=hearts", ("expected a list of SourceConfig",)
    ),
    Mistake("no sources", TOKENIZE + " --gin.TokenizeConfig.sources=[]", ("sources is empty: name at least one",)),
    Mistake(
        "a word for a list", TOKENIZE + " --gin.SourceConfig.ignore_fields=id", ("a list of one is written ['id']",)
    ),
    Mistake(
        "a list without quotes", TOKENIZE + " --gin.SourceConfig.ignore_fields=[id]", ("cannot be read", "with quotes")
    ),
    Mistake(
        "a number for a mapping", TOKENIZE + " --gin.TokenizeConfig.max_spans=3", ("a mapping of str to int, as in",)
    ),
    Mistake(
        "a modality that is none",
        TOKENIZE + """ '--gin.TokenizeConfig.max_spans={{"imgae": 3}}'""",
        ("did you mean 'image'?",),
    ),
    Mistake(
        "batches of nothing",
        TOKENIZE + " --gin.TokenizeConfig.codec_batch=0",
        ("codec_batch must be at least 1, got 0",),
    ),
    Mistake(
        "a fraction above 1", TOKENIZE + " --gin.TokenizeConfig.max_reject_fraction=5", ("must be in [0, 1], got 5",)
    ),
    Mistake(
        "patches without a row",
        TOKENIZE + " --gin.TokenizeConfig.image_input=patches",
        ("no modality with codec 'patches'", "add such a row"),
    ),
    Mistake(
        "data that are not there",
        FILE + " --gin.MANIFEST=no.jsonl --gin.TOKENIZER={tokenizer}",
        ("'no.jsonl' matches no file",),
    ),
    Mistake(
        "words as data",
        FILE + " --gin.MANIFEST={text} --gin.TOKENIZER={tokenizer}",
        ("neither a folder nor a .jsonl manifest",),
    ),
    Mistake(
        "a folder without a manifest",
        FILE + " --gin.MANIFEST={release} --gin.TOKENIZER={tokenizer}",
        ("has no manifest.jsonl", "docs/tokenize.md"),
    ),
    Mistake("an empty file of data", RECORDS, ("m.jsonl' holds only empty files",), file_of("m.jsonl", "")),
    Mistake(
        "lines that are not JSON",
        RECORDS,
        ("not valid JSON", "'m.jsonl/0' of 'digits'", "rejects"),
        file_of("m.jsonl", '{"id": \n'),
    ),
    Mistake("a list for a record", RECORDS, ("record is a list, not an object",), file_of("m.jsonl", "[1]\n")),
    Mistake(
        "a misspelt field of a record",
        RECORDS,
        ("none of the known fields", "found: 'id, txet'"),
        record(id="a", txet="hi"),
    ),
    Mistake(
        "a number for words", RECORDS, ("field 'text' is a number, not a string", "of 'digits'"), record(id="a", text=3)
    ),
    Mistake("words for segments", RECORDS, ("'segments' is a string, not a list",), record(id="a", segments="hi")),
    Mistake(
        "a modality that the table lacks",
        RECORDS,
        ("segments[0]", "'text' or 'image'"),
        record(id="a", segments=[{"sound": "x"}]),
    ),
    Mistake(
        "a picture that is not there",
        RECORDS,
        ("image file is missing: 'x.png'", "'m.jsonl/0' of 'digits'"),
        record(id="a", text="hi", image="x.png"),
    ),
    Mistake("a picture from anywhere", RECORDS, ("must be relative",), record(id="a", text="hi", image="/etc/passwd")),
    Mistake(
        "a picture that is none",
        RECORDS,
        ("no known image format", "'a' of 'digits'"),
        lambda here, places: [
            record(id="a", text="hi", image="x.png")(here, places),
            file_of("x.png", "words")(here, places),
        ],
    ),
    Mistake(
        "one id twice",
        RECORDS,
        ("id 'a' was used by an earlier record",),
        file_of("m.jsonl", '{"id": "a", "text": "x"}\n' * 2),
    ),
    Mistake("jsonl read as parquet", TOKENIZE + " --gin.SourceConfig.kind=parquet", ("parquet file cannot be read",)),
    Mistake("jsonl read as tar", TOKENIZE + " --gin.SourceConfig.kind=webdataset", ("tar is truncated or damaged",)),
    Mistake("jsonl read as csv", TOKENIZE + " --gin.SourceConfig.kind=csv", ("first line names no known column",)),
    Mistake(
        "a file for a folder of pictures",
        TOKENIZE + " --gin.SourceConfig.kind=pictures",
        ("is a file: kind 'pictures' is a folder",),
    ),
    Mistake("a split that is none", TOKENIZE + " --gin.SourceConfig.split=train", ("no record has split 'train'",)),
    Mistake(
        "no tokenizer there",
        FILE + " --gin.MANIFEST={manifest} --gin.TOKENIZER=no",
        ("bundle no does not exist", "experiments.train_tokenizer"),
    ),
    Mistake(
        "a file for a tokenizer", FILE + " --gin.MANIFEST={manifest} --gin.TOKENIZER={text}", ("notes.txt is a file",)
    ),
    Mistake(
        "a store for a tokenizer",
        FILE + " --gin.MANIFEST={manifest} --gin.TOKENIZER={store}",
        ("give {store}/tokenizer",),
    ),
    Mistake(
        "a run's workdir",
        "tokenize --workdir={model}" + SAME,
        ("{model} is a training run", "choose another --workdir"),
    ),
    Mistake(
        "a tokenizer's workdir", "tokenize --workdir={tokenizer}" + SAME, ("is a tokenizer (it holds vocab.json)",)
    ),
    Mistake(
        "another plan's store",
        "tokenize --workdir={store}" + SAME,
        ("begun with another plan (codec_batch was 16, is 256",),
    ),
    Mistake(
        "a file for a workdir", "tokenize --workdir={text}" + SAME, ("notes.txt cannot be written", "choose another")
    ),
    Mistake(
        "a place where nothing is written",
        "tokenize --workdir=/proc/x" + SAME,
        ("/proc/x cannot be written", "choose another"),
    ),
    Mistake(
        "the data's folder as workdir", "tokenize --workdir={data}" + SAME, ("{data} lies in the folder of the data",)
    ),
    Mistake(
        "a workdir below pictures that are read at any depth",
        "tokenize --workdir={data}/w" + SAME.replace("{manifest}", "{data}") + " --gin.SourceConfig.kind=pictures",
        ("{data}/w lies in the folder of the data",),
    ),
    Mistake(
        "a store with a damaged plan",
        "tokenize --workdir={here}/s" + SAME,
        ("s/plan.json is damaged",),
        copy_of("store", "s", lambda s: (s / "plan.json").write_text("x")),
    ),
]

BARE = "train_tokenizer --gin_file={gin}/digits_tokenizer.gin --gin.DATA={data} --gin.train/SourceConfig.path=records.jsonl"
BOTH = BARE + " --gin.heldout/SourceConfig.path=records.jsonl"
TRAIN = BOTH + " --workdir={here}/w"

TRAINING = [
    Mistake("no workdir", "train_tokenizer", ("--workdir is required",)),
    Mistake("nothing to read", "train_tokenizer --workdir={here}/w", ("TrainTokenizerConfig.sources is not set",)),
    Mistake(
        "a value that the gin file wants",
        "train_tokenizer --workdir={here}/w --gin_file={gin}/digits_tokenizer.gin",
        ("DATA is required",),
    ),
    Mistake("held-out data that are not there", BARE + " --workdir={here}/w", ("heldout.jsonl' matches no file",)),
    Mistake(
        "a part that is none",
        TRAIN + """ "--gin.TrainTokenizerConfig.parts=['txt']" """,
        ("no modality 'txt' (did you mean 'text'?)",),
    ),
    Mistake(
        "a word for a list of parts",
        TRAIN + " --gin.TrainTokenizerConfig.parts=text",
        ("a list of one is written ['text']",),
    ),
    Mistake("no steps", TRAIN + " --gin.VQTrainConfig.steps=0", ("steps must be at least 1, got 0",)),
    Mistake(
        "a batch below one", TRAIN + " --gin.VQTrainConfig.batch_size=-1", ("batch_size must be at least 1, got -1",)
    ),
    Mistake(
        "codes that contradict the table",
        TRAIN + " --gin.VQConfig.codes=64",
        ("ids 32 of 'image' in vocab", "vq.codes 64"),
    ),
    Mistake("a side that does not divide", TRAIN + " --gin.VQConfig.resolution=9", ("resolution 9 is not a multiple",)),
    Mistake(
        "a word for numbers", TRAIN + " --gin.VQConfig.channel_multipliers=two", ("expected a list of int, got 'two'",)
    ),
    Mistake(
        "fewer pieces than bytes",
        TRAIN + " --gin.text_and_image.text_tokens=10",
        ("at least 256 ids (all bytes), got 10",),
    ),
    Mistake("the data's folder as workdir", BOTH + " --workdir={data}", ("{data} lies in the folder of the data",)),
    Mistake("a store's workdir", BOTH + " --workdir={store}", ("{store} is a token store", "choose another --workdir")),
    Mistake("a run's workdir", BOTH + " --workdir={model}", ("{model} is a training run", "choose another --workdir")),
    Mistake("a file for a workdir", BOTH + " --workdir={text}", ("notes.txt cannot be made or written",)),
    Mistake(
        "another's tokenizer", BOTH + " --workdir={tokenizer}", ("would be overwritten: choose another --workdir",)
    ),
    Mistake(
        "another's pieces",
        BOTH + """ --workdir={tokenizer} "--gin.TrainTokenizerConfig.parts=['text']" """,
        ("whose ids would change", "choose another"),
    ),
]

EXTEND = "extend_tokenizer --tokenizer={tokenizer} --output={here}/t"
DAMAGED = "extend_tokenizer --tokenizer={here}/t --name=x --output={here}/n"


def damaged(name, content):
    return copy_of("tokenizer", "t", lambda folder: (folder / name).write_text(content))


EXTENDING = [
    Mistake("no tokenizer", "extend_tokenizer", ("--tokenizer is required",)),
    Mistake("no name", EXTEND, ("--name is required",)),
    Mistake(
        "a misspelt output",
        "extend_tokenizer --tokenizer={tokenizer} --name=x --outptu=t",
        ("--output is required", "'--outptu' is no flag"),
    ),
    Mistake(
        "a tokenizer that is not there",
        "extend_tokenizer --tokenizer=no --name=x --output={here}/t",
        ("bundle no does not exist",),
    ),
    Mistake(
        "a run for a tokenizer",
        "extend_tokenizer --tokenizer={model} --name=x --output={here}/t",
        ("give {model}/tokenizer",),
    ),
    Mistake(
        "pictures for a tokenizer",
        "extend_tokenizer --tokenizer={data} --name=x --output={here}/t",
        ("lacks vocab.json, tokenizer.json", "train_tokenizer"),
    ),
    Mistake("an empty name", EXTEND + " --name=", ("printable, without spaces and not empty, got ''",)),
    Mistake("a name with a space", EXTEND + " --name='a b'", ("without spaces", "'a b'")),
    Mistake("a name twice", EXTEND + " --name='<x>' --name='<x>'", ("a name twice",)),
    Mistake("a name that is taken", EXTEND + " --name='<s>'", ("'<s>' is the name of an id already: give another",)),
    Mistake(
        "a full folder",
        "extend_tokenizer --tokenizer={tokenizer} --name='<x>' --output={data}",
        ("not an empty folder: give another --output",),
    ),
    Mistake(
        "itself as output",
        "extend_tokenizer --tokenizer={tokenizer} --name='<x>' --output={tokenizer}",
        ("give another --output",),
    ),
    Mistake(
        "a file as output",
        "extend_tokenizer --tokenizer={tokenizer} --name='<x>' --output={text}/t",
        ("notes.txt is a file, not a folder: give another --output",),
    ),
    Mistake(
        "a place where nothing is written",
        "extend_tokenizer --tokenizer={tokenizer} --name='<x>' --output=/proc/t",
        ("/proc/t cannot be written",),
    ),
    Mistake("a flag that it has not", EXTEND + " --name=x --workdir=x", ("unknown argument '--workdir=x'",)),
    Mistake(
        "a table that is a list",
        DAMAGED,
        ("vocab.json is damaged", "copy the tokenizer again"),
        damaged("vocab.json", "[]"),
    ),
    Mistake("a table cut off", DAMAGED, ("vocab.json is damaged",), damaged("vocab.json", '{"a"')),
    Mistake("pieces cut off", DAMAGED, ("tokenizer.json",), damaged("tokenizer.json", '{"a"')),
    Mistake(
        "pieces that are none",
        DAMAGED,
        ("tokenizer.json has no model.vocab",),
        damaged("tokenizer.json", '{"vocab": 3}'),
    ),
    Mistake(
        "rules of other pictures", DAMAGED, ("512 resolution of images.json but 16",), damaged("images.json", "{}")
    ),
    Mistake("a codec of another size", DAMAGED, ("vqgan.json asks for",), damaged("vqgan.json", '{"codes": 32}')),
    Mistake("a codec cut off", DAMAGED, ("vqgan.safetensors is damaged",), damaged("vqgan.safetensors", "x")),
]

INSPECTING = [
    Mistake("nothing", "inspect", ("give a path or --gin_file",)),
    Mistake("a path that is not there", "inspect nowhere", ("nowhere: there is no such file or folder",)),
    Mistake("two paths", "inspect {model} {store}", ("unknown argument '{store}'",)),
    Mistake("words", "inspect {text}", ("notes.txt is no file of records: give .jsonl",)),
    Mistake(
        "an empty folder", "inspect {here}/e", ("e is an empty folder",), lambda here, places: (here / "e").mkdir()
    ),
    Mistake("a folder of nothing known", "inspect {release}", ("{release} holds no data that can be read",)),
    Mistake("a path and a gin file", "inspect {model} --gin_file={gin}/smoke.gin", ("not both",)),
    Mistake("a mesh of a tokenizer", "inspect {tokenizer} --mesh=tensor=2", ("{tokenizer} has no checkpoints/",)),
    Mistake("a mesh that does not divide", "inspect {model} --mesh=tensor=3", ("n_heads = 2 is not a multiple",)),
    Mistake("an axis that is none", "inspect {model} --mesh=tensors=2", ("did you mean 'tensor'?",)),
    Mistake("a mesh without a number", "inspect {model} --mesh=tensor", ("as in tensor=8",)),
    Mistake("no documents", "inspect {store} --show=0", ("--show=0",)),
    Mistake("a word for a number", "inspect {store} --show=all", ("--show=all: not a whole number",)),
    Mistake("proof and pictures", "inspect {store} --verify --show=2", ("--verify and --mesh are for tables",)),
    Mistake("a tokenizer without pictures", "inspect {tokenizer} --show=2", ("--data=FILE_OR_FOLDER",)),
    Mistake("pictures that are not there", "inspect {tokenizer} --show=2 --data=no", ("no: there is no such file",)),
    Mistake(
        "a page where nothing is written",
        "inspect {store} --show=1 --out=/proc/x.html",
        ("/proc/x.html cannot be written", "give another --out"),
    ),
    Mistake(
        "a store that was not finished",
        "inspect {here}/s",
        ("shard 00000 is not committed: run experiments.tokenize again",),
        copy_of("store", "s", lambda s: [f.unlink() for f in (s / "commits").iterdir()]),
    ),
    Mistake(
        "a store with a damaged commit",
        "inspect {here}/s",
        ("00000.json is damaged", "delete it and run"),
        copy_of("store", "s", lambda s: (s / "commits" / "00000.json").write_text("x")),
    ),
    Mistake(
        "a store with a cut shard",
        "inspect {here}/s --verify",
        ("shard 00000 is damaged or missing", "run experiments.tokenize again"),
        copy_of(
            "store", "s", lambda s: [f.write_bytes(b"x") for f in (s / "shards" / "00000").rglob("c/*") if f.is_file()]
        ),
    ),
    Mistake(
        "a run with a damaged step",
        "inspect {here}/m --verify",
        ("no step in {here}/m/checkpoints has a readable manifest.json",),
        copy_of("model", "m", lambda m: (m / "checkpoints" / "3" / "manifest.json").write_text("x")),
    ),
]


@rows(TOKENIZING)
def test_tokenize(mistake, places, tmp_path, capfd):
    check(mistake, places, tmp_path, capfd)


@rows(TRAINING)
def test_train_tokenizer(mistake, places, tmp_path, capfd):
    check(mistake, places, tmp_path, capfd)


@rows(EXTENDING)
def test_extend_tokenizer(mistake, places, tmp_path, capfd):
    check(mistake, places, tmp_path, capfd)


@rows(INSPECTING)
def test_inspect(mistake, places, tmp_path, capfd):
    check(mistake, places, tmp_path, capfd)


def test_records_that_are_left_out_are_named_or_counted(places, tmp_path, capfd):
    (tmp_path / "m.jsonl").write_text("[\n" * 5)
    typed = TRAIN.replace("{data}", "{here}").replace("records.jsonl", "m.jsonl")
    code, out, _ = run(typed.format(**vars(places), here=tmp_path), tmp_path, capfd)
    said = [line for line in out.splitlines() if line.startswith("left out: ")]
    assert (code, len(said), said[-1]) == (2, 4, "left out: and 2 more")
