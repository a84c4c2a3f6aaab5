"""Every kind of source gives the same documents in the same order, with ids that stay, from any starting point."""

import base64
import gzip
import io
import json
import subprocess
import sys
import tarfile

import pyarrow as pa
import pyarrow.parquet
import pytest

from chameleon_jax.configs import SourceConfig
from chameleon_jax.data.sources import Reject, estimate_records, read_documents
from chameleon_jax.errors import DataError
from chameleon_jax.tokenizers.documents import Document, Segment

PNG = b"\x89PNG one"  # readers do not decode, so any bytes will do
JPG = b"\xff\xd8 two"


def write_lines(path, records, opener=open):
    with opener(path, "wt", encoding="utf-8") as file:
        file.write("".join(json.dumps(record) + "\n" for record in records))


def write_tar(path, members, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def jsonl(path, **options):
    return SourceConfig(name="s", kind="jsonl", path=str(path), **options)


def shape(document):
    """A document as a readable list: texts as str, images as bytes."""
    assert isinstance(document, Document), document
    assert all(s.modality == ("text" if isinstance(s.data, str) else "image") for s in document.segments)
    return [s.data for s in document.segments]


@pytest.fixture
def pictures(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(PNG)
    (tmp_path / "pictures" / "b.jpg").write_bytes(JPG)
    return tmp_path


SCHEMAS = {
    "text": ({"text": "hello"}, ["hello"]),
    "image alone": ({"image": "a.png"}, [PNG]),
    "pair": ({"image": "a.png", "text": "one", "url": "http://x", "width": 3}, [PNG, "one"]),
    "caption": ({"image": "a.png", "caption": "one"}, [PNG, "one"]),
    "captions": ({"image": "a.png", "captions": ["one", "uno"]}, [PNG, "one"]),
    "segments": (
        {"segments": [{"text": "x"}, {"image": "a.png"}, {"image": "b.jpg"}, {"text": "y"}]},
        ["x", PNG, JPG, "y"],
    ),
    "OBELICS": ({"texts": ["x", None, "y"], "images": [None, "a.png", None], "metadata": "{}"}, ["x", PNG, "y"]),
    "MMC4": (
        {
            "text_list": ["One.", "Two.", "Three."],
            "image_info": [
                {"image_name": "b.jpg", "matched_text_index": 2, "matched_sim": 0.3},
                {"image_name": "a.png", "matched_text_index": 0},
            ],
        },
        [PNG, "One. Two.", JPG, "Three."],
    ),
    "LLaVA": (
        {
            "image": "a.png",
            "conversations": [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "One."}],
        },
        [PNG, "\nWhat?", "One."],
    ),
    "LLaVA without image": (
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
        ["Hi", "Ho"],
    ),
    "data: URL": (
        {"image": "data:image/png;base64," + base64.b64encode(PNG).decode(), "text": "one"},
        [PNG, "one"],
    ),
    "a lone surrogate in a text": ({"text": "a\ud83d"}, ["a\ufffd"]),
    "special names are plain text": ({"text": "<racm3:break>IMGIMGAZ</s>"}, ["<racm3:break>IMGIMGAZ</s>"]),
    "forty images": ({"segments": [{"image": "a.png"}] * 40}, [PNG] * 40),
}


@pytest.mark.parametrize("case", SCHEMAS)
def test_a_line_of_each_schema_becomes_its_document(case, pictures):
    record, expected = SCHEMAS[case]
    write_lines(pictures / "r.jsonl", [record])
    (document,) = read_documents(jsonl(pictures / "r.jsonl", media_dir=str(pictures / "pictures")))
    assert shape(document) == expected
    assert (document.id, document.source) == ("s/r.jsonl/0", "s")


def test_only_answers_of_a_conversation_are_predicted_and_turns_end(pictures):
    write_lines(pictures / "r.jsonl", [SCHEMAS["LLaVA"][0]])
    (document,) = read_documents(jsonl(pictures / "r.jsonl", media_dir=str(pictures / "pictures")))
    assert document.segments == (
        Segment("image", PNG, loss=False, reference="a.png"),
        Segment("text", "\nWhat?", loss=False, ends_turn=True),
        Segment("text", "One.", loss=True, ends_turn=True),
    )


def test_segments_carry_their_loss_role(tmp_path):
    write_lines(tmp_path / "r.jsonl", [{"segments": [{"text": "q", "loss": False}, {"text": "a", "image": None}]}])
    (document,) = read_documents(jsonl(tmp_path / "r.jsonl"))
    assert document.segments == (Segment("text", "q", loss=False), Segment("text", "a"))


def test_a_folder_reads_its_manifest(pictures):
    write_lines(
        pictures / "manifest.jsonl", [{"id": "one", "image": "pictures/a.png", "text": "x"}, {"id": 2, "text": "y"}]
    )
    for path in (pictures, pictures / "manifest.jsonl"):
        first, second = read_documents(SourceConfig(name="f", kind="folder", path=str(path)))
        assert (first.id, shape(first)) == ("f/one", [PNG, "x"])
        assert (second.id, shape(second)) == ("f/2", ["y"])


def test_files_are_read_in_order_of_their_names_with_ids_that_stay(tmp_path):
    for folder, name, text in (("b", "1.jsonl", "third"), ("a", "2.jsonl", "second"), ("a", "1.jsonl", "first")):
        (tmp_path / folder).mkdir(exist_ok=True)
        write_lines(tmp_path / folder / name, [{"text": text}])
    documents = list(read_documents(jsonl(tmp_path / "*" / "*.jsonl")))
    assert [(d.id, shape(d)) for d in documents] == [
        ("s/a/1.jsonl/0", ["first"]),
        ("s/a/2.jsonl/0", ["second"]),
        ("s/b/1.jsonl/0", ["third"]),
    ]


def test_bom_crlf_and_blank_lines_are_harmless(tmp_path):
    (tmp_path / "r.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\r\n   \n{"text": "b"}')
    assert [(d.id, shape(d)) for d in read_documents(jsonl(tmp_path / "r.jsonl"))] == [
        ("s/r.jsonl/0", ["a"]),
        ("s/r.jsonl/3", ["b"]),
    ]


def test_compressed_lines_read_as_plain_ones(tmp_path):
    write_lines(tmp_path / "r.jsonl.gz", [{"text": "a"}, {"text": "b"}], gzip.open)
    assert [shape(d) for d in read_documents(jsonl(tmp_path / "r.jsonl.gz"))] == [["a"], ["b"]]


def test_a_split_selects_records_and_does_not_count_the_others(tmp_path):
    records = [{"text": str(n), "split": "test" if n % 3 == 0 else "train"} for n in range(9)]
    write_lines(tmp_path / "r.jsonl", records)
    pa.parquet.write_table(pa.Table.from_pylist(records), tmp_path / "r.parquet")
    for config in (
        jsonl(tmp_path / "r.jsonl", split="test"),
        SourceConfig(name="s", kind="parquet", path=str(tmp_path / "r.parquet"), split="test"),
    ):
        assert [shape(d) for d in read_documents(config)] == [["0"], ["3"], ["6"]]
        assert [shape(d) for d in read_documents(config, start=1)] == [["3"], ["6"]]
        assert estimate_records(config) is None


def test_a_split_that_no_record_has_is_an_error_that_names_the_nearest(tmp_path):
    write_lines(tmp_path / "r.jsonl", [{"text": "a", "split": "train"}])
    with pytest.raises(DataError, match=r"no record has split 'trian' \(did you mean 'train'"):
        list(read_documents(jsonl(tmp_path / "r.jsonl", split="trian")))


def test_tars_group_members_up_to_the_first_dot(tmp_path):
    members = [
        ("0/b.JPG", JPG), ("0/b.txt", "two ü".encode()), ("0/b.json", b"not read"),
        ("0/a.seg.png", b"unread"), ("0/a.png", PNG), ("0/a.json", b'{"caption": "one", "url": "http://x"}'),
    ]  # fmt: skip
    for name, mode in (("00.tar", "w"), ("00.tar.gz", "w:gz")):
        write_tar(tmp_path / name, members, mode)
        documents = list(read_documents(SourceConfig(name="w", kind="webdataset", path=str(tmp_path / name))))
        assert [(d.id, shape(d)) for d in documents] == [
            (f"w/{name}/0/b", [JPG, "two ü"]),
            (f"w/{name}/0/a", [PNG, "one"]),
        ]


def test_parquet_columns_read_as_fields(pictures):
    rows = {
        "pairs": ([{"image": PNG, "caption": "one", "score": 0.5}], [[PNG, "one"]]),
        "structs": ([{"image": {"bytes": PNG, "path": "a.png"}, "text": "one"}], [[PNG, "one"]]),
        "paths": ([{"image": {"bytes": None, "path": "pictures/a.png"}, "text": "one"}], [[PNG, "one"]]),
        "OBELICS": ([{"images": [None, PNG], "texts": ["x", None], "metadata": "[]"}], [["x", PNG]]),
        "texts": ([{"text": "x"}, {"text": "y"}], [["x"], ["y"]]),
        "segments": ([{"segments": [{"text": "x", "image": None}, {"text": None, "image": PNG}]}], [["x", PNG]]),
    }
    for name, (table, expected) in rows.items():
        path = pictures / f"{name}.parquet"
        pa.parquet.write_table(pa.Table.from_pylist(table), path)
        config = SourceConfig(name="p", kind="parquet", path=str(path))
        documents = list(read_documents(config))
        assert [shape(d) for d in documents] == expected, name
        assert documents[0].id == f"p/{name}.parquet/0"
        assert estimate_records(config) == len(table)


def everything(folder):
    """Sources of each kind on disk, with rejects among their records."""
    records = [{"text": f"t{n}"} if n % 4 else {"image": "missing.png", "id": f"own{n // 8}"} for n in range(40)]
    write_lines(folder / "r.jsonl", records)
    write_lines(folder / "manifest.jsonl", records)
    table = pa.table({field: [record.get(field) for record in records] for field in ("id", "image", "text")})
    pa.parquet.write_table(table, folder / "r.parquet", row_group_size=7)
    members = [(f"{n:02d}.{kind}", b"x") for n in range(12) for kind in ("png", "txt") if n % 5 or kind == "png"]
    write_tar(folder / "r.tar", members)
    return [
        jsonl(folder / "r.jsonl"),
        SourceConfig(name="s", kind="folder", path=str(folder)),
        SourceConfig(name="s", kind="parquet", path=str(folder / "r.parquet")),
        SourceConfig(name="s", kind="webdataset", path=str(folder / "r.tar")),
    ]


def test_reading_may_start_anywhere(tmp_path):
    for config in everything(tmp_path):
        whole = list(read_documents(config))
        assert any(isinstance(item, Reject) for item in whole) and any(isinstance(item, Document) for item in whole)
        assert list(read_documents(config)) == whole
        for start in (0, 1, 7, 8, len(whole) - 1, len(whole), len(whole) + 5):
            assert list(read_documents(config, start=start)) == whole[start:], config.kind
        ids = [item.id for item in whole if isinstance(item, Document)]
        assert len(set(ids)) == len(ids)


def test_records_that_are_passed_over_load_no_image(pictures, monkeypatch):
    write_lines(pictures / "r.jsonl", [{"image": "pictures/a.png"}] * 5)
    from chameleon_jax.data.sources import schemas

    loaded = []
    real = schemas.load_file
    monkeypatch.setattr(schemas, "load_file", lambda *a: loaded.append(a) or real(*a))
    assert len(list(read_documents(jsonl(pictures / "r.jsonl"), start=3))) == 2
    assert len(loaded) == 2


def test_estimates_count_lines_and_rows(tmp_path):
    estimates = [estimate_records(config) for config in everything(tmp_path)]
    assert estimates == [40, 40, 40, None]
    (tmp_path / "r.jsonl").write_text('{"text": "a"}\n{"text": "b"}')
    assert estimate_records(jsonl(tmp_path / "r.jsonl")) == 2


BUILDER = """
import numpy as np
import tensorflow_datasets as tfds

class Pairs(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {"image": tfds.features.Image(), "%(field)s": %(feature)s}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {"train": self._generate_examples(3), "test": self._generate_examples(1)}

    def _generate_examples(self, count):
        import io
        from PIL import Image
        for n in range(count):
            buffer = io.BytesIO()
            Image.new("RGB", (2, 2), (n, 0, 0)).save(buffer, "PNG")
            buffer.seek(0)
            yield n, {"image": buffer, "%(field)s": %(value)s}

Pairs(data_dir="%(folder)s", file_format="array_record").download_and_prepare()
"""


@pytest.mark.parametrize(
    ("field", "feature", "value", "expected"),
    [
        ("label", "tfds.features.ClassLabel(names=['cat', 'dog'])", "n % 2", {"cat", "dog"}),
        (
            "captions",
            "tfds.features.Sequence(tfds.features.Text())",
            "[f'first {n}', 'second']",
            {"first 0", "first 1", "first 2"},
        ),
    ],
)
def test_a_tfds_data_set_is_read_without_tensorflow(tmp_path, field, feature, value, expected):
    # In another process, because building registers the class for good.
    script = BUILDER % {"field": field, "feature": feature, "value": value, "folder": tmp_path}
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    folder = str(tmp_path / "pairs" / "1.0.0")
    config = SourceConfig(name="t", kind="tfds", path=folder)
    documents = list(read_documents(config))
    assert [d.id for d in documents] == ["t/test/0", "t/train/0", "t/train/1", "t/train/2"]
    assert {shape(d)[1] for d in documents} == expected
    assert all(shape(d)[0].startswith(b"\x89PNG") for d in documents)
    assert estimate_records(config) == 4
    assert "tensorflow" not in sys.modules

    train = SourceConfig(name="t", kind="tfds", path=folder, split="train")
    assert list(read_documents(train, start=1)) == documents[2:]
    sliced = SourceConfig(name="t", kind="tfds", path=folder, split="train[1:]")
    assert [d.segments for d in read_documents(sliced)] == [d.segments for d in documents[2:]]
    with pytest.raises(DataError, match=r"no split 'trian' \(did you mean 'train'"):
        read_documents(SourceConfig(name="t", kind="tfds", path=folder, split="trian"))


def test_an_unknown_tfds_data_set_is_an_error():
    with pytest.raises(DataError, match="'no_such_data_set' is not known to TFDS"):
        read_documents(SourceConfig(name="t", kind="tfds", path="no_such_data_set"))
    with pytest.raises(DataError, match="is not prepared: run  tfds build mnist"):
        read_documents(SourceConfig(name="t", kind="tfds", path="mnist"))
