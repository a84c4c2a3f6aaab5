"""Text survives the tokenizer unchanged and can never become a special id."""

import json

import numpy as np
import pytest
import tokenizers
from tokenizers import AddedToken

from chameleon_jax.configs import text_and_image
from chameleon_jax.errors import TokenizerError
from chameleon_jax.tokenizers.text import TextTokenizer, train_bpe
from chameleon_jax.vocab import Vocab

SIZES = text_and_image(image_codes=64, reserved=8, text_tokens=400, codes_per_image=16)
CORPUS = [
    "the quick brown fox jumps over the lazy dog, and the dog sleeps",
    "a picture of a grinning face with big eyes",
    "<s> </s> <racm3:break> IMGIMGAZ IMGIMGBZ IMGIMGFDZ <eoss> <reserved00070>",
] * 20


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(CORPUS, SIZES)


def is_text(ids, tokenizer):
    text = Vocab.from_config(tokenizer.vocab_config).text
    return bool(np.all((ids >= text.start) & (ids < text.stop)))


TEXTS = {
    "plain": "the quick brown fox",
    "empty": "",
    "spaces": "  two, then   three \t tab\n\nlines\r\n end ",
    "digits": "1234567890 3.14 ½ ٣",
    "NUL": "a\0b\0",
    "controls": "".join(map(chr, range(32))) + "\x7f\x85\u2028",
    "RTL": "שלום עולם مرحبا \u202eabc\u202c",
    "ZWJ emoji": "👩\u200d👩\u200d👧 👍\U0001f3fd 🏳\ufe0f\u200d🌈",
    "astral": "\U0001d54f \U00010348 \U0010ffff",
    "combining, not normalised": "e\u0301 é ﬁ Å",
    "BOM inside": "\ufeffabc",
    "replacement character": "\ufffd",
    "Chinese": "早上好世界",
    "piece alphabet": "ĠĊ Ġthe",
}


@pytest.mark.parametrize("case", TEXTS)
def test_text_comes_back_unchanged(tokenizer, case):
    ids = tokenizer.encode(TEXTS[case])
    assert ids.dtype == np.int32 and is_text(ids, tokenizer)
    assert tokenizer.decode(ids) == TEXTS[case]


def test_any_text_comes_back_unchanged(tokenizer):
    rng = np.random.default_rng(0)
    for _ in range(300):
        points = rng.choice([128, 0x800, 0xD800, 0x110000], 20) * rng.random(20)
        text = "".join(chr(int(p)) for p in points if not 0xD800 <= p < 0xE000)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_a_million_characters_come_back_unchanged(tokenizer):
    for unit in ("a", "the quick brown fox "):
        text = unit * (1_000_000 // len(unit))
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [("\ud83d", "\ufffd"), ("a\udc00b", "a\ufffdb"), ("\udc00\ud83d", "\ufffd\ufffd"), ("\ud83d\ude00", "😀")],
)
def test_lone_surrogates_become_the_replacement_character(tokenizer, text, expected):
    assert tokenizer.decode(tokenizer.encode(text)) == expected
    assert is_text(train_bpe([text], SIZES).encode(text), tokenizer)


def test_no_special_name_is_reachable_from_text(tokenizer):
    names = Vocab.from_config(SIZES).special_names()
    for name in [*names, "<image>", "<reserved08706>", "<END-OF-TURN>", "<|endoftext|>", "<sentinel:0>"]:
        for text in (name, f"see {name} here", name * 3, name.upper(), "\u200b" + name):
            ids = tokenizer.encode(text)
            assert is_text(ids, tokenizer), text
            assert tokenizer.decode(ids) == text


def test_a_special_name_split_over_segments_stays_text(tokenizer):
    for name in ("<racm3:break>", "IMGIMGAZ", "</s>", "<reserved00071>"):
        for cut in range(1, len(name)):
            ids = np.concatenate([tokenizer.encode(name[:cut]), tokenizer.encode(name[cut:])])
            assert is_text(ids, tokenizer)
            assert tokenizer.decode(ids) == name


def test_a_corpus_of_special_names_trains_no_piece_of_that_name():
    tokenizer = train_bpe(["IMGIMGAZ IMGIMGBZ <s></s>"] * 500, SIZES)
    vocab = Vocab.from_config(tokenizer.vocab_config)
    pieces = [tokenizer.decode([i]) for i in range(vocab.text.start, vocab.size)]
    assert not set(vocab.special_names()) & set(pieces)
    assert is_text(tokenizer.encode("IMGIMGAZ<s>"), tokenizer)


def test_layout_is_chameleons(tokenizer):
    vocab = json.loads(tokenizer.to_json())["model"]["vocab"]
    names = Vocab.from_config(tokenizer.vocab_config).special_names()
    assert [vocab[name] for name in names] == list(range(len(names)))
    assert sorted(vocab.values()) == list(range(4 + 64 + 2 + 8 + tokenizer.vocab_config.text.ids))


def test_digits_and_punctuation_stand_alone(tokenizer):
    assert len(tokenizer.encode("2024")) == 4
    assert len(tokenizer.encode("...")) == 3


def test_fewer_pieces_than_asked_lower_the_vocabulary():
    tokenizer = train_bpe(["ab"], SIZES)
    assert tokenizer.vocab_config == text_and_image(image_codes=64, reserved=8, text_tokens=257, codes_per_image=16)
    bytes_only = train_bpe([], SIZES)
    assert bytes_only.vocab_config.text.ids == 256
    assert bytes_only.decode(bytes_only.encode("héllo")) == "héllo"


def test_training_is_reproducible(tokenizer):
    assert train_bpe(iter(CORPUS), SIZES).to_json() == tokenizer.to_json()


def test_saved_and_loaded_tokenizers_are_equal(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = TextTokenizer.load(tmp_path / "tokenizer.json", SIZES)
    assert loaded.vocab_config == tokenizer.vocab_config
    assert loaded.to_json() == tokenizer.to_json()
    plain = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert plain.encode("the <s> fox").ids == tokenizer.encode("the <s> fox").tolist()


def test_special_ids_decode_to_nothing_and_foreign_ids_are_refused(tokenizer):
    vocab = Vocab.from_config(tokenizer.vocab_config)
    image = vocab.modalities[1]
    ids = [vocab.bos, *tokenizer.encode("fox"), image.begin_marker, image.start, image.end_marker, vocab.eos]
    assert tokenizer.decode(ids) == "fox"
    for bad in (-1, vocab.size):
        with pytest.raises(TokenizerError, match="leave the vocabulary"):
            tokenizer.decode([bad])


def test_a_character_cut_between_ids_is_marked(tokenizer):
    assert tokenizer.decode(tokenizer.encode("é")[:1]) == "\ufffd"


@pytest.fixture(scope="module")
def released_layout(tokenizer):
    """A file as Chameleon's release has it: added tokens for the specials, `<image>`, and a merge into a special name."""
    content = json.loads(tokenizer.to_json())
    content["model"]["vocab"]["<image>"] = content["model"]["vocab"].pop("<reserved00073>")
    content["model"]["vocab"]["IMGAZ"] = len(content["model"]["vocab"])
    content["model"]["merges"] = [" ".join(m) for m in content["model"]["merges"]] + ["IMG AZ", "IMG IMGAZ"]
    content["model"]["ignore_merges"] = True
    vocab = content["model"]["vocab"]
    content["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    backend = tokenizers.Tokenizer.from_str(json.dumps(content | {"model": content["model"] | {"merges": []}}))
    backend.add_special_tokens(
        [AddedToken(name, special=True) for name in ("<s>", "</s>", "<racm3:break>", "IMGIMGAZ", "<image>")]
    )
    content["added_tokens"] = json.loads(backend.to_str())["added_tokens"]
    assert backend.encode("<racm3:break>").ids == [vocab["<racm3:break>"]]  # the injection is real before loading
    return content


def test_a_file_in_the_released_layout_loads_without_its_added_tokens(tokenizer, released_layout, tmp_path):
    (tmp_path / "text_tokenizer.json").write_text(json.dumps(released_layout))
    loaded = TextTokenizer.load(tmp_path / "text_tokenizer.json", SIZES)
    pieces = loaded.vocab_config.text.ids
    assert loaded.vocab_config.diff(tokenizer.vocab_config) == {"modalities.0.ids": (pieces, pieces - 1)}
    for name in ("<s>", "</s>", "<racm3:break>", "IMGIMGAZ", "<image>", "x<s>y"):
        ids = loaded.encode(name)
        assert is_text(ids, loaded)
        assert loaded.decode(ids) == name


def test_the_released_sizes_are_derived_from_names(tmp_path, tokenizer):
    config = text_and_image(text_tokens=256)
    content = json.loads(tokenizer.to_json())
    bytes_alone = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    names = Vocab.from_config(config).special_names() + bytes_alone
    content["model"] |= {"vocab": {name: i for i, name in enumerate(names)}, "merges": []}
    (tmp_path / "t.json").write_text(json.dumps(content))
    loaded = TextTokenizer.load(tmp_path / "t.json")
    assert loaded.vocab_config == config
    vocab = Vocab.from_config(loaded.vocab_config)
    assert (names[vocab.end_of_turn], vocab.end_of_turn) == ("<reserved08706>", 8710)


def change_vocab(change):
    def make(content):
        change(content["model"]["vocab"])
        return json.dumps(content)

    return make


DAMAGED = {
    "not JSON": (lambda content: "{", "not valid JSON"),
    "a list": (lambda content: "[]", "no model.vocab"),
    "no merges": (lambda content: json.dumps({"model": {"vocab": {}}}), "no model.vocab and model.merges"),
    "unigram": (
        lambda content: json.dumps({"model": {"vocab": [["a", 0.5]], "merges": []}}),
        "not a map from names to ids",
    ),
    "no image codes": (change_vocab(lambda v: v.pop("IMGIMGAZ")), "'<eoss>' should have id 4"),
    "no begin of image": (
        change_vocab(lambda v: v.pop("<racm3:break>")),
        "'<racm3:break>' should have id 69, found None",
    ),
    "roles swapped": (change_vocab(lambda v: v.update({"<s>": 2, "</s>": 0})), "'<s>' should have id 0, found 2"),
    "two names, one id": (change_vocab(lambda v: v.update({"extra": 300})), "share"),
    "a byte is missing": (change_vocab(lambda v: v.pop("A")), "lack 1 of 256 bytes"),
    "text id": (change_vocab(lambda v: v.update({"A": "7"})), "not a map from names to ids"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_refused_with_the_reason(case, tokenizer, tmp_path):
    make, reason = DAMAGED[case]
    path = tmp_path / "tokenizer.json"
    path.write_text(make(json.loads(tokenizer.to_json())))
    with pytest.raises(TokenizerError, match=reason) as caught:
        TextTokenizer.load(path)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(TokenizerError, match=r"nowhere\.json cannot be read"):
        TextTokenizer.load(tmp_path / "nowhere.json")
