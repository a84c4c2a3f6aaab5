"""A bad record is one reject with its reason and costs no other record; a bad source is an error before work begins."""

import copy
import gzip
import io
import json
import os
import pickle
import random
import re
import tarfile

import pyarrow as pa
import pyarrow.parquet
import pytest

from chameleon_jax.configs import SourceConfig
from chameleon_jax.data.sources import Reject, estimate_records, files, media, read_documents
from chameleon_jax.errors import DataError
from chameleon_jax.tokenizers.documents import Document

GOOD = {"text": "good"}


def jsonl(path, **options):
    return SourceConfig(name="s", kind="jsonl", path=str(path), **options)


def source(kind, path):
    return SourceConfig(name="s", kind=kind, path=str(path))


def line(record):
    return json.dumps(record).encode()


@pytest.fixture
def folder(tmp_path):
    """Pictures in `below`, and beside it what a record must not reach."""
    below = tmp_path / "below"
    (below / "deep").mkdir(parents=True)
    (below / "a.png").write_bytes(b"picture")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (below / "out.png").symlink_to(tmp_path / "secret.png")
    (below / "out").symlink_to(tmp_path)
    (below / "in.png").symlink_to(below / "a.png")
    (below / "loop.png").symlink_to(below / "loop.png")
    os.mkfifo(below / "pipe.png")
    return tmp_path


BAD_LINES = {
    "invalid JSON": (b'{"text": "a"', "not valid JSON"),
    "two objects": (b'{"text": "a"}{"text": "b"}', "not valid JSON: Extra data"),
    "not UTF-8": (b'{"text": "\xff\xfe"}', "not UTF-8"),
    "NUL bytes": (b"\0" * 20, "not valid JSON"),
    "a number of 5000 digits": (b'{"text": ' + b"1" * 5000 + b"}", "not usable JSON|not a string"),
    "100,000 brackets": (b'{"text": ' + b"[" * 100_000, "not usable JSON|not valid JSON"),
    "a list": (line(["text"]), "record is a list, not an object"),
    "null": (b"null", "record is null, not an object"),
    "a string": (b'"text"', "record is a string, not an object"),
    "no field": (b"{}", "none of the known fields .* found: 'none'"),
    "unknown fields": (line({"body": "a", "size": "b"}), "found: 'body, size'"),
    "null text": (line({"text": None}), "field 'text' is null"),
    "text is a number": (line({"text": 3}), "field 'text' is a number"),
    "text is an object": (line({"text": {"en": "a"}}), "field 'text' is an object"),
    "empty text": (line({"text": ""}), "no text and no image"),
    "blank text": (line({"text": " \n\t"}), "no text and no image"),
    "empty captions": (line({"captions": []}), "'captions' is an empty list"),
    "null image": (line({"image": None, "text": "a"}), "image reference is null"),
    "null caption": (line({"image": "a.png", "caption": None}), "field 'caption' is null"),
    "image is a list": (line({"image": ["a.png"], "text": "a"}), "image reference is list"),
    "image is empty": (line({"image": "", "text": "a"}), "image reference is empty"),
    "missing image": (line({"image": "no.png", "text": "a"}), "image file is missing: 'no.png'"),
    "image by ..": (line({"image": "deep/../../secret.png"}), r"leaves media_dir by '\.\.'"),
    "image by absolute path": (line({"image": "/etc/hostname"}), "must be relative"),
    "image by Windows path": (line({"image": "C:\\a.png"}), "must be relative"),
    "image by backslashes": (line({"image": "..\\secret.png"}), "must be relative"),
    "image by symlink": (line({"image": "out.png"}), "by a symlink"),
    "image by symlinked folder": (line({"image": "out/secret.png"}), "by a symlink"),
    "image in a symlink loop": (line({"image": "loop.png"}), "cannot be read|missing"),
    "image is a pipe": (line({"image": "pipe.png"}), "not a regular file"),
    "image is a folder": (line({"image": "deep"}), "not a regular file"),
    "image name with NUL": (line({"image": "a\0.png"}), "NUL character"),
    "image name too long": (line({"image": "a" * 5000}), "cannot be read"),
    "http URL": (line({"image": "https://x.org/a.png"}), "is a URL.*download the files first"),
    "file URL": (line({"image": "file:///etc/hostname"}), "is a URL"),
    "data URL, not base64": (line({"image": "data:image/png,abc"}), "not base64"),
    "data URL, bad base64": (line({"image": "data:image/png;base64,@@@@"}), "invalid base64"),
    "segments not a list": (line({"segments": "a"}), "'segments' is a string, not a list"),
    "segments empty": (line({"segments": []}), "no text and no image"),
    "segment with both": (line({"segments": [{"text": "a", "image": "a.png"}]}), "either 'text' or 'image'"),
    "segment with neither": (line({"segments": [{"video": "a"}]}), "either 'text' or 'image'"),
    "segment is a string": (line({"segments": ["a"]}), r"segments\[0\] must be an object"),
    "segment loss is a number": (line({"segments": [{"text": "a", "loss": 2}]}), "loss must be true or false"),
    "OBELICS lengths differ": (line({"texts": ["a"], "images": []}), "'texts' has 1 entries, 'images' has 0"),
    "OBELICS both at a place": (line({"texts": ["a"], "images": ["a.png"]}), "place 0 has both"),
    "OBELICS neither at a place": (line({"texts": ["a", None], "images": [None, None]}), "place 1 has neither"),
    "OBELICS half": (line({"texts": ["a"]}), "'texts' without 'images'"),
    "MMC4 index outside": (
        line({"text_list": ["a"], "image_info": [{"image_name": "a.png", "matched_text_index": 1}]}),
        r"matched_text_index 1 is not in 0\.\.0",
    ),
    "MMC4 null image": (
        line({"text_list": ["a"], "image_info": [{"image_name": None, "matched_text_index": 0}]}),
        "image reference is null",
    ),
    "MMC4 missing field": (
        line({"text_list": ["a"], "image_info": [{"image_name": "a.png"}]}),
        "must have 'image_name'",
    ),
    "LLaVA more placeholders": (
        line({"conversations": [{"from": "human", "value": "<image><image>"}], "image": "a.png"}),
        "2 <image> placeholders for 1 images",
    ),
    "LLaVA more images": (
        line({"conversations": [{"from": "human", "value": "x"}], "image": ["a.png"]}),
        "0 <image> placeholders for 1 images",
    ),
    "LLaVA unknown role": (line({"conversations": [{"from": "bot", "value": "x"}]}), "from must be one of human"),
    "LLaVA null value": (line({"conversations": [{"from": "gpt", "value": None}]}), "value' is null"),
    "id is a list": (line({"id": [1], "text": "a"}), "'id' must be a string or an integer"),
    "id is empty": (line({"id": "", "text": "a"}), "'id' must be a string or an integer"),
    "id is too long": (line({"id": "a" * 600, "text": "a"}), "'id' has more than 512"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_line_is_one_reject_between_good_ones(case, folder):
    bad, reason = BAD_LINES[case]
    (folder / "r.jsonl").write_bytes(b"\n".join([line(GOOD), bad, line(GOOD)]) + b"\n")
    first, reject, last = read_documents(jsonl(folder / "r.jsonl", media_dir=str(folder / "below")))
    assert (first.id, last.id) == ("s/r.jsonl/0", "s/r.jsonl/2")
    assert isinstance(reject, Reject) and (reject.source, reject.record) == ("s", "r.jsonl/1")
    assert re.search(reason, reject.reason), reject.reason
    assert "\n" not in reject.reason and len(reject.reason) < 400


def test_a_symlink_that_stays_below_is_followed(folder):
    (folder / "r.jsonl").write_bytes(line({"image": "in.png"}))
    (document,) = read_documents(jsonl(folder / "r.jsonl", media_dir=str(folder / "below")))
    assert document.segments[0].data == b"picture"


def reasons(config):
    return [item.reason if isinstance(item, Reject) else "ok" for item in read_documents(config)]


def test_a_duplicate_id_is_rejected_and_the_first_kept(tmp_path):
    ids = ["x", "y", "x", 7, "7"]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(line({"id": i, "text": "t"}) for i in ids))
    (tmp_path / "b.jsonl").write_bytes(
        b"\n".join([line({"id": "y", "text": "t"}), line({"id": "b.jsonl/9", "text": "t"})])
    )
    duplicate = "id '{}' was used by an earlier record"
    expected = ["ok", "ok", duplicate.format("x"), "ok", duplicate.format("7"), duplicate.format("y"), "ok"]
    assert reasons(jsonl(tmp_path / "*.jsonl")) == expected
    assert len(list(read_documents(jsonl(tmp_path / "*.jsonl"), start=2))) == 5
    assert reasons(jsonl(tmp_path / "*.jsonl"))[2:] == [
        item.reason if isinstance(item, Reject) else "ok"
        for item in read_documents(jsonl(tmp_path / "*.jsonl"), start=2)
    ]


def test_an_own_id_cannot_pass_for_the_place_of_another_record(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(
        b"\n".join(
            [line({"id": "a.jsonl/2", "text": "t"}), line(GOOD), line(GOOD), line({"id": "a.jsonl/1", "text": "t"})]
        )
    )
    result = reasons(jsonl(tmp_path / "a.jsonl"))
    assert [r == "ok" for r in result] == [True, True, False, False]


def test_a_line_over_the_limit_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_RECORD_BYTES", 1000)
    (tmp_path / "r.jsonl").write_bytes(b"\n".join([line(GOOD), line({"text": "a" * 5000}), line(GOOD)]))
    assert reasons(jsonl(tmp_path / "r.jsonl")) == ["ok", "line exceeds 1000 bytes", "ok"]


def test_an_image_file_over_the_limit_is_not_read(folder, monkeypatch):
    monkeypatch.setattr(media, "MAX_FILE_BYTES", 3)
    (folder / "r.jsonl").write_bytes(
        b"\n".join([line({"image": "below/a.png"}), line({"image": "data:image/png;base64," + "A" * 40})])
    )
    first, second = reasons(jsonl(folder / "r.jsonl"))
    assert first.startswith("image file of 7 bytes exceeds 3") and "more than 3 bytes" in second


def test_truncated_gzip_gives_what_came_before_and_goes_on(tmp_path):
    lines = [line({"text": os.urandom(200).hex()}) for _ in range(200)]
    packed = gzip.compress(b"\n".join(lines))
    (tmp_path / "a.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(line(GOOD)))
    result = reasons(jsonl(tmp_path / "*.gz"))
    assert result[-1] == "ok" and "truncated or damaged" in result[-2]
    assert set(result[:-2]) == {"ok"} and len(result) > 50


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("b.jsonl", b"", "file has no records"),
        ("b.jsonl", b"\n \r\n\n", "file has no records"),
        ("b.jsonl", "\ufefftext".encode("utf-16"), "file is UTF-16"),
        ("b.jsonl.gz", b"not gzip", "truncated or damaged"),
    ],
)
def test_a_bad_file_among_good_ones_is_one_reject(tmp_path, name, content, reason):
    for good in ("a.jsonl", "c.jsonl"):
        (tmp_path / good).write_bytes(line(GOOD))
    (tmp_path / name).write_bytes(content)
    first, bad, last = reasons(jsonl(tmp_path / "*.jsonl*"))
    assert (first, last) == ("ok", "ok") and reason in bad


def member(name, data=b"x", kind=tarfile.REGTYPE, target=""):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data) if kind == tarfile.REGTYPE else 0, kind, target
    return info, io.BytesIO(data)


class Explosive:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


BAD_MEMBERS = {
    "no text": ([member("k.png")], "no text member"),
    "no image": ([member("k.txt")], "no image member"),
    "a pickle instead of the image": (
        [member("k.pkl", pickle.dumps(Explosive())), member("k.txt")],
        "no image member .not read: .pkl",
    ),
    "a pickle alone": ([member("k.pyd")], "no image member"),
    "image twice": ([member("k.png"), member("k.png"), member("k.txt")], "member .png appears twice"),
    "two images": ([member("k.png"), member("k.jpg"), member("k.txt")], "several members of one kind: .png, .jpg"),
    "two texts": (
        [member("k.png"), member("k.txt"), member("k.caption")],
        "several members of one kind: .txt, .caption",
    ),
    "key comes twice": ([member("a.png"), member("a.txt")], "key appears twice"),
    "image is a symlink": (
        [member("k.png", kind=tarfile.SYMTYPE, target="/etc/passwd"), member("k.txt")],
        "link or device .png",
    ),
    "image is a hard link": (
        [member("k.png", kind=tarfile.LNKTYPE, target="a.png"), member("k.txt")],
        "link or device .png",
    ),
    "image is a device": ([member("k.png", kind=tarfile.CHRTYPE), member("k.txt")], "link or device .png"),
    "name leaves the folder": ([member("../../k.png"), member("../../k.txt")], "member name is unsafe"),
    "name is absolute": ([member("/tmp/k.png"), member("/tmp/k.txt")], "member name is unsafe"),
    "text is not UTF-8": ([member("k.png"), member("k.txt", b"\xff")], "not UTF-8"),
    "text is empty, image is not read": ([member("k.txt", b"")], "no image member"),
    "json is broken": ([member("k.png"), member("k.json", b"{")], ".json is not valid JSON"),
    "json has no caption": ([member("k.png"), member("k.json", b'{"url": "x"}')], "neither 'caption' nor 'text'"),
    "json caption is null": ([member("k.png"), member("k.json", b'{"caption": null}')], "field 'text' is null"),
    "member over the limit": ([member("k.png", b"x" * 2000), member("k.txt")], "of 2000 bytes exceeds 1000"),
}


@pytest.mark.parametrize("case", BAD_MEMBERS)
def test_a_bad_tar_record_is_one_reject_between_good_ones(case, tmp_path, monkeypatch):
    from chameleon_jax.data.sources import tars

    monkeypatch.setattr(tars, "MAX_FILE_BYTES", 1000)
    monkeypatch.chdir(tmp_path)
    members, reason = BAD_MEMBERS[case]
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for info, data in [
            member("a.png"),
            member("a.txt"),
            member("b.png"),
            member("b.txt"),
            *members,
            member("z.png"),
            member("z.txt"),
        ]:
            tar.addfile(info, data)
    first, second, reject, last = read_documents(source("webdataset", tmp_path / "0.tar"))
    assert [d.id for d in (first, second, last)] == ["s/0.tar/a", "s/0.tar/b", "s/0.tar/z"]
    assert isinstance(reject, Reject) and reason in reject.reason.replace("(", "."), reject
    assert os.listdir(tmp_path) == ["0.tar"]


def good_tar(path, count=20):
    with tarfile.open(path, "w") as tar:
        for n in range(count):
            for kind in ("png", "txt"):
                tar.addfile(*member(f"{n:02d}.{kind}"))
    return path.read_bytes()


@pytest.mark.parametrize(
    "damage", ["inside a member", "between members", "in a header", "header overwritten", "not a tar"]
)
def test_a_damaged_tar_gives_what_came_before_and_goes_on(tmp_path, damage):
    data = good_tar(tmp_path / "0.tar")
    good_tar(tmp_path / "1.tar", 1)
    at = 10 * 2 * 1024  # 10 records of two members with a header and a block each
    damaged = {
        "inside a member": data[: at + 512],
        "between members": data[:at],
        "in a header": data[: at + 100],
        "header overwritten": data[:at] + b"\xff" * 512 + data[at + 512 :],
        "not a tar": b"<html>" * 1000,
    }[damage]
    (tmp_path / "0.tar").write_bytes(damaged)
    result = reasons(source("webdataset", tmp_path / "*.tar"))
    assert result[-1] == "ok" and "truncated or damaged" in result[-2]
    assert set(result[:-2]) <= {"ok"} and len(result[:-2]) >= (0 if damage == "not a tar" else 9)


def test_a_damaged_parquet_file_is_rejected_by_its_reason(tmp_path):
    pa.parquet.write_table(
        pa.table({"text": ["a" * 100, "b" * 100]}), tmp_path / "a.parquet", use_dictionary=False, compression="none"
    )
    whole = (tmp_path / "a.parquet").read_bytes()
    pa.parquet.write_table(pa.table({"body": ["a"], "id": [None]}), tmp_path / "b.parquet")
    pa.parquet.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "c.parquet")
    (tmp_path / "d.parquet").write_bytes(whole[:-20])
    (tmp_path / "e.parquet").write_bytes(b"\0" * len(whole[:200]) + whole[200:])
    (tmp_path / "f.parquet").write_bytes(b"<html></html>")
    pa.parquet.write_table(pa.table({"text": ["a", None], "image": [None, b""]}), tmp_path / "g.parquet")
    config = source("parquet", tmp_path / "*.parquet")
    result = reasons(config)
    assert result[:2] == ["ok", "ok"]
    assert "no known column; found: body" in result[2] or "found" in result[2]
    assert result[3] == "file has no records"
    assert "cannot be read" in result[4]
    assert result[-1] == "ok" and result[-2] == "ok"  # the second is an image of 0 bytes, refused where it is decoded
    assert all("cannot be read" in reason for reason in result[5:-2])
    assert estimate_records(config) is None


MISSING = {
    "no such file": (lambda d: jsonl(d / "no.jsonl"), "matches no file"),
    "glob matches nothing": (lambda d: jsonl(d / "*.jsonl"), "matches no file"),
    "a bad glob": (lambda d: jsonl(d / "[a.jsonl"), "matches no file"),
    "a folder": (lambda d: jsonl(d), "is a folder: name the files"),
    "a folder without manifest": (lambda d: source("folder", d), "has no manifest.jsonl"),
    "a manifest that is a picture": (lambda d: source("folder", d / "a.png"), "neither a folder nor a .jsonl"),
    "only empty files": (lambda d: jsonl(d / "empty"), "only empty files"),
    "a bucket": (lambda d: jsonl("gs://bucket/a.jsonl"), "is a URL"),
    "one JSON array": (lambda d: jsonl(d / "array.json"), "one JSON array.*jq -c"),
    "a split of tars": (
        lambda d: SourceConfig(name="s", kind="webdataset", path=str(d / "a.png"), split="x"),
        "tars have no splits",
    ),
    "NUL in the path": (lambda d: jsonl("a\0*.jsonl"), "cannot be searched|matches no file"),
    "a TFDS folder that is none": (lambda d: source("tfds", d), "cannot be opened"),
}


@pytest.mark.parametrize("case", MISSING)
def test_a_bad_source_is_an_error_before_work_begins(case, tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "array.json").write_text('[{"text": "a"}]')
    make, reason = MISSING[case]
    with pytest.raises(DataError, match=reason) as caught:
        read_documents(make(tmp_path))  # not even one record asked for
    assert "\n" not in str(caught.value)


SEEDS = [
    {"id": "x", "split": "train", "image": "a.png", "text": "t"},
    {"segments": [{"text": "x", "loss": True}, {"image": "a.png"}]},
    {"texts": ["x", None], "images": [None, "a.png"]},
    {"text_list": ["x"], "image_info": [{"image_name": "a.png", "matched_text_index": 0}]},
    {"image": ["a.png"], "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}]},
]
ODD = [
    None,
    True,
    -1,
    1e400,
    "",
    "\ud800",
    "../a",
    "a\0",
    [],
    {},
    [None],
    [[]],
    {"": None},
    ["a.png"],
    {"text": 1},
    {"bytes": "a"},
]


def mutate(value, chance):
    """One random change somewhere in a nested value."""
    if isinstance(value, (dict, list)) and value and chance.random() < 0.7:
        changed = copy.copy(value)
        key = chance.choice(list(value) if isinstance(value, dict) else range(len(value)))
        if chance.random() < 0.15:
            del changed[key]
        else:
            changed[key] = mutate(value[key], chance)
        return changed
    return copy.deepcopy(chance.choice(ODD))


def test_no_change_to_a_record_makes_anything_but_a_document_or_a_reject(folder):
    chance = random.Random(0)
    records = []
    for _ in range(3000):
        record = chance.choice(SEEDS)
        for _ in range(chance.randint(1, 3)):
            record = mutate(record, chance)
        records.append(record)
    (folder / "r.jsonl").write_bytes(b"\n".join(map(line, records)))
    items = list(read_documents(jsonl(folder / "r.jsonl", media_dir=str(folder / "below"))))
    assert len(items) == 3000
    documents = [item for item in items if isinstance(item, Document)]
    assert 50 < len(documents) < 2900
    assert len({document.id for document in documents}) == len(documents)
    for item in items:
        text = item.id if isinstance(item, Document) else item.reason + item.record
        assert text.encode() and "\n" not in text
