"""The page in a real browser, against a server that says what the test tells it to: prompts, streams, cards, tokens."""

import base64
import json
import re

import numpy as np
from PIL import Image

from tests.serving import page_driver
from tests.serving.page_actions import WORDS, answer, ask, choose, picture_url, wait_for


def test_text_streams_as_it_comes(page, fake):
    body = ask(page, fake, "What is this?")
    assert body["messages"] == [{"role": "user", "content": [{"type": "text", "text": "What is this?"}]}]
    assert (body["model"], body["stream"], body["return_token_ids"]) == ("tiny", True, True)
    assert (body["mode"], body["format"], body["stream_options"]) == ("interleaved", "chat", {"include_usage": True})
    assert 0 <= body["seed"] < 2**31 and body["partial_every"] == 64
    assert "Waiting" in page.text(".answer .meta")
    fake.say("A red ", [1000, 1001])
    page.wait("document.querySelector('.given .text')?.textContent === 'A red '")
    assert page.run("document.querySelector('.answer').dataset.state") == "running"
    # Events may be cut anywhere, in a character too, and end in either line end.
    event = 'data: {"choices": [{"delta": {"content": "h\u00e9art \U0001f98a"}}]}\r\n\r\n'.encode()
    for i in range(len(event)):
        fake.raw(event[i : i + 1])
    fake.raw(b": a comment keeps the line open\n\n")
    page.wait("document.querySelector('.given .text').textContent === 'A red h\u00e9art \U0001f98a'")
    fake.end(tokens=7)
    wait_for(page, "done")
    assert f"7 tokens · seed {body['seed']}" in page.text(".answer .meta").replace(" · 0.0 tokens/s", "")
    assert "A red h\u00e9art" in page.wait("document.querySelector('#spoken').textContent")


def test_words_of_a_model_are_never_markup(page, fake):
    said = "<img src=x onerror=\"document.title='owned'\"><b>bold</b>"
    answer(page, fake, text="<i>me</i>", said=said)
    assert page.run("document.querySelector('.given .text').textContent") == said
    assert page.run("document.querySelector('.asked .text').textContent") == "<i>me</i>"
    assert page.count(".given b, .given .text img, .asked i") == 0
    assert page.run("document.title") == "<i>me</i> · chameleon_jax"
    page.allow_clipboard()
    page.click_named("Copy the words")
    page.wait("document.querySelector('[data-said=Copied]')")
    assert page.run("navigator.clipboard.readText()") == said


def test_pictures_sharpen(page, fake):
    ask(page, fake)
    fake.say("Look: ", [1000])
    drawn = [picture_url((40 * i, 10, 10)) for i in range(1, 4)]
    seen = []
    for i, url in enumerate(drawn, 1):
        fake.draw(url, 64 * i, 192, list(range(10, 74)))
        page.wait(f"document.querySelector('.given figure img')?.src === {json.dumps(url)}")
        bar = page.run(
            "(bar => [bar.value, bar.max, bar.checkVisibility({visibilityProperty: true})])"
            "(document.querySelector('.given progress'))"
        )
        seen.append((page.text(".given figcaption .progress"), bar, page.count("figure.partial")))
    assert seen[0] == ("64 of 192 codes", [64, 192, True], 1)
    assert seen[1] == ("128 of 192 codes", [128, 192, True], 1)
    assert seen[2][0] == "" and not seen[2][1][2] and seen[2][2] == 0
    fake.say(" and again ", [1001])
    fake.draw("https://elsewhere.example/a.png", 192, 192, [11], index=1)  # only data is shown
    fake.draw(drawn[0], 192, 192, [11], index=2)
    fake.end()
    wait_for(page, "done")
    kinds = page.run("[...document.querySelector('.given .body').children].map(e => e.tagName)")
    assert kinds == ["DIV", "FIGURE", "DIV", "FIGURE", "FIGURE"]  # in the order in which they came
    assert page.run("[...document.querySelectorAll('.given figure .zoom')].map(e => e.hidden)") == [False, True, False]

    page.run(
        "document.body.addEventListener('click', e => { if (e.target.download) window.saved = e.target.download })"
    )
    page.run("HTMLAnchorElement.prototype.click = function () { window.saved = [this.download, this.href] }")
    page.click_named("Download picture 3")
    name, address = page.run("window.saved")
    assert re.fullmatch(r"chameleon-\d+-3\.png", name) and address.startswith("blob:")
    page.click_named("Use picture 3 in the prompt")
    assert page.run("document.querySelector('.card img').src") == drawn[0]


def test_stop_keeps_what_came(page, fake):
    ask(page, fake)
    fake.say("Once upon", [1000, 1001])
    page.wait("document.querySelector('.given .text')")
    page.key("Escape")
    wait_for(page, "stopped")
    assert fake.left.wait(page_driver.WAIT), "the request went on"
    assert page.text(".given .text") == "Once upon" and "stopped" in page.text(".answer .meta")
    assert page.run("document.querySelector('#run').disabled") is False
    assert page.count(".notice") == 0


def test_stop_before_anything_gives_the_prompt_back(page, fake):
    ask(page, fake, "Too soon")
    page.click("#stop")
    page.wait("document.querySelectorAll('.exchange').length === 0")
    assert page.run(f"{WORDS}.value") == "Too soon"


def test_turns_edit_and_same_again(page, fake):
    first = answer(page, fake, "One", "Eins")
    ask(page, fake, "Two")
    fake.draw(picture_url(), 64, 64, [10])
    fake.end("length")
    wait_for(page, "done")
    assert "no room for more" in page.run("[...document.querySelectorAll('.meta')].at(-1).textContent")
    third = answer(page, fake, "Three")
    roles = [message["role"] for message in third["messages"]]
    assert roles == ["user", "assistant"] * 2 + ["user"]
    assert third["messages"][1]["content"] == [{"type": "text", "text": "Eins"}]
    assert third["messages"][3]["content"] == [{"type": "image_url", "image_url": {"url": picture_url()}}]

    page.click_named("Same again")
    again = fake.request()
    assert again == third and again["seed"] != first["seed"]
    fake.say("Good day.", [1000])
    fake.end()
    wait_for(page, "done")
    page.click_named("Another")
    other = fake.request()
    assert other["seed"] != third["seed"] and other["messages"] == third["messages"]
    fake.say("Good night.", [1000])
    fake.end()
    wait_for(page, "done")
    assert "3 / 3" in page.text(".exchange:last-child .given .foot .tools:last-child")
    page.click_named("Answer before")
    assert page.text(".exchange:last-child .given .text") == "Good day."

    page.click_named("Edit prompt 2")
    assert page.count(".exchange.dimmed") == 2 and "Editing prompt 2" in page.text("#editing")
    assert page.run(f"{WORDS}.value") == "Two"
    page.type(" and a half")
    page.key("Control+Enter")
    edited = fake.request()
    assert [message["role"] for message in edited["messages"]] == ["user", "assistant", "user"]
    assert edited["messages"][2]["content"] == [{"type": "text", "text": "Two and a half"}]
    fake.say("Zweieinhalb", [1000])
    fake.end()
    wait_for(page, "done")
    assert page.count(".exchange") == 2

    page.click("#new-chat")
    assert page.count(".exchange") == 0
    page.click(".chats .open")
    page.wait("document.querySelectorAll('.exchange').length === 2")
    assert "Zweieinhalb" in page.text("#exchanges")


def test_completion_sends_its_own_words_alone_and_goes_on(page, fake):
    answer(page, fake, "One")
    choose(page, "format", "completion")
    body = answer(page, fake, "Once upon", " a time")
    assert body["format"] == "completion" and len(body["messages"]) == 1
    page.click_named("Go on")
    assert page.run(f"{WORDS}.value") == "Once upon a time"


def test_pictures_are_dropped_pasted_and_picked(page, fake, picture):
    page.run(f"{WORDS}.focus()")
    page.type("before after")
    page.drop("#conversation", picture)
    page.wait("document.querySelectorAll('.card img').length === 1")
    assert page.run("document.querySelector('.card img').alt") == "red heart"
    page.click("#cards textarea")
    page.run(f"{WORDS}.setSelectionRange(6, 6)")
    page.allow_clipboard()
    page.run(
        "(async () => { const canvas = new OffscreenCanvas(8, 8); canvas.getContext('2d').fillRect(0, 0, 8, 8);"
        " const blob = await canvas.convertToBlob();"
        " await navigator.clipboard.write([new ClipboardItem({'image/png': blob})]); })()"
    )
    page.key("Control+v", commands=["paste"])
    page.wait("document.querySelectorAll('.card img').length === 2")
    kinds = page.run(
        "[...document.querySelectorAll('.card')].map(c => c.querySelector('textarea')?.value ?? 'picture')"
    )
    assert kinds == ["before", "picture", " after", "picture"]  # pasted where the caret was
    node = page.send("DOM.getDocument")["root"]["nodeId"]
    field = page.send("DOM.querySelector", nodeId=node, selector="#file")["nodeId"]
    page.send("DOM.setFileInputFiles", nodeId=field, files=[str(picture)])
    page.wait("document.querySelectorAll('.card img').length === 3")
    page.key("Control+Enter")
    content = fake.request()["messages"][0]["content"]
    assert [part["type"] for part in content] == ["text", "image_url", "text", "image_url", "image_url"]
    file = base64.b64encode(picture.read_bytes()).decode()
    assert content[4] == {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{file}"}}
    fake.end()


def test_what_is_no_picture_is_named_and_large_ones_shrink(page, tmp_path):
    (tmp_path / "notes.txt").write_text("words")
    large = np.random.default_rng(0).integers(0, 256, (1500, 3000, 3), np.uint8)
    Image.fromarray(large).save(tmp_path / "large.png")
    page.drop("#composer", tmp_path / "notes.txt", tmp_path / "large.png")
    size = page.wait("(i => i?.naturalWidth && [i.naturalWidth, i.naturalHeight])(document.querySelector('.card img'))")
    assert size == [2048, 1024]
    assert page.run("document.querySelector('.card img').src.length") < 20_000_000 / 8  # 8 fill what a server takes
    assert "notes.txt is not a picture" in page.text("#notices")


def test_cards_move_by_keyboard_and_pointer(page, fake, picture):
    def order():
        return page.run(
            "[...document.querySelectorAll('.card')].map(c => c.querySelector('textarea')?.value ?? 'picture')"
        )

    page.run(f"{WORDS}.focus()")
    page.type("a")
    page.click("#add-text")
    page.type("b")
    page.drop("#conversation", picture)
    page.wait("document.querySelectorAll('.card').length === 3")
    assert order() == ["a", "b", "picture"]
    page.run(f"{WORDS}.focus()")
    page.key("Alt+ArrowDown")
    assert order() == ["b", "a", "picture"]
    assert page.run("document.activeElement.value") == "a"
    assert page.run("document.activeElement.ariaLabel") == "Text, part 2 of 3"
    page.key("Alt+ArrowDown")
    page.key("Alt+ArrowDown")  # at the end it stays
    assert order() == ["b", "picture", "a"]

    x, y = page.middle(".card:nth-child(3) .grip")
    page.mouse("mousePressed", x, y)
    for step in range(12):
        page.mouse("mouseMoved", x, y - 12 * step)
    top = page.run("(b => b.y + 6)(document.querySelector('.card').getBoundingClientRect())")
    page.mouse("mouseMoved", x, top)
    page.mouse("mouseReleased", x, top, buttons=0)
    assert order() == ["a", "b", "picture"]

    page.click_named("Remove: Text, part 1 of 3")
    assert order() == ["b", "picture"] and page.run("document.activeElement.value") == "b"
    page.wait("/Moved to position/.test(document.querySelector('#spoken').textContent)")


def test_token_view_counts_kinds_and_keeps_few_elements(page, fake):
    ask(page, fake)
    fake.begin([1, 1500, 1501, 4])
    fake.say("Look", [1000, 1001, 1002])
    page.wait("document.querySelector('.given .text')")
    page.click_named("Tokens")
    page.wait("document.querySelectorAll('.token').length === 3")
    fake.draw(picture_url(), 4096, 4096, [2] + [10 + i % 700 for i in range(4096)] + [3])
    fake.end()
    wait_for(page, "done")
    page.wait("document.querySelector('.counts').textContent.startsWith('4,101')")
    counts = page.run(
        "[...document.querySelectorAll('.counts [data-count]')].map(e => [e.className, +e.dataset.count])"
    )
    assert counts == [["legend text", 3], ["legend image", 4096], ["legend marker", 2]]
    assert sum(fake.token_requests) == 3 + 702  # no id is asked for twice
    assert 20 < page.count(".token") < 400
    assert page.run("[...document.querySelectorAll('.token')].slice(0, 4).map(e => e.className)") == [
        "token text",
        "token text",
        "token text",
        "token marker",
    ]
    page.run("document.querySelector('.scroller').focus()")
    page.key("End")
    page.wait("document.querySelector('.detail').textContent.startsWith('4101 of 4101: id 3, marker')")
    last = page.run("document.querySelector('.scroller').getAttribute('aria-activedescendant')")
    assert page.run(f"document.getElementById('{last}').getAttribute('aria-posinset')") == "4101"
    assert page.count(".token") < 400
    page.click_named("Show the prompt's")
    page.wait("document.querySelector('.counts').textContent === '4 tokens: 2 words0 picture codes2 markers'")
    assert (
        page.count(".token") == 4
        and page.run("document.querySelector('.scroller').ariaLabel") == "Tokens of the prompt"
    )
