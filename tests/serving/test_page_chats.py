"""The page in a real browser: chats that are kept, found, renamed, deleted, and taken elsewhere; Markdown; several answers."""

import json

from tests.serving import page_driver
from tests.serving.page_actions import WORDS, answer, ask, choose, fill, picture_url, wait_for

TITLES = "[...document.querySelectorAll('.chats .open')].map(b => b.textContent)"


def menu(page, title, choice):
    page.wait(f"[...document.querySelectorAll('.chats .bare')].some(b => b.ariaLabel === 'More for: {title}')")
    page.click_named(f"More for: {title}")
    page.click_named(choice)


def test_a_reload_in_the_middle_of_an_answer_loses_nothing(page, fake):
    answer(page, fake, "First", "One.")
    asked = ask(page, fake, "Second")
    fake.say("Half an ", [1000, 1001])
    fake.draw(picture_url(), 64, 64, [10])
    fake.say("answer", [1002])
    page.wait("/answer/.test([...document.querySelectorAll('.given')].at(-1).textContent)")
    page.run(f"{WORDS}.focus()")
    page.type("not sent yet")
    page.reload()
    page.wait("document.querySelectorAll('.exchange').length === 2")
    assert page.run("[...document.querySelectorAll('.given')].map(e => e.querySelector('.text').textContent)") == [
        "One.",
        "Half an ",
    ]
    assert page.run("[...document.querySelectorAll('.given .body')].at(-1).textContent.endsWith('answer')")
    assert page.run("document.querySelector('.given img').src") == picture_url()
    assert page.run("[...document.querySelectorAll('.answer')].map(e => e.dataset.state)") == ["done", "cut"]
    assert "cut off" in page.run("[...document.querySelectorAll('.meta')].at(-1).textContent")
    assert page.run(f"{WORDS}.value") == "not sent yet"
    assert fake.left.wait(page_driver.WAIT)

    page.click_named("Finish")  # the same request again, whose answer takes the place of the half one
    assert fake.request() == asked
    fake.say("A whole one.", [1000])
    fake.end()
    wait_for(page, "done")
    assert page.count(".place") == 0 and "A whole one." in page.text("#exchanges")
    page.reload()
    page.wait("/A whole one/.test(document.querySelector('#exchanges').textContent)")
    assert "Half" not in page.text("#exchanges") and page.run(f"{WORDS}.value") == "not sent yet"


def test_chats_are_found_renamed_and_deleted(page, fake):
    answer(page, fake, "Tell me of boats", "They float.")
    page.click("#new-chat")
    answer(page, fake, "And of planes", "They fly.")
    page.wait(f"{TITLES}.length === 2")
    assert page.run(TITLES) == ["And of planes", "Tell me of boats"]
    page.run("document.querySelector('#search').focus()")
    page.type("FLOAT")  # in the answer
    page.wait(f"{TITLES}.join() === 'Tell me of boats'")
    page.key("Escape")
    assert len(page.run(TITLES)) == 2

    menu(page, "Tell me of boats", "Rename")
    assert page.run("document.activeElement.ariaLabel") == "Name of the chat"
    page.run("document.activeElement.select()")
    page.type("Boats")
    page.key("Enter")
    page.wait(f"{TITLES}.includes('Boats')")
    page.click_named("Boats")
    page.wait("/They float/.test(document.querySelector('#exchanges').textContent)")
    assert page.run("document.title") == "Boats · chameleon_jax"

    menu(page, "Boats", "Delete")
    page.wait(f"{TITLES}.length === 1")
    assert page.count(".exchange") == 0
    page.click_named("Undo")
    page.wait(f"{TITLES}.length === 2 && document.querySelectorAll('.exchange').length === 1")
    menu(page, "Boats", "Delete")
    page.wait(f"{TITLES}.length === 1")
    page.reload()
    page.wait(f"{TITLES}.length === 1")
    assert page.run(TITLES) == ["And of planes"] and page.count(".exchange") == 0


def test_an_answer_goes_on_while_another_chat_is_in_sight(page, fake):
    ask(page, fake, "A long one")
    fake.say("Begun", [1000])
    page.wait("document.querySelector('.given .text')")
    page.click("#new-chat")
    assert page.count(".exchange") == 0 and page.run("document.querySelector('#run').disabled") is False
    fake.say(" and ended.", [1001])
    fake.end()
    page.wait("document.querySelector('.chats .open')")
    page.click(".chats .open")
    wait_for(page, "done")
    assert page.text(".given .text") == "Begun and ended."


def test_chats_leave_as_a_file_and_come_back(page, fake, tmp_path):
    ask(page, fake, "Draw")
    fake.draw(picture_url(), 64, 64, [10])
    fake.end()
    wait_for(page, "done")
    page.run(
        "URL.createObjectURL = blob => { window.saved = blob.text(); return 'blob:none' };"
        "HTMLAnchorElement.prototype.click = function () { window.name_ = this.download }"
    )
    menu(page, "Draw", "Export")
    content = page.wait("window.saved")
    assert page.run("window.name_") == "chameleon-draw.json"
    assert json.loads(content)["chats"][0]["exchanges"][0]["content"] == [{"type": "text", "text": "Draw"}]

    def bring(name, text):
        (tmp_path / name).write_text(text)
        node = page.send("DOM.getDocument")["root"]["nodeId"]
        field = page.send("DOM.querySelector", nodeId=node, selector="#import-file")["nodeId"]
        page.send("DOM.setFileInputFiles", nodeId=field, files=[str(tmp_path / name)])

    menu(page, "Draw", "Delete")
    page.wait(f"{TITLES}.length === 0")
    bring("chats.json", content)
    page.wait(f"{TITLES}.length === 1")
    page.click(".chats .open")
    page.wait(f"document.querySelector('.given img')?.src === '{picture_url()}'")

    for name, text, told in (
        ("words.json", "words", "is not a JSON file"),
        ("other.json", '{"chats": []}', "holds no chats"),
        ("hurt.json", content.replace('"text":"Draw"', '"text":["Draw"]'), "damaged"),
        ("far.json", content.replace(picture_url(), "https://elsewhere.example/a.png"), "not held in the file"),
    ):
        bring(name, text)
        page.wait(f"document.querySelector('#notices').textContent.includes('{told}')")
    assert len(page.run(TITLES)) == 1


def test_enter_sends_and_shift_enter_does_not(page, fake):
    page.run(f"{WORDS}.focus()")
    page.type("one")
    page.key("Shift+Enter", commands=["insertNewline"])
    page.type("two")
    assert page.run(f"{WORDS}.value") == "one\ntwo" and fake.asked.empty()
    page.key("Enter")
    assert fake.request()["messages"][0]["content"][0]["text"] == "one\ntwo"
    fake.end()
    wait_for(page, "done")
    page.click("#show-controls")
    page.click("#enter-sends")
    page.run(f"{WORDS}.focus()")
    page.type("three")
    page.key("Enter")
    assert page.run(f"{WORDS}.value") == "three\n" and fake.asked.empty()


def test_system_prompt_and_settings_are_those_of_the_chat(page, fake):
    fill(page, "system", "Be brief.")
    body = answer(page, fake, "Hello")
    assert body["messages"][0] == {"role": "system", "content": "Be brief."} and "system" not in body
    page.click("#new-chat")
    assert [message["role"] for message in answer(page, fake, "Hello again")["messages"]] == ["user"]
    page.click_named("Hello")
    page.wait("document.querySelector('[name=system]').value === 'Be brief.'")


def test_several_answers_side_by_side(page, fake):
    fill(page, "n", "2")
    body = ask(page, fake, "Say it")
    assert body["n"] == 2
    for index, text in ((1, "Second"), (0, "First")):
        delta = {"content": text, "token_ids": [1000]}
        fake.chunk({"choices": [{"index": index, "delta": delta, "finish_reason": None}]})
    fake.end()
    wait_for(page, "done")
    assert page.run("[...document.querySelectorAll('.beside .text')].map(e => e.textContent)") == ["First", "Second"]
    boxes = page.run("[...document.querySelectorAll('.beside')].map(e => e.getBoundingClientRect().y)")
    assert boxes[0] == boxes[1]
    page.click("[aria-label='Go on with: Answer 2 of 2']")
    assert ask(page, fake, "And then?")["messages"][1]["content"] == [{"type": "text", "text": "Second"}]
    fake.end()


def test_two_models_answer_side_by_side(open_page, fake):
    page = open_page()
    assert page.run("document.querySelector('#other-label').hidden")  # one model: nothing to compare
    fake.models = [{"id": "tiny"}, {"id": "large"}]
    page = open_page()
    choose(page, "other", "large")
    page.run(f"{WORDS}.focus()")
    page.type("Who are you?")
    page.key("Enter")
    bodies = [fake.request(), fake.request()]
    assert {body["model"] for body in bodies} == {"tiny", "large"}
    assert bodies[0]["messages"] == bodies[1]["messages"] and bodies[0]["seed"] == bodies[1]["seed"]
    page.wait("document.querySelectorAll('.beside').length === 2")
    names = page.run("[...document.querySelectorAll('.beside .choose')].map(e => e.textContent)")
    assert names == ["tiny", "large"]
    fake.hang_up()
    fake.hang_up()


def test_context_meter(open_page, fake):
    fake.model = {"id": "tiny", "chameleon": {"context": 1024}}
    page = open_page()
    assert not page.run("document.querySelector('#meter').checkVisibility({visibilityProperty: true})")
    ask(page, fake)
    fake.begin(list(range(100)))
    fake.say("x", list(range(1000, 1050)))
    fake.end(tokens=50)
    wait_for(page, "done")
    page.wait("document.querySelector('#meter').innerText.startsWith('150 of 1,024 tokens')")
    assert page.run("document.querySelector('meter').value") == 150


def test_pictures_are_enlarged(page, fake):
    ask(page, fake)
    fake.draw(picture_url(), 64, 64, [10])
    fake.end()
    wait_for(page, "done")
    page.run("document.querySelector('figure .zoom').focus()")
    page.key("Enter")
    page.wait("document.querySelector('#lightbox').open && document.querySelector('#lightbox img').naturalWidth === 16")
    assert page.run("document.querySelector('#lightbox img').getBoundingClientRect().height") > 400
    page.allow_clipboard()
    page.click_named("Copy the picture")
    page.wait("document.querySelector('[data-said=Copied]')")
    assert page.run("navigator.clipboard.read().then(items => items[0].types)") == ["image/png"]
    page.key("Escape")
    page.wait("!document.querySelector('#lightbox').open")
    assert page.run("document.activeElement.ariaLabel") == "Enlarge picture 1"


def test_parts_of_a_picture_are_redrawn(page, fake):
    ask(page, fake, "Draw")
    fake.draw(picture_url(), 6, 6, [10], codes=[1, 2, 3, 4, 5])  # five codes make no square: nothing to choose from
    fake.end()
    wait_for(page, "done")
    assert page.run("document.querySelector('.redraw').hidden")
    first = ask(page, fake, "Draw again")
    fake.draw(picture_url(), 4, 4, [10], codes=[10, 11, 12, 13])
    fake.end()
    wait_for(page, "done")
    page.click_named("Redraw parts of picture 1")
    page.wait("document.querySelector('#redraw').open")
    assert page.run("document.querySelector('#redraw .primary').disabled")
    page.click_named("Lower half")
    page.run("document.querySelector('.cell').focus()")
    page.key("ArrowRight")
    page.key(" ")
    x, y = page.middle(".cell[data-at='3']")
    page.mouse("mousePressed", x, y)  # a chosen one: the pointer takes away
    page.mouse("mouseReleased", x, y, buttons=0)
    page.click_named("Redraw 2 of 4 codes")
    body = fake.request()
    assert body["keep"] == {"modality": "image", "codes": [10, None, None, 13]}
    assert (body["mode"], body["max_images"]) == ("image", 1) and body["seed"] != first["seed"]
    assert body["messages"] == first["messages"]
    fake.draw(picture_url((0, 0, 200)), 4, 4, [10], codes=[10, 1, 2, 13])
    fake.end()
    wait_for(page, "done")
    assert page.text(".place") == "2 / 2"


def test_why_this_token(page, fake):
    first = ask(page, fake)
    fake.say("Good day", [1000, 1001])
    fake.end(tokens=2)
    wait_for(page, "done")
    assert "logprobs" not in first
    page.click_named("Tokens")
    page.wait("document.querySelectorAll('.token').length === 2")
    page.click_named("How likely?")  # the same once more
    again = fake.request()
    assert again == first | {"logprobs": True, "top_logprobs": 5}
    entries = [
        {"token": token, "logprob": logprob, "id": id, "modality": "text", "top_logprobs": top}
        for id, token, logprob, top in [
            (1000, "Good", -0.105, [{"token": "Good", "logprob": -0.105}, {"token": "Bad", "logprob": -2.3}]),
            (1001, " day", -4.6, [{"token": " evening", "logprob": -0.01}]),
        ]
    ]
    delta = {"content": "Good day", "token_ids": [1000, 1001]}
    fake.chunk({"choices": [{"index": 0, "delta": delta, "logprobs": {"content": entries}, "finish_reason": None}]})
    fake.end(tokens=2)
    wait_for(page, "done")
    assert page.count(".place") == 0
    page.click_named("Tokens")
    page.wait("document.querySelectorAll('.why li').length === 2")
    rows = "[...document.querySelectorAll('.why li')].map(row => [row.className, ...[...row.children].map(e => e.textContent)])"
    assert page.run(rows) == [["own", "Good", "", "90 % · chosen"], ["", "Bad", "", "10 %"]]
    page.click(".token[data-at='1']")
    assert page.run(rows) == [["", "␣evening", "", "99 %"], ["own", "␣day", "", "1.0 % · chosen"]]
    assert "likelihood 1.0 %" in page.text(".detail")
    page.click("#show-controls")
    page.click("#ask-likelihoods")
    assert ask(page, fake, "Next")["top_logprobs"] == 5
    fake.end()


def test_compiling_is_shown_and_notes_of_the_server(page, fake):
    fake.health["status"] = "compiling"
    ask(page, fake)  # asks for the state too
    page.wait("/Compiling/.test(document.querySelector('#server').innerText)")
    fake.health["status"] = "ok"
    fake.say("x", [1000])
    fake.chunk({"choices": [], "notes": ["the size was rounded to 64x64"]})
    fake.end()
    wait_for(page, "done")
    assert page.text(".notes") == "the size was rounded to 64x64"
    page.wait("/Ready/.test(document.querySelector('#server').innerText)")


def test_nothing_moves_while_an_answer_streams(page, fake):
    answer(page, fake, "One", "Some words.\n\n" * 3)
    page.run(
        "window.moved = []; new PerformanceObserver(list => window.moved.push(...list.getEntries()"
        ".filter(e => !e.hadRecentInput).map(e => [e.value, e.sources.map(s => s.node?.className ?? s.node?.data)])))"
        ".observe({type: 'layout-shift'})"
    )
    ask(page, fake, "Two")
    fake.say("Here: ", [1000])
    for done in (16, 32, 64):
        fake.draw(picture_url((done, 0, 0), 64), done, 64, list(range(10, 26)))
        page.wait(f"document.querySelector('progress')?.value === {done}")
    fake.say("and more words\n\n- with a list\n- of two", [1001])
    fake.end()
    wait_for(page, "done")
    composer, last = page.run(
        "[document.querySelector('#composer'), [...document.querySelectorAll('.foot')].at(-1)].map(e => e.getBoundingClientRect())"
        ".map(b => [b.top, b.bottom])"
    )
    assert last[1] <= composer[0]  # nothing lies under the prompt
    assert page.run("window.moved") == []
