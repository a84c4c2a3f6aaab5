"""The page in a real browser: a model's own modalities, sounds and numbers, in prompts and in answers."""

import base64

import pytest

from tests.serving.page_actions import WORDS, answer, ask, choose, picture_url, wait_for, wav_file, wav_url

MODALITIES = [
    {"name": "words", "media": "text", "ids": 300, "span": "free", "length": 0, "reads": True, "writes": True},
    {"name": "moves", "media": "codes", "ids": 5, "span": "free", "length": 0, "reads": True, "writes": True},
    {"name": "beeps", "media": "codes", "ids": 10, "span": "fixed", "length": 3, "reads": True, "writes": True},
    {"name": "drawings", "media": "image", "ids": 16, "span": "fixed", "length": 64, "reads": True, "writes": False},
    {"name": "audio", "media": "audio", "ids": 8, "span": "fixed", "length": 8, "reads": True, "writes": True},
]
MODES = ["words", "moves", "beeps", "audio"]


@pytest.fixture
def other(open_page, fake):
    """The page of a model that has no modality called text or image."""
    fake.model = {"id": "other", "defaults": {"mode": "words"}, "chameleon": {"modalities": MODALITIES, "modes": MODES}}
    return open_page()


@pytest.fixture
def sound(tmp_path):
    path = tmp_path / "morning call.wav"
    path.write_bytes(wav_file())
    return path


def test_modes_are_those_of_the_model_in_words(other, fake):
    page = other
    page.wait("document.querySelector('#mode').value === 'words'")
    shown = page.run("[...document.querySelector('#mode').options].map(o => [o.value, o.textContent])")
    assert shown == [["words", "Words"], ["moves", "Moves"], ["beeps", "Beeps"], ["audio", "Sounds"]]
    assert page.count("[name=image_top_k]") == 1
    assert page.run("document.querySelector('[name=image_top_k]').closest('[hidden]') !== null")
    choose(page, "mode", "moves")
    assert page.run("document.querySelector('#mode').title") == "Answer with moves only"
    assert answer(page, fake)["mode"] == "moves"


def test_sounds_and_numbers_of_an_answer_are_shown_played_and_used(other, fake):
    page = other
    choose(page, "mode", "audio")
    ask(page, fake, "Sing")
    call = {"type": "audio_url", "modality": "audio", "audio_url": {"url": wav_url()}}
    fake.give(call, 4, 8, [8000, 8001])
    page.wait("document.querySelector('.given .progress')?.textContent === '4 of 8 codes'")
    assert page.run("document.querySelector('.given audio').hidden")  # until it is whole
    fake.give(call, 8, 8, [8002])
    page.wait("document.querySelector('.given audio')?.readyState >= 1")
    assert 0.15 < page.run("document.querySelector('.given audio').duration") < 0.25
    assert page.run("document.querySelector('.given audio').controls")
    # A run without markers comes in pieces; numbers between markers are looked at while they come.
    fake.give({"type": "codes", "modality": "moves", "codes": [1, 2]}, 2, 2, [9001, 9002])
    fake.give({"type": "codes", "modality": "moves", "codes": [3]}, 3, 3, [9003])
    fake.give({"type": "codes", "modality": "beeps", "codes": [7, 8]}, 2, 3, [9007, 9008])
    page.wait("/2 of 3 codes/.test(document.querySelector('.given').textContent)")
    fake.give({"type": "codes", "modality": "beeps", "codes": [7, 8, 9]}, 3, 3, [9009])
    # Only data is played.
    fake.give(call | {"audio_url": {"url": "https://elsewhere.example/a.wav"}}, 8, 8, [8003], index=1)
    fake.end()
    wait_for(page, "done")
    assert page.run("[...document.querySelectorAll('.given .numbers')].map(e => e.textContent)") == ["1 2 3", "7 8 9"]
    assert "monospace" in page.run("getComputedStyle(document.querySelector('.given .numbers')).fontFamily")
    assert page.run("[...document.querySelectorAll('.given audio')].map(e => [e.hidden, e.src.slice(0, 14)])") == [
        [False, "data:audio/wav"],
        [True, ""],
    ]
    page.run("HTMLAnchorElement.prototype.click = function () { window.saved = this.download }")
    page.run("document.querySelector('.given figure.audio [aria-label^=Download]').click()")
    assert page.run("window.saved").endswith("-1.wav")
    page.click_named("Tokens")
    page.wait("document.querySelectorAll('.token').length === 10")
    counts = page.run("[...document.querySelectorAll('.counts [data-count]')].map(e => [e.textContent])")
    assert counts == [["0 words"], ["0 picture codes"], ["0 markers"], ["4 sound codes"], ["6 other codes"]]
    assert (
        page.run("new Set([...document.querySelectorAll('.token')].map(e => getComputedStyle(e).backgroundColor)).size")
        == 2
    )

    for figure in ("figure.audio", "figure.codes"):
        page.run(f"document.querySelector('.given {figure} [aria-label^=Use]').click()")
    page.run(f"{WORDS}.focus()")
    page.type("and again")
    page.key("Control+Enter")
    sent = fake.request()["messages"]
    used = [part for part in sent[2]["content"] if part["type"] != "text"]
    assert used == [call, {"type": "codes", "modality": "moves", "codes": [1, 2, 3]}]
    assert sent[1]["content"] == [
        call,
        {"type": "codes", "modality": "moves", "codes": [1, 2, 3]},
        {"type": "codes", "modality": "beeps", "codes": [7, 8, 9]},
    ]
    fake.end()


def test_sounds_are_dropped_picked_and_pasted(other, fake, sound):
    page = other
    page.drop("#conversation", sound)
    page.wait("document.querySelectorAll('.card audio').length === 1")
    assert "morning call" in page.text(".card[data-kind=audio]")
    node = page.send("DOM.getDocument")["root"]["nodeId"]
    field = page.send("DOM.querySelector", nodeId=node, selector="#sound-file")["nodeId"]
    page.send("DOM.setFileInputFiles", nodeId=field, files=[str(sound)])
    page.wait("document.querySelectorAll('.card audio').length === 2")
    page.run(
        "document.dispatchEvent(Object.assign(new ClipboardEvent('paste', {bubbles: true, clipboardData: (() => {"
        f" const data = new DataTransfer(); const bytes = Uint8Array.from(atob('{base64.b64encode(wav_file()).decode()}'),"
        " c => c.charCodeAt(0)); data.items.add(new File([bytes], 'pasted.wav', {type: 'audio/x-wav'})); return data; })()})))"
    )
    page.wait("document.querySelectorAll('.card audio').length === 3")
    page.key("Control+Enter")
    content = fake.request()["messages"][0]["content"]
    assert content == [{"type": "audio_url", "audio_url": {"url": wav_url()}}] * 3
    fake.end()
    page.wait("document.querySelectorAll('.asked audio').length === 3")


def test_what_is_no_wav_file_and_sounds_for_a_deaf_model_are_named(other, open_page, fake, tmp_path, sound):
    (tmp_path / "song.mp3").write_bytes(b"ID3" + bytes(100))
    other.drop("#composer", tmp_path / "song.mp3")
    other.wait("/song.mp3 is not a WAV file/.test(document.querySelector('#notices').textContent)")
    fake.model = {"id": "tiny"}
    deaf = open_page()
    assert deaf.run("document.querySelector('#add-sound').hidden")
    deaf.drop("#composer", sound)
    deaf.wait("/reads no sounds/.test(document.querySelector('#notices').textContent)")


def test_numbers_are_written_and_checked(other, fake):
    page = other
    assert page.run("[...document.querySelectorAll('.add-codes')].map(b => b.textContent)") == ["+ moves", "+ beeps"]
    page.click_named("+ beeps")
    assert page.run("document.activeElement.placeholder") == "3 numbers from 0 to 9, with commas"
    for text, told in (
        ("1, x, 2", "whole numbers from 0 to 9"),
        ("1, 2, 10", "from 0 to 9"),
        ("1 2", "2 numbers, there must be 3"),
    ):
        page.run("document.activeElement.select()")
        page.type(text)
        page.key("Control+Enter")
        page.wait(f"document.querySelector('#notices').textContent.includes('{told}')")
        assert page.run("document.activeElement.getAttribute('aria-invalid')") == "true"
    assert fake.asked.empty()
    page.run("document.activeElement.select()")
    page.type("1, 2 9")
    page.key("Control+Enter")
    assert fake.request()["messages"][0]["content"] == [{"type": "codes", "modality": "beeps", "codes": [1, 2, 9]}]
    fake.end()
    page.wait("document.querySelector('.asked .numbers')?.textContent === '1 2 9'")


def test_cards_of_all_kinds_move_are_removed_and_can_be_read(other, fake, sound):
    page = other
    page.run(f"{WORDS}.focus()")
    page.type("a")
    page.drop("#conversation", sound)
    page.wait("document.querySelectorAll('.card audio').length === 1")
    page.click_named("+ moves")
    page.type("0 1")
    kinds = "[...document.querySelectorAll('.card')].map(c => c.dataset.kind)"
    assert page.run(kinds) == ["text", "audio", "codes"]
    page.key("Alt+ArrowUp")
    assert page.run(kinds) == ["text", "codes", "audio"]
    page.click_named("Remove: Text, part 1 of 3")
    page.click_named("Remove: Numbers, part 1 of 2")
    assert page.run(kinds) == ["audio"] and page.run("document.activeElement.ariaLabel") == "Sound, part 1 of 1"


def test_phone_width_with_all_kinds(open_page, fake, sound):
    fake.model = {"id": "other", "chameleon": {"modalities": MODALITIES, "modes": MODES}}
    page = open_page(width=360, height=760)
    page.drop("#composer", sound)
    page.wait("document.querySelectorAll('.card audio').length === 1")
    page.click_named("+ moves")
    page.type("0 1 2")
    ask(page, fake, "")
    fake.give({"type": "codes", "modality": "moves", "codes": [1] * 200}, 200, 200, [9001])
    fake.give({"type": "audio_url", "modality": "audio", "audio_url": {"url": wav_url()}}, 8, 8, [8000])
    fake.draw(picture_url(), 64, 64, [10])
    fake.end()
    wait_for(page, "done")
    page.run("document.querySelectorAll('details').forEach(fold => fold.open = true)")
    assert page.run("document.documentElement.scrollWidth - innerWidth") == 0
