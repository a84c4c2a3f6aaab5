"""The page in a real browser: refusals, settings, looks, keyboard, and the real server behind it."""

import re
import time

import pytest

from tests.serving import page_driver
from tests.serving.page_actions import WORDS, answer, ask, choose, fill, picture_url, wait_for


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
    held = "[sessionStorage, localStorage].map(each => Object.values(each).join().includes('sesame'))"
    assert page.run(held) == [True, False]
    page.click_named("Forget key")
    assert page.run(held) == [False, False]


def test_settings_are_sent_remembered_and_reset(open_page, fake):
    fake.model = {"id": "tiny", "defaults": {"mode": "text", "temperature": 0.7}, "image_sizes": ["64x64"]}
    page = open_page()
    page.wait("document.querySelector('#mode').value === 'text'")
    assert page.run("document.querySelector('[name=temperature]').placeholder") == "0.7"
    assert page.run("document.querySelector('[name=image_size]').checkVisibility()") is False
    choose(page, "mode", "interleaved")
    for name, value in {"temperature": "0.5", "image_top_k": "20", "seed": "11", "image_size": "64x64"}.items():
        fill(page, name, value)
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
    page.reload()
    page.wait("document.querySelector('.exchange') && document.querySelector('#model')?.options.length")
    page.wait(
        "document.querySelector('[name=seed]').value === '11' && document.querySelector('#mode').value === 'interleaved'"
    )
    choose(page, "mode", "text")
    assert "image_top_k" not in answer(page, fake)  # nor anything else about pictures
    page.click("#new-chat")  # goes on with the settings, but not with the seed
    page.wait("document.querySelector('[name=seed]').value === ''")
    assert page.run("[document.querySelector('#mode').value, document.querySelector('[name=temperature]').value]") == [
        "text",
        "0.5",
    ]
    page.click(".chats .open")  # which the chat keeps
    page.wait("document.querySelector('[name=seed]').value === '11'")
    fill(page, "top_p", "7")
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
    page.wait("document.querySelector('#examples button')")
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
            " [e, e.closest('.card'), e.closest('.composer')].some(a => a && getComputedStyle(a).outlineStyle !== 'none')])"
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
    fake.give({"type": "codes", "modality": "moves", "codes": [1]}, 1, 1, [9001, 8001])
    fake.end()
    wait_for(page, "done")
    page.click_named("Tokens")
    page.wait("document.querySelectorAll('.token').length === 6")
    fill(page, "temperature", "0.5")
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
            ".filter(e => e.checkVisibility() && !e.closest('.hidden, .scroller, .skip, pre')"
            " && e.getBoundingClientRect().right > 361)"
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
    """Words, a picture that is drawn in steps, a chat of two turns with pictures, tokens, and a stop."""
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
    choose(page, "mode", "image")
    fill(page, "max_images", "1")
    run("Draw it again")
    wait_for(page, "done")
    page.wait("document.querySelector('.given img').naturalWidth === 16")
    assert page.run("window.previews") >= 2
    page.click_named("Tokens")
    page.wait("/18 tokens: .*16 picture codes/.test(document.querySelector('.counts').textContent)")
    page.click_named("Show the prompt's")
    page.wait("/16 picture codes/.test(document.querySelector('.counts').textContent)")

    page.click_named("Redraw parts of picture 1")
    page.click_named("Lower half")
    page.click_named("Redraw 8 of 16 codes")
    page.wait("document.querySelector('.place')?.textContent === '2 / 2'")
    wait_for(page, "done")
    page.wait("document.querySelector('.given img').naturalWidth === 16")
    page.click_named("Tokens")
    page.click_named("How likely?")
    wait_for(page, "done")
    page.click_named("Tokens")
    page.wait("document.querySelectorAll('.why li').length >= 5")

    choose(page, "mode", "text")
    fill(page, "max_tokens", "9")
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

    fill(page, "max_tokens", "150")
    run("And more?")
    page.wait("document.querySelectorAll('.exchange').length === 3")
    page.key("Escape")
    page.wait("!document.body.classList.contains('running')")
    logged = [event["entry"]["text"] for event in page.events("Log.entryAdded")]
    assert [text for text in logged if "400" not in text] == []


def test_sources_name_no_address():
    for path in page_driver.PAGE.iterdir():
        found = set(re.findall(r"(?:https?:)?//[\w-]+\.\w[^\"'\s]*", path.read_text()))
        assert found <= {"http://www.w3.org/2000/svg"}, path.name
        assert "<style" not in path.read_text(), path.name  # which the policy drops, in drawings too
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", path.read_text()), (
            path.name
        )
