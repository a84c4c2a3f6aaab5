"""What `inspect --show` shows is what lies in a store, in raw data and behind a tokenizer, rejects included."""

import html.parser
import io
import json

import numpy as np
import pytest
from PIL import Image

from chameleon_jax import cli
from chameleon_jax.configs import PretrainConfig, SourceConfig, TokenizeConfig
from chameleon_jax.data.pipeline import tokenize
from chameleon_jax.data.store import TokenStore
from chameleon_jax.evaluation import record_page, records
from chameleon_jax.tokenizers.bundle import TokenizerBundle
from experiments import inspect
from tests.tiny_run import make_run

RECORDS = [
    {"id": "heart", "text": "a red <b>heart</b>", "image": "red.png"},
    {"id": "words", "text": "some words"},
    {"id": "torn", "text": "a torn one", "image": "torn.png"},
    {"id": "lost", "text": "a lost one", "image": "lost.png"},
    {"id": "talk", "conversations": [{"from": "human", "value": "some"}, {"from": "gpt", "value": "words"}]},
]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders of raw data, of a tokenizer, and of the token store made of both."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "data").mkdir()
    Image.new("RGB", (40, 30), "red").save(folder / "data" / "red.png")
    (folder / "data" / "torn.png").write_bytes((folder / "data" / "red.png").read_bytes()[:60])
    lines = [json.dumps(record) for record in RECORDS] + ["{"]
    (folder / "data" / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    make_run().bundle.save(folder / "tokenizer")
    source = SourceConfig(name="data", kind="folder", path=str(folder / "data"))
    config = TokenizeConfig(sources=(source,), tokenizer=str(folder / "tokenizer"), max_reject_fraction=0.9)
    tokenize(config, folder / "store")
    return folder


@pytest.fixture
def inspected(made, tmp_path, capsys):
    """inspected(path, *flags, code=0) -> (what the command printed, its page or None)."""

    def call(path, *flags, code=0):
        page = tmp_path / "page.html"
        argv = [str(path), f"--out={page}", *flags]
        options = {"workdir": False, "positional": "path", "config_is_optional": True}
        with pytest.raises(SystemExit) as stop:
            cli.run(inspect.main, PretrainConfig, "", add_flags=inspect._flags, argv=argv, **options)
        assert stop.value.code == code
        printed = capsys.readouterr()
        return (printed.err if code else printed.out), page.read_text() if page.exists() else None

    return call


class Elements(html.parser.HTMLParser):
    """Words and attributes of a page as a browser reads them."""

    def __init__(self, page):
        super().__init__()
        self.text, self.sources = "", []
        self.feed(page)

    def handle_data(self, data):
        self.text += data

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href")]


def test_a_stores_documents_are_shown_with_their_ids_roles_and_rejects(inspected, made):
    printed, page = inspected(made / "store", "--show=8")
    assert "3 of 3 documents" in printed and "a red <b>heart</b>" in printed
    assert "(not learned): [bos]some[eot]" in printed and "words[eot][eos]" in printed
    assert "3 of 6 records rejected" in printed and "lost.png" in printed and "is not valid JSON" in printed
    elements = Elements(page)
    assert "a red <b>heart</b>" in elements.text
    (picture,) = elements.sources
    assert picture.startswith("data:image/png;base64,")
    (words,) = TokenStore.open(made / "store").read([1])  # which has no picture: all its ids stand together
    assert " ".join(map(str, words.tolist())) in elements.text


def test_the_picture_of_a_store_is_what_its_codes_decode_to(made):
    shown = records.of_store(made / "store", 1)
    bundle, store = TokenizerBundle.load(made / "tokenizer"), TokenStore.open(made / "store")
    (part,) = (part for part in shown.sections[0].cards[0].parts if part.label == "image")
    image = bundle.vocab.modalities[bundle.vocab.row("image")]
    (ids,) = store.read([0])
    codes = image.codes(ids[image.holds(ids)])
    assert part.values == tuple(codes.tolist()) and part.learned
    codec = bundle.codecs["image"]
    expected = Image.open(io.BytesIO(codec.to_file(codec.decode(codes[None])[0])))
    assert np.array_equal(Image.open(io.BytesIO(part.file)), expected)


def test_raw_records_are_read_as_tokenising_reads_them(inspected, made):
    for path in (made / "data", made / "data" / "manifest.jsonl"):
        printed, page = inspected(path)
        assert "all 6 records looked at" in printed and "3 of 6 records rejected" in printed
        assert "red.png, 40x30 pixels" in printed and "some words" in printed
        assert "torn: PNG image cannot be decoded" in printed.replace("torn\n     ", "torn:")
        assert len(Elements(page).sources) == 1


def test_a_tokenizer_shows_originals_beside_reconstructions(inspected, made):
    printed, page = inspected(made / "tokenizer", "--show=2", f"--data={made / 'data'}")
    assert "red.png as the codec sees it" in printed and "after 16 codes" in printed and " dB" in printed
    assert "10 characters in " in printed
    assert len(Elements(page).sources) == 2
    told, _ = inspected(made / "tokenizer", "--show=2", code=2)
    assert "holds no pictures: say which to show with --data=FILE_OR_FOLDER" in told


def test_a_long_text_is_cut_in_the_terminal_alone():
    part = record_page.Part(label="text", text="word " * 200)
    section = record_page.Section(title="one", cards=(record_page.Card(title="a", parts=(part,)),))
    lines = list(record_page.lines([section]))
    assert max(map(len, lines)) <= 112 and "and 600 more characters" in " ".join(map(str.strip, lines))
    assert record_page._section(section).count("word ") == 200


def test_paths_that_hold_nothing_to_show_are_told_in_one_line(inspected, made, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("nothing")
    (tmp_path / "blank.jsonl").write_text("")
    for path, flags, told in (
        (tmp_path / "missing", [], "missing: there is no such file or folder"),
        (tmp_path / "empty", [], "empty is an empty folder"),
        (tmp_path / "other", [], "no data that can be read"),
        (tmp_path / "other" / "notes.txt", [], "is no file of records: give .jsonl"),
        (tmp_path / "blank.jsonl", [], "holds only empty files"),
        (made / "store", ["--show=0"], "--show"),
        (made / "store", ["--show=2", "--data=x"], "is a token store"),
        (made / "store", ["--show=2", f"--out={tmp_path}/none/x.html"], "x.html cannot be written"),
        (made / "data", ["--verify"], "--verify and --mesh are for tables"),
    ):
        printed, _ = inspected(path, *flags, code=2)
        assert printed.startswith("error: ") and told in printed and printed.count("\n") == 1, printed


def test_no_word_of_the_data_commands_a_terminal():
    part = record_page.Part(label="te\x1b[2Jxt", note="\x9b", text="a\nb\x1b]0;x\x07")
    cards = (
        record_page.Card(title="a\x1b[2J", note="b\nc", parts=(part,)),
        record_page.Card(title="d", fault="\x1b[2J"),
    )
    said = list(record_page.lines([record_page.Section(title="e\x1b[2J", lead="f\x07", cards=cards)]))
    assert all(line.isprintable() for line in said)
    assert any("a⏎b·]0;x·" in line for line in said)
