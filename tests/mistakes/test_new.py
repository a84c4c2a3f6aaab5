"""Mistakes at `new`: data that are none, workdirs of another kind, and flags; nothing that was there is changed."""

from tests.mistakes.runner import Mistake, check, file_of, rows

NEW = "new --workdir={here}/w --data="
INTO = "new --data={manifest} --workdir="


def an_edited_run(here, places):
    (here / "w").mkdir()
    for name in ("run_tokenizer.gin", "run_tokenize.gin", "run.gin"):
        (here / "w" / name).write_text("TrainConfig.steps = 7\n")


ASKING = [
    Mistake("no data", "new --workdir={here}/w", ("--data is required",)),
    Mistake("no workdir", "new --data={manifest}", ("--workdir is required",)),
    Mistake("a misspelt flag", NEW + "{manifest} --minuts=3", ("'--minuts=3'", "did you mean '--minutes'?")),
    Mistake("no time", NEW + "{manifest} --minutes=0", ("--minutes must be a positive number, got 0",)),
    Mistake("a time in words", NEW + "{manifest} --minutes=soon", ("--minutes=soon: not a number",)),
    Mistake("data that are not there", NEW + "no", ("no: there is no such file or folder",)),
    Mistake("data elsewhere", NEW + "https://example.org/a.tar", ("is a URL: download the data",)),
    Mistake("an empty folder", NEW + "{here}/e", ("e is an empty folder",), lambda here, places: (here / "e").mkdir()),
    Mistake("one picture", NEW + "{picture}", ("heart.png is one picture: give the folder",)),
    Mistake("words", NEW + "{text}", ("notes.txt is no file of records: give .jsonl",)),
    Mistake("a tokenizer as data", NEW + "{tokenizer}", ("{tokenizer} holds no data that can be read",)),
    Mistake(
        "an archive", NEW + "{here}/a.zip", ("is an archive that is not read: unpack it",), file_of("a.zip", b"PK")
    ),
    Mistake("an empty file", NEW + "{here}/m.jsonl", ("m.jsonl' holds only empty files",), file_of("m.jsonl", "")),
    Mistake(
        "lines that are not JSON",
        NEW + "{here}/m.jsonl",
        ("none of 2 records can be used, the first:", "not valid JSON"),
        file_of("m.jsonl", '{"text": \n[\n'),
    ),
    Mistake(
        "a table that is none",
        NEW + "{here}/t.csv",
        ("t.csv", "file is UTF-16: convert it to UTF-8"),
        file_of("t.csv", b"\xff\xfe\0\0"),
    ),
    Mistake(
        "parquet that is none",
        NEW + "{here}/t.parquet",
        ("t.parquet", "parquet file cannot be read: "),
        file_of("t.parquet", b"PAR1"),
    ),
    Mistake("a split that is none", NEW + "{manifest} --split=tset", ("no record has split 'tset'",)),
    Mistake(
        "words for pictures that have some", NEW + "{manifest} --caption=x", ("--caption is for pictures without",)
    ),
    Mistake("a run's workdir", INTO + "{model}", ("{model} is a training run", "choose another --workdir")),
    Mistake("a store's workdir", INTO + "{store}", ("{store} is a token store", "choose another --workdir")),
    Mistake("a tokenizer's workdir", INTO + "{tokenizer}", ("is a tokenizer", "choose another --workdir")),
    Mistake("a workdir among the data", "new --data={data} --workdir={data}/w", ("lies in the folder of the data",)),
    Mistake("a file for a workdir", INTO + "{text}", ("notes.txt cannot be written", "choose another --workdir")),
    Mistake("edited gin files", NEW + "{manifest}", ("it may have been edited", "--overwrite"), an_edited_run),
]


@rows(ASKING)
def test_new(mistake, places, tmp_path, capfd):
    check(mistake, places, tmp_path, capfd)
