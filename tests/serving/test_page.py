"""The page in a real browser, against a server that says what the test tells it to, and against the real one."""

import base64
import io
import json
import re
import time

import numpy as np
import pytest
from PIL import Image

from tests.serving import page_driver

PROGRAM = page_driver.find_browser()
WORDS = "document.querySelector('#cards textarea')"


def picture_url(colour=(200, 30, 30), side=16) -> str:
    content = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(content, "PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if PROGRAM is None:
        pytest.skip("no Chromium: `apt-get install chromium` brings one")
    browser = page_driver.Browser(PROGRAM, tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


@pytest.fixture
def fake():
    fake = page_driver.FakeServer()
    yield fake
    fake.close()


@pytest.fixture
def open_page(browser, fake):
    """open_page(width, height, features, url) -> the page, ready; every page must end without an error on its console."""
    pages = []

    def open(width=1200, height=850, features=None, is_ready=True, url=None):
        page = browser.open(url or fake.url, width, height, features)
        pages.append(page)
        if is_ready:
            page.wait("document.querySelector('#model').options.length")
        return page

    yield open
    for page in pages:
        assert page.events("Runtime.exceptionThrown") == []
        page.close()


@pytest.fixture
def page(open_page):
    return open_page()


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "red heart.png"
    Image.new("RGB", (32, 24), (220, 20, 40)).save(path)
    return path


def ask(page, fake, text="Hello"):
    """Type and run; what the server was asked."""
    page.run(f"{WORDS}.focus()")
    page.type(text)
    page.key("Control+Enter")
    return fake.request()


def wait_for(page, state):
    page.wait(f"[...document.querySelectorAll('.answer')].at(-1)?.dataset.state === '{state}'")


def answer(page, fake, text="Hello", said="Good day."):
    body = ask(page, fake, text)
    fake.say(said, [1000, 1001])
    fake.end()
    wait_for(page, "done")
    return body


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
    assert page.run("document.title") == "chameleon_jax"
    page.allow_clipboard()
    page.click_named("Copy the words")
    page.wait("document.querySelector('.answer .tools').textContent.startsWith('Copied')")
    assert page.run("navigator.clipboard.readText()") == said


def test_pictures_sharpen(page, fake):
    ask(page, fake)
    fake.say("Look: ", [1000])
    drawn = [picture_url((40 * i, 10, 10)) for i in range(1, 4)]
    seen = []
    for i, url in enumerate(drawn, 1):
        fake.draw(url, 64 * i, 192, list(range(10, 74)))
        page.wait(f"document.querySelector('.given figure img')?.src === {json.dumps(url)}")
        bar = page.run("(({max, value, hidden}) => [value, max, hidden])(document.querySelector('.given progress'))")
        seen.append((page.text(".given figcaption .progress"), bar, page.count("figure.partial")))
    assert seen[0] == ("64 of 192 codes", [64, 192, False], 1)
    assert seen[1] == ("128 of 192 codes", [128, 192, False], 1)
    assert seen[2][0] == "" and seen[2][1][2] and seen[2][2] == 0
    fake.say(" and again ", [1001])
    fake.draw("https://elsewhere.example/a.png", 192, 192, [11], index=1)  # only data is shown
    fake.draw(drawn[0], 192, 192, [11], index=2)
    fake.end()
    wait_for(page, "done")
    kinds = page.run("[...document.querySelector('.given .body').children].map(e => e.tagName)")
    assert kinds == ["DIV", "FIGURE", "DIV", "FIGURE", "FIGURE"]  # in the order in which they came
    assert page.run("[...document.querySelectorAll('.given figure img')].map(e => e.hidden)") == [False, True, False]

    page.run(
        "document.body.addEventListener('click', e => { if (e.target.download) window.saved = e.target.download })"
    )
    page.run("HTMLAnchorElement.prototype.click = function () { window.saved = [this.download, this.href] }")
    page.click_named("Download")
    name, address = page.run("window.saved")
    assert re.fullmatch(r"chameleon-\d+-3\.png", name) and address.startswith("blob:")
    page.click_named("Use in prompt")
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
    assert "3 / 3" in page.text(".exchange:last-child .foot .tools:last-child")
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

    page.click_named("New chat")
    assert page.count(".exchange") == 0
    page.click_named("Undo")
    assert page.count(".exchange") == 2 and "Zweieinhalb" in page.text("#exchanges")


def test_completion_sends_its_own_words_alone_and_goes_on(page, fake):
    answer(page, fake, "One")
    page.click("[value=completion]")
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


@pytest.mark.parametrize(
    ("status", "headers", "error", "shown"),
    [
        (400, {}, {"message": "temperature: must be at most 100", "param": "temperature"}, "at most 100"),
        (429, {"Retry-After": "3"}, {"message": "32 requests wait", "param": None}, "Try again in 3 seconds"),
        (503, {}, {"message": "the server is shutting down", "param": None}, "shutting down"),
    ],
)
def test_refusals_are_shown_and_nothing_is_lost(page, fake, status, headers, error, shown):
    fake.refusal = (status, error, headers)
    ask(page, fake, "Mine")
    page.wait("document.querySelector('.notice')")
    assert shown in page.text("#notices")
    page.wait(f"{WORDS}.value === 'Mine'")
    assert page.count(".exchange") == 0
    if error["param"]:
        assert page.run("document.querySelector('[name=temperature]').getAttribute('aria-invalid')") == "true"
        assert page.run("document.activeElement.name") == "temperature"
        assert page.run("document.querySelector('.advanced').open")
    if status == 429:
        page.click_named("Try again")
        assert fake.request()["messages"][0]["content"][0]["text"] == "Mine"
        fake.say("Now.", [1000])
        fake.end()
        wait_for(page, "done")
        assert page.count(".notice") == 0
        fake.refusal = (status, error, headers)
        page.click_named("Another")
        refused = fake.request()
        page.wait("document.querySelector('.notice')")
        assert page.text(".given .text") == "Now."
        page.click_named("Try again")
        assert fake.request()["messages"] == refused["messages"]
        fake.end()


def test_a_server_that_comes_later(open_page, fake):
    fake.hides_models = True
    page = open_page(is_ready=False)
    page.wait("/not there yet/.test(document.querySelector('#notices').textContent)")
    fake.hides_models = False
    assert answer(page, fake)["model"] == "tiny"


def test_errors_on_the_way_keep_what_came(page, fake):
    ask(page, fake)
    fake.say("Half", [1000])
    fake.chunk({"error": {"message": "the engine failed", "type": "server_error", "param": None, "code": None}})
    fake.hang_up()
    wait_for(page, "failed")
    assert "the engine failed" in page.text("#notices") and page.text(".given .text") == "Half"
    ask(page, fake)
    fake.say("Half again", [1000])
    fake.hang_up()
    page.wait("/before it was complete/.test(document.querySelector('#notices').textContent)")


def test_key_is_asked_for_and_kept_for_the_tab(open_page, fake):
    fake.key = "open sesame"
    page = open_page(is_ready=False)
    page.wait("document.querySelector('#key-dialog').open")
    page.type("wrong")
    page.key("Enter")
    page.wait("/refused/.test(document.querySelector('#key-why').textContent)")
    page.type("open sesame")
    page.key("Enter")
    page.wait("document.querySelector('#model').options.length")
    answer(page, fake)
    assert page.run("[sessionStorage.length, Object.values(localStorage).join().includes('sesame')]") == [1, False]
    page.click_named("Forget key")
    assert page.run("sessionStorage.length") == 0


def test_settings_are_sent_remembered_and_reset(open_page, fake):
    fake.model = {"id": "tiny", "defaults": {"mode": "text", "temperature": 0.7}, "image_sizes": ["64x64"]}
    page = open_page()
    page.wait("document.querySelector('[value=text]').checked")
    assert page.run("document.querySelector('[name=temperature]').placeholder") == "0.7"
    assert page.run("document.querySelector('[name=image_size]').checkVisibility()") is False
    page.click("[value=interleaved]")
    page.run("document.querySelector('.advanced').open = true")
    for name, value in {"temperature": "0.5", "image_top_k": "20", "seed": "11", "image_size": "64x64"}.items():
        page.run(f"document.querySelector('[name={name}]').focus()")
        page.type(value)
    assert page.run("document.querySelector('[name=image_temperature]').placeholder") == "0.5"
    body = answer(page, fake)
    sent = {name: body.get(name) for name in ("mode", "temperature", "image_top_k", "seed", "image_size", "top_p")}
    assert sent == {
        "mode": "interleaved",
        "temperature": 0.5,
        "image_top_k": 20,
        "seed": 11,
        "image_size": "64x64",
        "top_p": None,
    }
    page.send("Page.reload")
    page.wait("!document.querySelector('.exchange') && document.querySelector('#model')?.options.length")
    page.wait(
        "document.querySelector('[name=seed]').value === '11' && document.querySelector('[value=interleaved]').checked"
    )
    page.click("[value=text]")
    assert "image_top_k" not in answer(page, fake)  # nor anything else about pictures
    page.run("document.querySelector('.advanced').open = true")
    page.run("document.querySelector('[name=top_p]').focus()")
    page.type("7")
    page.run(f"{WORDS}.focus()")
    page.type("x")
    page.key("Control+Enter")
    page.wait("document.activeElement.name === 'top_p'")  # not sent: it is wrong
    assert fake.asked.empty()
    page.click_named("Back to defaults")
    assert page.run("[localStorage.getItem('chameleon.settings'), document.querySelector('[name=seed]').value]") == [
        None,
        "",
    ]


def test_modes_that_the_model_lacks_cannot_be_chosen(open_page, fake):
    fake.model = {"id": "tiny", "defaults": {"mode": "text"}, "chameleon": {"modes": ["text"]}}
    page = open_page()
    page.wait("document.querySelector('[value=image]').disabled")
    page.click_named("Draw a picture")  # an example that needs one
    assert answer(page, fake, "")["mode"] == "text"


def test_queue_and_load_are_shown(page, fake):
    fake.health.update(running=4, queued=3, tokens_per_second=512.4)
    ask(page, fake)
    page.wait("/4 of 4 running · 3 waiting · 512 tokens.s/.test(document.querySelector('#server').innerText)")
    page.wait("/Waiting; 3 in the queue/.test(document.querySelector('.answer .meta').textContent)")
    fake.say("x", [1000])
    time.sleep(0.1)
    fake.say("y", list(range(1001, 1041)))
    page.wait("/tokens.s · seed/.test(document.querySelector('.answer .meta').textContent)")
    fake.end()


def test_keyboard_alone(page, fake):
    """From the top: every stop of the Tab key has a name and can be seen, and a run needs no mouse."""
    page.run("document.querySelector('a').focus()")
    names = []
    for i in range(40):
        if i:
            page.key("Tab")
        name, outline = page.run(
            "(e => [(e.ariaLabel || e.labels?.[0]?.textContent || e.textContent || e.getAttribute('title') || '').trim(),"
            " getComputedStyle(e).outlineStyle !== 'none' || getComputedStyle(e.nextElementSibling ?? e).outlineStyle !== 'none'])"
            "(document.activeElement)"
        )
        assert name and outline, (names, page.run("document.activeElement.outerHTML"))
        names.append(name)
        if name.startswith("Text, part 1"):
            break
    assert names[0] == "Skip to the prompt" and names[-1] == "Text, part 1 of 1"
    page.type("By hand")
    while page.run("document.activeElement.id") != "run":
        page.key("Tab")
    page.key("Enter")
    assert fake.request()["messages"][0]["content"][0]["text"] == "By hand"
    assert page.run("document.activeElement.id") == "stop"
    fake.say("Done.", [1000])
    fake.end()
    wait_for(page, "done")
    assert page.run("document.activeElement.id") == "run"


CONTRAST = """
(() => {
  const rgb = (text) => { const c = text.match(/[\\d.]+/g).map(Number); return [c[0], c[1], c[2], c[3] ?? 1]; };
  const light = (c) => c.slice(0, 3).map((v) => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor); if (c[3] === 1) return c; }
    return [255, 255, 255];
  };
  const low = [];
  let count = 0;
  const check = (e, colour, what) => {
    count += 1;
    const [a, b] = [light(rgb(colour)), light(behind(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) low.push([e.className || e.tagName, what.slice(0, 30), ratio.toFixed(2)]);
  };
  for (const e of document.querySelectorAll('body *')) {
    if (!e.checkVisibility({visibilityProperty: true}) || e.closest('.hidden') || e.disabled) continue;
    const text = [...e.childNodes].filter((n) => n.nodeType === 3).map((n) => n.data).join('').trim();
    if (text) check(e, getComputedStyle(e).color, text);
    if (e.placeholder) check(e, getComputedStyle(e, '::placeholder').color, e.placeholder);
  }
  return [count, low];
})()
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(open_page, fake, picture, scheme):
    page = open_page(features={"prefers_color_scheme": scheme})
    back = page.run("getComputedStyle(document.body).backgroundColor")
    ask(page, fake)
    fake.say("Look", [1000])
    fake.draw(picture_url(), 64, 64, [2, 10, 3])
    fake.end()
    wait_for(page, "done")
    page.click_named("Tokens")
    page.wait("document.querySelectorAll('.token').length === 4")
    page.run("document.querySelector('.advanced').open = true")
    page.drop("#composer", picture)
    page.wait("document.querySelectorAll('.card').length === 2")
    fake.refusal = (400, {"message": "no", "param": "top_p"}, {})
    page.key("Control+Enter")
    page.wait("document.querySelector('.notice')")
    count, low = page.run(CONTRAST)
    assert count > 60 and low == []
    # The toggle goes by hand through both and back to the system's.
    seen = []
    for _ in range(3):
        page.click("#theme")
        seen.append(page.run("getComputedStyle(document.body).backgroundColor"))
    assert len(set(seen)) == 2 and seen[2] == back
    assert page.run(CONTRAST)[1] == []


def test_phone_width(open_page, fake, picture):
    page = open_page(width=360, height=760)

    def overflow():
        return page.run(
            "[document.documentElement.scrollWidth - innerWidth, ...[...document.querySelectorAll('body *')]"
            ".filter(e => e.checkVisibility() && !e.closest('.hidden, .scroller, .skip') && e.getBoundingClientRect().right > 361)"
            ".map(e => e.outerHTML.slice(0, 80))]"
        )

    assert overflow() == [0]
    page.drop("#composer", picture)
    page.wait("document.querySelectorAll('.card').length === 2")
    ask(page, fake, "w" * 200)
    fake.say("https://" + "w" * 200, list(range(1000, 1100)))
    fake.draw(picture_url(side=64), 64, 64, [10])
    fake.end()
    wait_for(page, "done")
    page.click_named("Tokens")
    page.wait("document.querySelector('.token')")
    page.run("document.querySelectorAll('details').forEach(fold => fold.open = true)")
    assert overflow() == [0]
    small = page.run(
        "[...document.querySelectorAll('button, select')].filter(b => b.checkVisibility())"
        ".map(b => [b.getBoundingClientRect(), b.textContent]).filter(([b]) => b.width < 24 || b.height < 24).map(([, t]) => t)"
    )
    assert small == []  # WCAG 2.5.8


def test_reduced_motion(open_page, fake):
    page = open_page(features={"prefers_reduced_motion": "reduce"})
    ask(page, fake)
    assert page.run("getComputedStyle(document.querySelector('.meta'), '::before').animationName") == "none"
    fake.end()


def test_nothing_goes_elsewhere(page, fake, picture):
    page.drop("#composer", picture)
    page.wait("document.querySelectorAll('.card').length === 2")
    answer(page, fake)
    page.click_named("Tokens")
    page.wait("document.querySelector('.token')")
    asked = {event["request"]["url"] for event in page.events("Network.requestWillBeSent")}
    assert len(asked) > 10
    assert [url for url in asked if not url.startswith((fake.url, "data:", "blob:"))] == []
    blocked = "fetch('https://example.com/').then(() => 'sent', () => 'blocked')"
    assert page.run(blocked) == "blocked"
    assert page.run("new Promise(r => document.addEventListener('securitypolicyviolation', e => r(e.effectiveDirective)) ||"
                    " document.body.append(Object.assign(document.createElement('script'), {textContent: 'owned = 1'})))"
                    ) == "script-src-elem"  # fmt: skip
    assert page.run("typeof owned") == "undefined"


def test_with_the_real_server(open_page, server, picture):
    """Words, a picture that is drawn in steps, a chat of two turns with pictures, tokens, a refusal, and a stop."""
    page = open_page(url=server())

    def run(text):
        page.run(f"{WORDS}.focus()")
        page.type(text)
        page.key("Control+Enter")

    def last(selector):
        return page.run(f"document.querySelector('.exchange:last-child {selector}')?.textContent ?? ''")

    page.run(
        "window.previews = 0; new MutationObserver(all => window.previews += all.filter(m => m.target.matches('.given img'))"
        ".length).observe(document.body, {subtree: true, attributeFilter: ['src']})"
    )
    page.drop("#composer", picture)
    page.wait("document.querySelectorAll('.card').length === 2")
    page.click("[value=image]")
    page.run("document.querySelector('.advanced').open = true; document.querySelector('[name=max_images]').focus()")
    page.type("1")
    run("Draw it again")
    wait_for(page, "done")
    page.wait("document.querySelector('.given img').naturalWidth === 16")
    assert page.run("window.previews") >= 2
    page.click_named("Tokens")
    page.wait("/18 tokens: .*16 picture codes/.test(document.querySelector('.counts').textContent)")
    page.click_named("Show the prompt's")
    page.wait("/16 picture codes/.test(document.querySelector('.counts').textContent)")

    page.click("[value=text]")
    page.run("document.querySelector('[name=max_tokens]').focus()")
    page.type("9")
    run("And in words?")
    page.wait("document.querySelectorAll('.exchange').length === 2")
    wait_for(page, "done")
    first = last(".meta")
    page.click_named("Same again")
    page.wait("document.querySelectorAll('.exchange').length === 2 && /2 . 2/.test(document.body.innerText)")
    wait_for(page, "done")
    said = last(".given .text")
    page.click_named("Answer before")
    assert last(".given .text") == said and last(".meta").split(" · ")[-1] == first.split(" · ")[-1]

    page.run("document.querySelector('[name=max_tokens]').select()")
    page.type("9999")
    run("Too much")
    page.wait("/max_tokens/.test(document.querySelector('#notices').textContent)")
    assert page.run("document.activeElement.name") == "max_tokens"
    page.run("document.querySelector('[name=max_tokens]').select()")
    page.type("150")
    page.run(f"{WORDS}.focus()")
    page.key("Control+Enter")
    page.wait("document.querySelectorAll('.exchange').length === 3")
    page.key("Escape")
    page.wait("!document.body.classList.contains('running')")
    logged = [event["entry"]["text"] for event in page.events("Log.entryAdded")]
    assert [text for text in logged if "400" not in text] == []


def test_sources_name_no_address():
    for path in page_driver.PAGE.iterdir():
        found = set(re.findall(r"(?:https?:)?//[\w-]+\.\w[^\"'\s]*", path.read_text()))
        assert found <= {"http://www.w3.org/2000/svg"}, path.name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", path.read_text()), (
            path.name
        )
