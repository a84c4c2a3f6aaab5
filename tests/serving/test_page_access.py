"""The page in a real browser: an accessibility checker over its states, in both colours and widths; its functions by keyboard."""

from pathlib import Path

import pytest

from tests.serving.page_actions import WORDS, answer, ask, fill, picture_url, wait_for

CHECK = """
axe.run(document, {resultTypes: ['violations']}).then(({violations}) => violations
  .filter(({impact}) => impact !== 'minor')
  .map(({impact, id, nodes}) => [impact, id, ...nodes.map(({html}) => html.slice(0, 120))]))
"""
SAID = "# Title\n\n- a\n- [b](https://x.example)\n\n> q `c`\n\n|a|b|\n|-|-|\n|1|2|\n\n```py\nx = 1\n```\n"


@pytest.fixture(scope="module")
def checker():
    """The source of axe-core."""
    axe = pytest.importorskip("axe_core_python")
    return (Path(axe.__file__).parent / "axe.min.js").read_text()


def key_until(page, key, script, most=60):
    for _ in range(most):
        if page.run(script):
            return
        page.key(key)
    raise AssertionError((script, page.run("document.activeElement.outerHTML")))


FOCUSED = "[document.activeElement.ariaLabel, document.activeElement.textContent].includes('{}')"


@pytest.mark.parametrize("width", [1366, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_state_has_a_finding_that_matters(open_page, fake, checker, picture, scheme, width):
    fake.models = [{"id": "tiny", "chameleon": {"context": 1024}}, {"id": "large"}]
    page = open_page(width, 800, {"prefers_color_scheme": scheme})
    page.send("Runtime.evaluate", expression=checker)
    found = {"empty": page.run(CHECK)}
    answer(page, fake, "Hi", SAID)
    page.drop("#composer", picture)
    page.wait("document.querySelectorAll('.card').length === 2")
    body = ask(page, fake, "Draw two")
    assert body["messages"][2]["content"][0]["type"] == "image_url"
    fake.draw(picture_url(), 32, 64, [2, 10])
    page.wait("document.querySelector('.given figure .zoom:not([hidden])')")
    found["streaming"] = page.run(CHECK)
    fake.draw(picture_url(), 64, 64, [11, 3], codes=[10, 11, 12, 13])
    fake.say("x", [1000])
    fake.chunk({"choices": [], "notes": ["rounded"]})
    fake.end()
    wait_for(page, "done")
    page.click_named("Tokens")
    page.wait("document.querySelectorAll('.token').length === 5")
    page.drop("#composer", picture)
    page.wait("document.querySelectorAll('.card').length === 2")
    found["chat"] = page.run(CHECK)
    page.click_named("Redraw parts of picture 1")
    found["redraw"] = page.run(CHECK)
    page.key("Escape")
    fill(page, "temperature", "0.5")
    found["settings"] = page.run(CHECK)
    page.run("document.querySelector('#hide-controls').click()")
    if width < 600:
        page.click("#show-sidebar")
    page.run("document.querySelector('.chats .bare').click()")
    found["chats and menu"] = page.run(CHECK)
    page.key("Escape")
    page.key("Escape")
    page.run("document.querySelector('figure .zoom').click()")
    found["picture"] = page.run(CHECK)
    page.key("Escape")
    fake.refusal = (400, {"message": "no", "param": "top_p"}, {})
    page.run(f"{WORDS}.focus()")
    page.key("Control+Enter")
    page.wait("document.querySelector('.notice')")
    found["refused"] = page.run(CHECK)
    assert found == {state: [] for state in found}


def test_chats_settings_and_pictures_by_keyboard_alone(page, fake):
    """No pointer: a chat is written, found, renamed and deleted, a setting changed, a picture enlarged."""
    page.type("Tell me of boats")
    page.key("Enter")
    fake.request()
    fake.draw(picture_url(), 64, 64, [10])
    fake.end()
    wait_for(page, "done")
    key_until(page, "Shift+Tab", FOCUSED.format("Enlarge picture 1"))
    page.key("Enter")
    page.wait("document.querySelector('#lightbox').open")
    assert page.run("document.activeElement.ariaLabel") == "Close the picture"
    page.key("Escape")
    page.wait("!document.querySelector('#lightbox').open")
    assert page.run(FOCUSED.format("Enlarge picture 1"))

    key_until(page, "Shift+Tab", FOCUSED.format("Settings"))
    page.key("Enter")
    page.wait("!document.querySelector('#controls').hidden")
    assert page.run("document.activeElement.id") == "hide-controls"
    key_until(page, "Tab", "document.activeElement.name === 'n'")
    page.type("2")
    key_until(page, "Shift+Tab", "document.activeElement.id === 'hide-controls'")
    page.key("Enter")
    assert page.run("document.activeElement.id") == "show-controls"

    key_until(page, "Shift+Tab", FOCUSED.format("More for: Tell me of boats"))
    page.key("Enter")
    page.wait("document.activeElement.textContent === 'Rename'")
    page.key("ArrowDown")
    page.key("ArrowUp")
    page.key("Enter")
    page.wait("document.activeElement.ariaLabel === 'Name of the chat'")
    page.type("Boats")
    page.key("Enter")
    page.wait(FOCUSED.format("Boats"))
    key_until(page, "Shift+Tab", FOCUSED.format("New chat"))
    page.key("Enter")
    page.wait("document.querySelectorAll('.exchange').length === 0")
    page.type("Again")
    page.key("Enter")
    assert fake.request()["n"] == 2
    fake.hang_up()
    page.wait("document.querySelector('#cards textarea').value === 'Again'")
    key_until(page, "Shift+Tab", FOCUSED.format("Boats"))
    page.key("Delete")
    page.wait("document.querySelectorAll('.chats .open').length === 0")
    assert page.run("document.activeElement.id") == "new-chat"


def test_panels_over_the_conversation_hold_the_focus(open_page, fake):
    page = open_page(390, 800)
    for panel in ("sidebar", "controls"):
        page.click(f"#show-{panel}")
        page.wait(f"!document.querySelector('#{panel}').hidden")
        for _ in range(30):
            page.key("Tab")
            assert page.run(
                f"document.activeElement.closest('#{panel}, .skip') !== null || document.activeElement === document.body"
            )
        page.key("Escape")
        assert page.run(f"document.querySelector('#{panel}').hidden")
        assert page.run("document.activeElement.id") == f"show-{panel}"
