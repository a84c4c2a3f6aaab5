"""Tables, folders of pictures and Hugging Face's folders read as the same documents as everything else."""

import gzip
import json
import shutil

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet
import pytest

from chameleon_jax.configs import SourceConfig
from chameleon_jax.data.sources import Reject, estimate_records, read_documents, source_of
from chameleon_jax.errors import ConfigError, DataError
from tests.own_data_forms import write_saved

PNG, JPG = b"\x89PNG one", b"\xff\xd8 two"  # readers do not decode, so any bytes will do


def source(kind, path, **more):
    return SourceConfig(name="s", kind=kind, path=str(path), **more)


def read(kind, path, **more):
    """[[picture, words], ...] with a reason in place of a record that cannot be used; and the same from other starts."""
    config = source(kind, path, **more)
    whole = list(read_documents(config))
    for start in {0, 1, len(whole) // 2, len(whole) - 1, len(whole)}:
        assert list(read_documents(config, start=start)) == whole[start:]
    ids = [d.id for d in whole if not isinstance(d, Reject)]
    assert len(set(ids)) == len(ids)
    return [d.reason if isinstance(d, Reject) else [s.data for s in d.segments] for d in whole]


@pytest.fixture
def folder(tmp_path):
    for name, data in (("a.png", PNG), ("b.jpg", JPG), ("c.PNG", PNG + b"3")):
        (tmp_path / name).write_bytes(data)
    return tmp_path


def table(folder, content, name="t.csv"):
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder / name


def test_rows_of_a_table_read_as_fields(folder):
    path = table(
        folder, '\ufefffile_name,caption,n\r\na.png,"one, ""two""",1\r\n\r\nb.jpg,,2\r\n,"lines\nof text",3\r\n'
    )
    assert read("csv", path) == [[PNG, 'one, "two"'], [JPG], ["lines\nof text"]]
    assert [d.id for d in read_documents(source("csv", path))] == ["s/t.csv/0", "s/t.csv/1", "s/t.csv/2"]


@pytest.mark.parametrize("name, mark", [("t.csv", ";"), ("t.csv", "|"), ("t.tsv", "\t"), ("t.tsv.gz", "\t")])
def test_the_first_line_says_what_separates_cells(folder, name, mark):
    content = f"id{mark}image{mark}title\nx{mark}a.png{mark}one, two, three\n".encode()
    path = table(folder, gzip.compress(content) if name.endswith("gz") else content, name)
    assert read("csv", path) == [[PNG, "one, two, three"]]
    assert [d.id for d in read_documents(source("csv", path))] == ["s/x"]


def test_a_bad_row_is_one_reject_between_good_ones(folder):
    rows = [
        b"text,image",
        b"one,a.png",
        b"two",
        b"th\xffree,b.jpg",
        b'four "x,b.jpg',
        b'"fi"ve,b.jpg',
        b"six,no.png",
        b"seven,b.jpg",
    ]
    assert read("csv", table(folder, b"\n".join(rows))) == [
        [PNG, "one"],
        "row has 1 cells, the first line 2",
        "row is not UTF-8",
        [JPG, 'four "x'],
        "row ending in line 6 is not valid CSV: ',' expected after '\"'",
        "image file is missing: 'no.png'",
        [JPG, "seven"],
    ]


BAD_TABLES = {
    "no known column": (
        "body,n\nx,1\n",
        "first line names no known column; found: 'body, n'; known are image, "
        "file_name, text, caption and others (docs/tokenize.md)",
    ),
    "a column twice": ("text,text\nx,y\n", "names a column twice"),
    "UTF-16": ("text\nx\n".encode("utf-16"), "file is UTF-16"),
    "a first line alone": ("text,image\n", "file has no records"),
    "bytes": (b"\x80\x81,\x82\n", "first line is not UTF-8"),
    "half a gzip file": (gzip.compress(b"text\n" + b"x\n" * 99999)[:-200], "gzip file is truncated"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_bad_table_is_a_reject_that_says_why(case, folder):
    content, reason = BAD_TABLES[case]
    path = table(folder, content, "t.csv.gz" if "gzip" in case else "t.csv")
    found = list(read_documents(source("csv", path)))
    assert reason in found[-1].reason


def test_pictures_with_words_beside_them(folder):
    (folder / "a.txt").write_text("one \n")
    (folder / "sub" / ".hidden").mkdir(parents=True)
    (folder / "sub" / "d.webp").write_bytes(JPG)
    (folder / "sub" / "d.caption").write_bytes(b"\xef\xbb\xbftwo")
    (folder / "sub" / ".hidden" / "x.png").write_bytes(PNG)
    (folder / "._a.png").write_bytes(b"of macOS")
    (folder / "b.txt").write_text(" ")
    (folder / "readme.txt").write_text("words")
    assert read("pairs", folder) == [
        [PNG, "one"],
        "'b.txt' is empty",
        "no text beside the picture: 'c.txt' is missing",
        [JPG, "two"],
        "no picture beside this text",
    ]
    assert estimate_records(source("pairs", folder)) == 5
    assert next(read_documents(source("pairs", folder))).id == "s/a.png"


def test_pictures_named_by_their_folders(folder):
    for place in ("train/red_fox", "test/red_fox", "train/old-cat"):
        (folder / place).mkdir(parents=True)
        (folder / place / "x.png").write_bytes(PNG)
    found = read("classes", folder)
    assert found[:3] == ["picture lies in no folder of a class"] * 3
    assert found[3:] == [[PNG, "red fox"], [PNG, "old cat"], [PNG, "red fox"]]


def test_pictures_alone_or_with_one_caption(folder):
    assert read("pictures", folder) == [[PNG], [JPG], [PNG + b"3"]]
    assert read("pictures", folder, caption="a thing")[1] == [JPG, "a thing"]
    with pytest.raises(ConfigError, match="caption is for kind 'pictures'"):
        source("pairs", folder, caption="a thing")


def test_a_picture_behind_a_symlink_out_of_the_folder_is_not_read(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "x.png"
    outside.write_bytes(PNG)
    (folder / "z.png").symlink_to(outside)
    assert read("pictures", folder)[-1] == "image path leaves media_dir by a symlink: 'z.png'"


def test_two_texts_beside_a_picture_are_named(folder):
    for name in ("a.txt", "a.caption", "b.txt", "c.txt"):
        (folder / name).write_text("words")
    assert read("pairs", folder)[0] == "more than one text beside the picture: 'a.caption' and 'a.txt'"


def test_links_to_folders_are_followed_once_and_not_out_of_the_folder(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "x.png").write_bytes(PNG)
    data = folder / "data"
    (data / "all" / "cat").mkdir(parents=True)
    (data / "all" / "cat" / "x.png").write_bytes(PNG)
    (data / "all" / "back").symlink_to(data)
    (data / "dog").symlink_to(data / "all" / "cat")
    (data / "fox").symlink_to(outside)
    left = "image path leaves media_dir by a symlink: 'fox/x.png'"
    assert read("classes", data) == [[PNG, "cat"], [PNG, "dog"], left]


@pytest.mark.parametrize("name", ["T.CSV", "T.TSV.GZ", "A.JSONL", "A.JSONL.GZ"])
def test_a_folder_is_read_whatever_its_name_and_the_case_of_endings(name, tmp_path):
    folder = tmp_path / "data [v2]"
    folder.mkdir()
    content = b'{"text": "one"}\n' if "JSONL" in name else b"text\none\n"
    (folder / name).write_bytes(gzip.compress(content) if name.endswith("GZ") else content)
    (document,) = read_documents(source_of(folder))
    assert document.id.endswith(f"/{name}/0") and "[" not in document.id
    assert [segment.data for segment in document.segments] == ["one"]


GIVEN = [(PNG + bytes([n]), f"kind_{n % 3}") for n in range(100)]
EXPECTED = [[data, text.replace("_", " ")] for shard in (0, 1) for data, text in GIVEN[shard::2]]


def test_endings_that_differ_in_case_alone_are_one_form(tmp_path):
    for name in ("a.csv", "b.CSV"):
        (tmp_path / name).write_text(f"text\n{name}\n")
    found = source_of(tmp_path)
    assert [d.segments[0].data for d in read_documents(found)] == ["a.csv", "b.CSV"]
    assert source_of(found.path).kind == "csv"
    (tmp_path / "c.tsv").write_text("text\nc\n")
    with pytest.raises(DataError, match=r"holds \.csv, \.tsv files: give one kind, as .*\*\.\[cC\]"):
        source_of(tmp_path)


def test_a_saved_data_set_reads_in_the_order_of_its_state(tmp_path):
    folder = write_saved(tmp_path / "saved", GIVEN)
    assert read("huggingface", folder) == EXPECTED
    assert estimate_records(source("huggingface", folder)) == 100
    assert next(read_documents(source("huggingface", folder))).id == "s/data-00000-of-00002.arrow/0"
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | {"_data_files": state["_data_files"][::-1]}))
    assert read("huggingface", folder)[0] == EXPECTED[50]
    (folder / "dataset_info.json").unlink()  # the names of the classes stand in the files too
    assert read("huggingface", folder)[0] == EXPECTED[50]


def test_the_splits_of_a_saved_dictionary(tmp_path):
    (tmp_path / "dict").mkdir()
    write_saved(tmp_path / "dict" / "train", GIVEN[:60])
    write_saved(tmp_path / "dict" / "test", GIVEN[60:])
    (tmp_path / "dict" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    assert len(read("huggingface", tmp_path / "dict")) == 100
    assert len(read("huggingface", tmp_path / "dict", split="test")) == 40
    with pytest.raises(DataError, match=r"no record has split 'tset' \(did you mean 'test'\?\)"):
        list(read_documents(source("huggingface", tmp_path / "dict", split="tset")))


def test_columns_of_words_come_before_class_labels_and_unknown_columns_are_named(tmp_path):
    folder = tmp_path / "saved"
    folder.mkdir()

    def write(rows):
        batch = pa.RecordBatch.from_pylist(rows)
        with pa.ipc.new_stream(str(folder / "data.arrow"), batch.schema) as writer:
            writer.write_batch(batch)

    features = {"image": {"_type": "Image"}, "caption": {}, "kind": {"_type": "ClassLabel", "names": ["x"]}}
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    write([{"image": PNG, "caption": "words", "kind": 0}, {"image": PNG, "caption": None, "kind": 0}])
    assert read("huggingface", folder) == [[PNG, "words"], [PNG]]
    (folder / "dataset_info.json").write_text(json.dumps({"features": {"kind": features["kind"]}}))
    write([{"pixels": PNG, "kind": 0}, {"pixels": PNG, "kind": -1}])
    assert "field 'pixels' looks like a picture" in read("huggingface", folder)[0]
    (folder / "dataset_info.json").unlink()
    write([{"body": "x"}])
    assert read("huggingface", folder) == ["data set has no known column; found: body"]


def test_class_labels_in_parquet_become_words(tmp_path):
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["red_fox", "cat"]}}
    rows = pa.Table.from_pylist([{"image": PNG, "label": 1}, {"image": JPG, "label": 0}])
    rows = rows.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pa.parquet.write_table(rows, tmp_path / "p.parquet")
    assert read("parquet", tmp_path / "p.parquet") == [[PNG, "cat"], [JPG, "red fox"]]


def test_damage_in_a_saved_data_set_costs_what_comes_after(tmp_path):
    folder = write_saved(tmp_path / "saved", GIVEN)
    file = folder / "data-00000-of-00002.arrow"
    file.write_bytes(file.read_bytes()[:-500])
    found = read("huggingface", folder)
    assert found[0] == EXPECTED[0] and found[-50:] == EXPECTED[50:]
    assert next(reason for reason in found if isinstance(reason, str)).startswith("Arrow file is truncated or damaged")
    assert estimate_records(source("huggingface", folder)) is None
    file.write_bytes(b"<html></html>")
    assert "damaged" in read("huggingface", folder)[0]


STATES = {
    "a name above": {"_data_files": [{"filename": "../out.arrow"}]},
    "an absolute name": {"_data_files": [{"filename": "/out.arrow"}]},
    "no names": {"_data_files": [{}]},
    "no list": {"_data_files": 3},
    "numbers": {"_data_files": [3]},
    "a split above": {"splits": [".."]},
    "a split of numbers": {"splits": [1]},
    "splits that are no list": {"splits": "train"},
}


@pytest.mark.parametrize("case", STATES)
def test_metadata_of_a_saved_data_set_name_nothing_out_of_its_folder(case, tmp_path):
    folder = write_saved(tmp_path / "saved", GIVEN[:4])
    shutil.copy(folder / "data-00000-of-00002.arrow", tmp_path / "out.arrow")
    is_split = "splits" in STATES[case]
    (folder / ("dataset_dict.json" if is_split else "state.json")).write_text(json.dumps(STATES[case]))
    with pytest.raises(DataError, match=r"must name what lies in its folder|is no list"):
        read_documents(source("huggingface", folder))


@pytest.mark.parametrize("features", [[1], {"label": {"_type": "ClassLabel", "names": 3}}])
def test_malformed_features_of_a_saved_data_set_are_an_error(features, tmp_path):
    folder = write_saved(tmp_path / "saved", GIVEN[:4])
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    with pytest.raises(DataError, match=r"'features' is no object|no list of names"):
        list(read_documents(source("huggingface", folder)))


MISSING = {
    "no folder": (lambda d: source("pairs", d / "no"), "path '.*no' is missing: kind 'pairs' is a folder"),
    "a file": (lambda d: source("classes", d / "a.png"), "is a file: kind 'classes' is a folder"),
    "no picture": (lambda d: source("pictures", d / "empty"), "holds no picture"),
    "a split": (lambda d: source("pictures", d, split="train"), "files have no splits"),
    "no data set": (lambda d: source("huggingface", d), "holds no data set that save_to_disk wrote"),
    "no shard": (
        lambda d: source("huggingface", d / "saved"),
        "data-00001-of-00002.arrow is missing, which state.json names",
    ),
    "a bad state": (lambda d: source("huggingface", d / "bad"), "state.json cannot be read"),
    "no table": (lambda d: source("csv", d / "*.csv"), "matches no file"),
}


@pytest.mark.parametrize("case", MISSING)
def test_a_bad_source_is_an_error_before_work_begins(case, folder):
    (folder / "empty").mkdir()
    (folder / "bad").mkdir()
    (folder / "bad" / "state.json").write_text("{")
    (write_saved(folder / "saved", GIVEN) / "data-00001-of-00002.arrow").unlink()
    make, reason = MISSING[case]
    with pytest.raises(DataError, match=reason) as caught:
        read_documents(make(folder))
    assert "\n" not in str(caught.value)
    shutil.rmtree(folder / "saved")
