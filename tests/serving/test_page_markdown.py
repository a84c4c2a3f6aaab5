"""Markdown of the page in a real browser: what it makes of words, and that words can do nothing else."""

import json
import time

import pytest

from tests.serving import page_driver

SHOW = "import('/page/markdown.js').then(({showMarkdown}) => { showMarkdown(window.node ??= document.createElement('div'), %s);"


@pytest.fixture(scope="module")
def shared(browser):
    """One page for all tests of this file, which leave nothing behind."""
    fake = page_driver.FakeServer()
    page = browser.open(fake.url)
    page.wait("document.querySelector('#model').options.length")
    yield page
    assert page.events("Runtime.exceptionThrown") == []
    page.close()
    fake.close()


def show(page, text):
    """The HTML that the page makes of a text, without what only looks need."""
    return page.run(
        SHOW % json.dumps(text) + "const copy = node.cloneNode(true); for (const e of copy.querySelectorAll('*'))"
        " for (const {name} of [...e.attributes]) if (!['href', 'start'].includes(name)) e.removeAttribute(name);"
        " copy.querySelectorAll('button').forEach(b => b.remove()); return copy.innerHTML; })"
    )


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("one\ntwo\n\nthree ", "<p>one\ntwo</p><p>three </p>"),
        ("# A\n### B", "<h3>A</h3><h5>B</h5>"),
        (
            "**a** *b* `c*d*` ~~e~~ __f__ _g_",
            "<p><strong>a</strong> <em>b</em> <code>c*d*</code> <del>e</del> <strong>f</strong> <em>g</em></p>",
        ),
        ("snake_case_name and 2 * 3 * 4 and **open", "<p>snake_case_name and 2 * 3 * 4 and **open</p>"),
        ("***a*** and *a **b** c*", "<p><strong><em>a</em></strong> and <em>a <strong>b</strong> c</em></p>"),
        (r"\*not\* \\ `` ` ``", "<p>*not* \\ <code> ` </code></p>"),
        (
            "- a\n- b\n  - c\n\n  more\n- d",
            "<ul><li><span>a</span></li><li><span>b</span><ul><li><span>c</span></li></ul>"
            "<span>more</span></li><li><span>d</span></li></ul>",
        ),
        (
            "3. x\n4. y",
            '<ol start="3"><li><span>x</span></li><li><span>y</span></li></ol>',
        ),
        ("> a\n> > b", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>"),
        ("---\na", "<hr><p>a</p>"),
        ("```py\n<b> *x*\n", "<div><div><span>py</span></div><pre><code>&lt;b&gt; *x*\n</code></pre></div>"),
        ("~~~\na\n~~~\nb", "<div><div><span>code</span></div><pre><code>a</code></pre></div><p>b</p>"),
        (
            "|a|b|\n|-|:-:|\n|1|*2*|",
            "<div><table><thead><tr><th>a</th><th>b</th></tr></thead>"
            "<tbody><tr><td>1</td><td><em>2</em></td></tr></tbody></table></div>",
        ),
        (
            "[a](https://x.example/y) https://z.example/p.",
            '<p><a href="https://x.example/y">a</a> <a href="https://z.example/p">https://z.example/p</a>.</p>',
        ),
    ],
)
def test_what_words_become(shared, text, html):
    assert show(shared, text) == html


@pytest.mark.parametrize(
    "text",
    [
        "<script>window.owned = 1</script>",
        "<img src=x onerror='window.owned = 1'>",
        "[a](javascript:window.owned=1)",
        "[a](JaVaScRiPt:window.owned=1) [b](data:text/html,<script>1</script>) [c](vbscript:x)",
        "[a](https://x.example/\"onmouseover='window.owned=1')",
        '![a](https://elsewhere.example/a.png) ![b](x" onerror="window.owned=1)',
        "<https://x.example/<svg/onload=window.owned=1>>",
        '```"><svg/onload=window.owned=1>\nx\n```',
        "|<svg/onload=window.owned=1>|b|\n|-|-|\n|<iframe src=x>|&lt;b&gt;|",
        "# <a href='javascript:window.owned=1'>x</a>",
        "- <style>*{display:none}</style>\n> <form action=x><input>",
        "&#60;script&#62;window.owned=1&#60;/script&#62;",
    ],
)
def test_words_are_never_markup(shared, text):
    show(shared, text)
    shared.run(
        "document.body.append(node); [...node.querySelectorAll('*')].forEach(e => e.dispatchEvent(new Event('mouseover')))"
    )
    tags = shared.run("[...new Set([...node.querySelectorAll('*')].map(e => e.tagName))]")
    known = ["P", "H3", "SPAN", "UL", "LI", "A", "DIV", "PRE", "CODE", "TABLE", "THEAD", "TBODY", "TR", "TH", "TD"]
    assert set(tags) <= {*known, "BLOCKQUOTE", "BUTTON", "svg", "use"}
    assert shared.run(
        "[...node.querySelectorAll('a')].every(a => /^https?:$/.test(a.protocol) && a.rel === 'noopener noreferrer')"
    )
    handlers = (
        "[...node.querySelectorAll('*')].flatMap(e => [...e.attributes]).filter(a => a.name.startsWith('on')).length"
    )
    assert shared.run(handlers) == 0
    shared.run("node.remove()")
    assert shared.run("typeof window.owned") == "undefined"


def test_blocks_that_are_whole_stay_while_more_comes(shared):
    show(shared, "one\n\ntw")
    shared.run("window.first = node.firstChild")
    assert show(shared, "one\n\ntwo\n\n- three") == "<p>one</p><p>two</p><ul><li><span>three</span></li></ul>"
    assert shared.run("node.firstChild === window.first")


@pytest.mark.parametrize(
    "piece", ["*", "**a", "`", "``a", "[", "[a](", "> ", "- ", "_a", "~~", "|a|\n|-|\n", "\\", "(", "https://"]
)
def test_long_nonsense_is_quick(shared, piece):
    began = time.monotonic()
    show(shared, piece * (30_000 // len(piece)))
    assert time.monotonic() - began < 8
