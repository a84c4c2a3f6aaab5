"""What tests of the page do again and again."""

import base64
import io
import wave

from PIL import Image

WORDS = "document.querySelector('#cards textarea')"


def picture_url(colour=(200, 30, 30), side=16) -> str:
    content = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(content, "PNG")
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()


def wav_file(seconds=0.2, rate=8000) -> bytes:
    content = io.BytesIO()
    with wave.open(content, "wb") as file:
        file.setparams((1, 2, rate, 0, "NONE", ""))
        file.writeframes(bytes(i % 251 for i in range(int(2 * seconds * rate))))
    return content.getvalue()


def wav_url() -> str:
    return "data:audio/wav;base64," + base64.b64encode(wav_file()).decode()


def choose(page, name, value):
    """Choose an option as a person does; the select may be in a closed panel."""
    page.wait(f"document.querySelector('select[name={name}], select#{name}').options.length")
    page.run(
        f"(select => {{ select.value = '{value}'; select.dispatchEvent(new Event('input', {{bubbles: true}}));"
        f" select.dispatchEvent(new Event('change', {{bubbles: true}})); return select.value; }})"
        f"(document.querySelector('select[name={name}], select#{name}'))"
    )
    assert page.run(f"document.querySelector('select[name={name}], select#{name}').value") == value


def fill(page, name, text):
    """Write into a field of the settings, which are opened if they are closed."""
    page.run("document.querySelector('#controls').hidden && document.querySelector('#show-controls').click()")
    page.run(f"document.querySelector('.advanced').open = true; document.querySelector('[name={name}]').focus()")
    page.run("document.activeElement.select()")
    page.type(text)


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
