"""Pictures of a record are read under the names that data sets use, or refused: none is lost unsaid."""

import json

import pyarrow as pa
import pyarrow.parquet
import pytest

from chameleon_jax.configs import ModalityConfig, SourceConfig, VocabConfig, text_and_image
from chameleon_jax.data.sources import Reject, read_documents
from chameleon_jax.data.sources.schemas import record_segments
from chameleon_jax.errors import DataError

PNG, JPG = b"\x89PNG one", b"\xff\xd8\xff two"  # readers do not decode
VOCAB = text_and_image()
NAMES = (
    "file_name",
    "filename",
    "image_path",
    "image_file",
    "img",
    "img_path",
    "picture",
    "photo",
    "jpg",
    "png",
    "webp",
)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "b.jpg").write_bytes(JPG)
    return tmp_path


def read(record, folder, **options):
    return [segment.data for segment in record_segments(record, str(folder), VOCAB, **options)]


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_is_read_under_its_usual_names(name, folder):
    assert read({name: "a.png", "text": "one"}, folder) == [PNG, "one"]


@pytest.mark.parametrize("name", ["caption", "text", "description", "alt_text", "txt", "TEXT"])
def test_a_text_is_read_under_its_usual_names(name, folder):
    assert read({"file_name": "b.jpg", name: "two"}, folder) == [JPG, "two"]


def test_a_prompt_a_title_and_a_label_are_words_of_a_picture(folder):
    words = {"label": "3", "title": "two", "prompt": "one", "txt": "zero"}
    for name in ("txt", "prompt", "title", "label"):
        assert read({"file_name": "b.jpg"} | words, folder) == [JPG, words.pop(name)]


@pytest.mark.parametrize(
    "record",
    [
        {"sentence": "a fine film", "label": "1"},
        {"prompt": "how?", "completion": "so"},
        {"title": "t", "context": "c", "question": "q", "answer": "a"},
        {"title": "alone"},
    ],
)
def test_words_without_a_picture_are_not_chosen_among(record, folder):
    named = ", ".join(record)
    with pytest.raises(DataError, match=rf"which of its fields is the text is not known \('{named}'\): call it 'text'"):
        read(record, folder)


def test_the_class_of_a_sentence_is_not_its_text(folder):
    features = {"sentence": {}, "label": {"_type": "ClassLabel", "names": ["bad", "good"]}}
    rows = pa.table({"sentence": ["a fine film"], "label": [1]})
    rows = rows.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(rows, folder / "a.parquet")
    (found,) = read_documents(SourceConfig(name="s", kind="parquet", path=str(folder / "a.parquet")))
    assert isinstance(found, Reject) and "none of the known fields" in found.reason


READ = {
    "an ImageFolder's metadata": ({"file_name": "a.png", "text": "one"}, [PNG, "one"]),
    "images and placeholders": ({"text": "<image> one", "images": ["a.png"]}, [PNG, " one"]),
    "two placeholders": ({"text": "x <image> y<image>", "images": ["a.png", "b.jpg"]}, ["x ", PNG, " y", JPG]),
    "images without placeholders": ({"text": "both", "images": ["a.png", "b.jpg"]}, [PNG, JPG, "both"]),
    "one image and its placeholder": ({"image": "a.png", "caption": "x <image>"}, ["x ", PNG]),
    "no images": ({"text": "words", "images": []}, ["words"]),
    "the same picture twice": ({"image": "a.png", "file_name": "a.png", "text": "one"}, [PNG, "one"]),
    "where it came from": ({"image": "a.png", "text": "one", "url": "https://x.example/a.png?w=3"}, [PNG, "one"]),
    "a text file's name": ({"text": "def f(): ...", "file_name": "a.py"}, ["def f(): ..."]),
    "words that spell a placeholder": ({"segments": [{"text": "<image>"}]}, ["<image>"]),
}


@pytest.mark.parametrize("case", READ)
def test_records_of_public_data_sets_keep_their_pictures(case, folder):
    record, expected = READ[case]
    assert read(record, folder) == expected


REFUSED = {
    "an unknown field with a path": ({"text": "one", "snapshot": "a.png"}, "field 'snapshot' looks like a picture"),
    "a list of paths": ({"text": "one", "frames": ["a.png"]}, "field 'frames' looks like a picture"),
    "bytes": ({"text": "one", "content": PNG}, "field 'content' looks like a picture"),
    "bytes in an object": ({"text": "one", "shot": {"bytes": JPG, "path": None}}, "field 'shot' looks like a picture"),
    "a second picture": ({"image": "a.png", "text": "one", "mask": "b.jpg"}, "field 'mask' looks like a picture"),
    "two different ones": ({"img": "a.png", "photo": "b.jpg", "text": "one"}, "img, photo hold different pictures"),
    "an address alone": ({"url": "https://x.example/a.jpg", "text": "one"}, "field 'url' looks like a picture"),
    "a sound": ({"text": "one", "sound": "a.wav"}, "field 'sound' looks like a sound"),
    "bytes of a sound": ({"text": "one", "audio": b"RIFF....WAVEfmt "}, "field 'audio' looks like a sound"),
    "a typing error in a segment": ({"segments": [{"text": "a", "los": False}]}, r"segments\[0\] has an unknown field 'los'"),
    "a placeholder alone": ({"text": "<image> one"}, "field 'text' holds <image> and the record no picture"),
    "too few placeholders": ({"text": "<image>", "images": ["a.png", "b.jpg"]}, "1 <image> placeholders for 2 images"),
    "image and images": ({"image": "a.png", "images": ["b.jpg"], "text": "x"}, "both 'image' and 'images'"),
    "a name without its ending": ({"file_name": "000", "caption": "one"}, "field 'file_name' names no picture file: '000'"),
    "columns the wrong way round": ({"image_path": "a green square.", "caption": "a.png"}, "names no picture file"),
    "beside a conversation": (
        {"conversations": [{"from": "gpt", "value": "hi"}], "picture_file": "a.png"},
        "field 'picture_file' looks like a picture",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_a_picture_that_would_be_lost_is_an_error(case, folder):
    record, reason = REFUSED[case]
    with pytest.raises(DataError, match=reason):
        read(record, folder)


def test_fields_are_passed_over_on_request(folder):
    record = {"image": "a.png", "text": "one", "mask": "b.jpg"}
    assert read(record, folder, ignored=("mask",)) == [PNG, "one"]
    (folder / "r.jsonl").write_text(json.dumps(record) + "\n")
    source = SourceConfig(name="s", kind="jsonl", path=str(folder / "r.jsonl"), ignore_fields=("mask",))
    (document,) = read_documents(source)
    assert [segment.data for segment in document.segments] == [PNG, "one"]


def test_fields_are_known_in_any_case(folder):
    record = {"ID": "x", "Image": "a.png", "Text": "one", "Mask": "b.jpg"}
    (folder / "r.jsonl").write_text(json.dumps(record) + "\n")
    pyarrow.parquet.write_table(pa.table({"Image": [PNG], "Text": ["one"]}), folder / "a.parquet")
    lines = SourceConfig(name="s", kind="jsonl", path=str(folder / "r.jsonl"), ignore_fields=("Mask",))
    rows = SourceConfig(name="s", kind="parquet", path=str(folder / "a.parquet"))
    (line,), (row,) = read_documents(lines), read_documents(rows)
    assert line.id == "s/x"
    assert [segment.data for segment in line.segments] == [segment.data for segment in row.segments] == [PNG, "one"]
    assert read({"text": "one", "Text": "two"}, folder) == ["one"]  # two that would be one stay


def test_a_name_of_a_modality_means_that_modality(folder):
    moves = ModalityConfig(name="photo", ids=5, span="free")
    vocab = VocabConfig(modalities=(*VOCAB.modalities, moves))
    segments = record_segments({"photo": [1, 2], "text": "go"}, str(folder), vocab)
    assert [(s.modality, s.data) for s in segments] == [("text", "go"), ("photo", (1, 2))]


def test_a_picture_under_the_name_of_its_modality_is_not_read_twice(folder):
    drawings = ModalityConfig(name="drawings", ids=16, length=4, codec="vqgan")
    vocab = VocabConfig(modalities=(VOCAB.modalities[0], drawings))
    segments = record_segments({"drawings": "a.png", "file_name": "a.png", "text": "go"}, str(folder), vocab)
    assert [(s.modality, s.data) for s in segments] == [("text", "go"), ("drawings", PNG)]


def test_a_folder_may_be_an_image_folder(folder):
    (folder / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "one"}\n')
    (document,) = read_documents(SourceConfig(name="s", kind="folder", path=str(folder)))
    assert [segment.data for segment in document.segments] == [PNG, "one"]


def test_parquet_columns_with_pictures_are_not_left_out(folder):
    columns = {"caption": ["one"], "shot": [{"bytes": PNG, "path": "x"}], "size": [3], "site": ["https://x.example"]}
    pyarrow.parquet.write_table(pa.table(columns), folder / "a.parquet")
    source = SourceConfig(name="s", kind="parquet", path=str(folder / "a.parquet"))
    (found,) = read_documents(source)
    assert isinstance(found, Reject) and "field 'shot' looks like a picture" in found.reason
    ignoring = SourceConfig(name="s", kind="parquet", path=source.path, ignore_fields=("shot",))
    assert [segment.data for segment in next(iter(read_documents(ignoring))).segments] == ["one"]
    pyarrow.parquet.write_table(pa.table({"caption": ["one"], "img": columns["shot"]}), folder / "a.parquet")
    assert [segment.data for segment in next(iter(read_documents(source))).segments] == [PNG, "one"]
