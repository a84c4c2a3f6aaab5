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
