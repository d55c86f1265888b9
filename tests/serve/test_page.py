"""The page in a real browser: headless Chromium, driven by its DevTools protocol."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

connect = pytest.importorskip("websockets.sync.client").connect

# What is asked for in the tests below, by the names of the fixture `models`.
PAIR = ("the boat", "the sea the boats")


class Tab:
    """A tab of the browser.

    Attributes:
        events: what the browser told so far: (method, parameters).
    """

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._last = 0
        self.events: list[tuple[str, dict[str, Any]]] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters: Any) -> Any:
        self._last += 1
        self._socket.send(json.dumps({"id": self._last, "method": method, "params": parameters}))
        while True:
            said = json.loads(self._socket.recv(timeout=60))
            if said.get("id") == self._last:
                assert "error" not in said, said
                return said["result"]
            self.events.append((said["method"], said["params"]))

    def run(self, script: str) -> Any:
        """The value of a script, a promise's too."""
        found = self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def wait(self, script: str, seconds: float = 60) -> Any:
        """Wait until a script's value is true."""
        end = time.monotonic() + seconds
        while not (found := self.run(script)):
            if time.monotonic() > end:
                pytest.fail(f"not within {seconds} s: {script}\n{self.text('body')}")
            time.sleep(0.02)
        return found

    def open(self, url: str) -> None:
        self.events.clear()
        self.send("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def text(self, selector: str) -> str:
        """An element's text, as it is seen."""
        return self.run(f"document.querySelector({json.dumps(selector)}).innerText")

    def fill(self, selector: str, text: str) -> None:
        """Put a text into a field, or choose an option."""
        self.run(
            f"{{ const field = document.querySelector({json.dumps(selector)});"
            f"field.value = {json.dumps(text)};"
            "for (const name of ['input', 'change']) "
            "field.dispatchEvent(new Event(name, { bubbles: true })); }"
        )

    def click(self, selector: str) -> None:
        self.run(f"document.querySelector({json.dumps(selector)}).click()")

    def screen(self, width: int, height: int, scheme: str = "light") -> None:
        """Set its size and color scheme."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.send("Emulation.setEmulatedMedia", features=[feature])

    def urls(self) -> list[str]:
        """What was asked for, of whatever host."""
        self.run("0")
        return [
            said["request"]["url"]
            for name, said in self.events
            if name == "Network.requestWillBeSent"
        ]

    def complaints(self) -> list[Any]:
        """Errors and warnings of the console, and what a policy has kept from being done."""
        self.run("0")
        return [
            said
            for name, said in self.events
            if name in ("Log.entryAdded", "Runtime.exceptionThrown")
            or (name == "Runtime.consoleAPICalled" and said["type"] in ("error", "warning"))
        ]

    def choose(self, model: str) -> None:
        """Choose a model in the page's form."""
        self.wait(f"!!document.querySelector('#try-model option[value={json.dumps(model)}]')")
        self.fill("#try-model", model)

    def ask(self, model: str, **fields: str) -> None:
        """Ask a model in the page's form, and wait for what is shown."""
        if self.run("document.querySelector('#try-model').value") != model:
            self.choose(model)
        for name, text in fields.items():
            self.fill(f"#try-{name}", text)
        self.run("document.querySelector('#try-answer').replaceChildren()")
        self.click("#try-send")
        self.wait("document.querySelector('#try-answer').children.length > 0")


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: Any) -> Iterator[str]:
    """The address of a browser's DevTools."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
    if found is None:
        pytest.skip("no chromium is here: apt-get install chromium")
    home = tmp_path_factory.mktemp("chromium")
    process = subprocess.Popen(
        [
            found,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--remote-debugging-port=0",
            f"--user-data-dir={home}",
            "about:blank",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    port = home / "DevToolsActivePort"
    end = time.monotonic() + 120
    while not (port.exists() and port.read_text().count("\n") == 1):
        assert process.poll() is None, f"chromium ended with {process.returncode}"
        assert time.monotonic() < end, "chromium does not start"
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port.read_text().split()[0]}"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture
def tab(chromium: str) -> Iterator[Tab]:
    request = urllib.request.Request(f"{chromium}/json/new?about:blank", method="PUT")
    with urllib.request.urlopen(request, timeout=60) as answer:
        about = json.load(answer)
    with connect(about["webSocketDebuggerUrl"], max_size=None, compression=None) as socket:
        made = Tab(socket)
        made.screen(1280, 900)
        yield made
    urllib.request.urlopen(f"{chromium}/json/close/{about['id']}", timeout=60).close()


@pytest.fixture
def page(tab: Tab, server: Any) -> Tab:
    tab.open(server.url)
    tab.wait("document.querySelector('#state').textContent === 'Ready'")
    return tab


def texts(page: Tab, selector: str) -> list[str]:
    return page.run(
        f"[...document.querySelectorAll({json.dumps(selector)})].map((each) => each.textContent)"
    )


def test_it_asks_nobody_else_and_complains_of_nothing(page: Tab, server: Any) -> None:
    page.ask("classifier", text="the boat")
    page.wait("performance.getEntriesByName(new URL('stats', location).href).length > 1")
    assert {url.split("/")[2] for url in page.urls()} == {f"127.0.0.1:{server.port}"}
    assert page.complaints() == []


def test_it_may_do_nothing_but_its_own(page: Tab, server: Any) -> None:
    """The policy holds in the browser: no script in the text, no other host."""
    page.run("document.body.append(Object.assign(document.createElement('script'), {text: 'a=1'}))")
    assert page.run("typeof a") == "undefined"
    refused = "fetch('http://localhost:9/').then(() => 'sent', (error) => error.name)"
    assert page.run(refused) == "TypeError"
    told = json.dumps(page.complaints())
    assert "script-src" in told and "connect-src" in told


def test_it_shows_the_models(page: Tab, server: Any, engines: dict[str, Any]) -> None:
    page.wait("document.querySelectorAll('.model').length > 0")
    assert texts(page, ".model h3") == list(engines)
    for name, engine in engines.items():
        shown = page.text(f"[data-model={name}]")
        assert engine.task in shown and engine.precision in shown and engine.device in shown
        assert f"{engine.max_length} tokens" in shown
        assert engine.provider in shown and f"{engine.threads} thread" in shown
        if engine.labels:
            assert ", ".join(engine.labels) in shown
    page.wait(f"document.querySelectorAll('#plots-model option').length === {len(engines) + 1}")


def test_plots_get_points(page: Tab, server: Any) -> None:
    for i in range(20):
        server.post("/models/classifier/predict", {"batch": f"the boat {i}"})
    server.post("/models/classifier/predict", {"batch": 5})
    server.post("/models/classifier/predict", {"batch": "the boat", "timeout": 0.0})
    page.wait("/m?s$/.test(document.querySelector('#tile-p95').textContent)")
    for plot in range(4):
        path = (
            f"document.querySelectorAll('.plot')[{plot}].querySelector('.line').getAttribute('d')"
        )
        assert page.wait(path).startswith("M")
        assert "NaN" not in page.run("document.querySelector('#plots').innerHTML")
    assert page.text("#tile-p95").endswith(("ms", "s"))
    assert page.text("#tile-requests").endswith("/s")
    page.fill("#plots-model", "reader")
    page.wait(
        "performance.getEntriesByName(new URL('stats?model=reader', location).href).length > 0"
    )
    page.wait("document.querySelector('[data-model=classifier] .batches').children.length > 0")


def test_classification(page: Tab, engines: dict[str, Any]) -> None:
    page.ask("classifier", text="the boat")
    expected = engines["classifier"].predict("the boat")
    assert page.text("#try-answer .big") == expected.label
    shown = texts(page, "#try-answer .bars > span")
    ranked = sorted(expected.scores.items(), key=lambda one: -one[1])
    assert shown == [part for name, score in ranked for part in (name, f"{score:.4f}")]
    assert "tokens" in page.text("#try-took") and "ms" in page.text("#try-took")


def test_regression_of_a_pair(page: Tab, engines: dict[str, Any]) -> None:
    page.ask("ranker", text=PAIR[0], second=PAIR[1])
    assert float(page.text("#try-answer .big")) == engines["ranker"].predict([PAIR])[0].score


@pytest.mark.parametrize("words", [False, True])
def test_tagging(page: Tab, engines: dict[str, Any], words: bool) -> None:
    engine = engines["tagger"]
    # Characters beyond UTF-16's first plane come before the words that are marked.
    text = "🚤 the boat the sea"
    page.choose("tagger")
    expected = engine.predict(text)
    if words:
        page.click("#try-words")
        expected = engine.predict([text.split()])[0]
        text = text.replace(" ", "\n")
    page.ask("tagger", text=text)
    assert texts(page, "#try-answer .words li") == [
        word + tag for word, tag in zip(expected.words, expected.tags, strict=True)
    ]
    marked = texts(page, "#try-answer mark")
    assert marked == [each.text + each.label for each in expected.entities]
    assert expected.entities, "the test needs an entity"


def test_question_answering(page: Tab, engines: dict[str, Any]) -> None:
    context = "🚤 the sea the boats"
    page.ask("reader", text="the boat", second=context)
    expected = engines["reader"].predict([("the boat", context)])[0]
    assert page.text("#try-answer .big") == expected.text
    assert texts(page, "#try-answer mark") == [context[expected.start : expected.end]]
    assert texts(page, "#try-answer .quote") == [context]
    assert texts(page, "#try-answer .bars > span")[1] == f"{expected.score:.4f}"


@pytest.fixture(scope="session")
def unusual(hugging_once: Any) -> dict[str, Path]:
    """Tiny models of the tasks that `models` has none of: "filler" (masks), "follower" (next
    sentences)."""
    data = Path(__file__).parents[1] / "data" / "huggingface_reference.json"
    cases = json.loads(data.read_text(encoding="utf-8"))
    found = {}
    for name, architecture in (
        ("filler", "BertForMaskedLM"),
        ("follower", "BertForNextSentencePrediction"),
    ):
        case, random = cases[architecture], np.random.default_rng(len(name))
        weights = {
            tensor: 0.3 * random.standard_normal(shape, np.float32)
            for tensor, shape in case["tensors"].items()
        }
        found[name] = hugging_once.write(case["config"], weights, name=name)
    return found


def test_masks_and_next_sentences(
    tab: Tab, start: Callable[..., Any], unusual: dict[str, Path]
) -> None:
    from bertrt import Engine

    server = start(*(f"{name}={path}" for name, path in unusual.items()))
    tab.open(server.url)
    tab.wait("document.querySelector('#state').textContent === 'Ready'")
    text = "the [MASK] the [MASK]"
    with Engine.load(unusual["filler"]) as engine:
        expected = engine.predict(text).candidates
    tab.ask("filler", text=text)
    assert texts(tab, "#try-answer p") == ["Mask 1", "Mask 2"]
    assert texts(tab, "#try-answer .bars > span") == [
        part for own in expected for part in (own.token, f"{own.score:.4f}")
    ]
    tab.ask("filler", text="the [MASK]")
    assert texts(tab, "#try-answer p") == ["The mask"]
    # What cannot be answered is told, and the page goes on.
    tab.ask("filler", text="no such thing")
    assert "mask" in tab.text("#try-answer").lower()
    with Engine.load(unusual["follower"]) as engine:
        for pair in (PAIR, ("the sea", "boats"), ("boats", "the sea"), ("the", "")):
            if not pair[1]:
                tab.ask("follower", text=pair[0], second=pair[1])
                assert "input[0]" in tab.text("#try-answer")
                continue
            result = engine.predict([pair])[0]
            tab.ask("follower", text=pair[0], second=pair[1])
            told = "It follows" if result.is_next else "It does not follow"
            assert tab.text("#try-answer .big") == told
            shown = texts(tab, "#try-answer .bars > span")
            assert shown == ["follows", f"{result.score:.4f}"]
    complaints = [said for said in tab.complaints() if "422" not in json.dumps(said)]
    assert complaints == []


def test_embedding(page: Tab, engines: dict[str, Any]) -> None:
    one, other = "A cat sleeps on the sofa.", "A kitten naps on the couch."
    page.ask("embedder", text=one, second=other)
    a, b = (result.vector for result in engines["embedder"].predict([one, other]))
    name, value = page.text("#try-answer .big").split()
    cosine = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert name == "cosine" and float(value) == pytest.approx(cosine, abs=1e-4)
    shown = [float(text) for text in page.text("#try-answer pre").split()]
    np.testing.assert_allclose(shown, a[:8], atol=1e-5)
    page.ask("embedder", text=one, second="")
    assert page.run("document.querySelector('#try-answer .big')") is None


def test_curl_line_is_the_request(page: Tab, server: Any) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl is here")
    text = 'it\'s "the" $(boat) `sea` \\ 🚤'
    page.ask("classifier", text=text, second="")
    shown = page.text("#try-answer .bars")
    answer = subprocess.run(
        ["sh", "-c", page.run("document.querySelector('#curl').textContent")],
        capture_output=True,
        check=True,
        timeout=60,
    )
    result = json.loads(answer.stdout)["results"][0]
    assert f"{result['score']:.4f}" in shown
    status, body, _ = server.post("/models/classifier/predict", {"batch": [text]})
    assert status == 200 and body["results"] == [result]


def test_markup_in_texts_is_text(page: Tab) -> None:
    attack = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>'
    for model, fields in (
        ("classifier", {"text": attack}),
        ("tagger", {"text": attack}),
        ("reader", {"text": attack, "second": attack}),
    ):
        page.ask(model, **fields)
        assert "<img" in page.text("#curl")
        assert page.run("document.querySelectorAll('main img, main script').length") == 0
    assert page.run("typeof window.hit") == "undefined"
    assert page.complaints() == []


def test_markup_in_labels_is_text(
    tab: Tab, start: Callable[..., Any], models: dict[str, Path], tmp_path: Path
) -> None:
    label = "<img src=x onerror=window.hit=1>"
    copy = tmp_path / "marked"
    shutil.copytree(models["classifier"], copy)
    config = json.loads((copy / "config.json").read_text())
    config |= {"id2label": {"0": label, "1": "good"}, "label2id": {label: 0, "good": 1}}
    (copy / "config.json").write_text(json.dumps(config))
    tab.open(start(f"marked={copy}").url)
    tab.ask("marked", text="the boat")
    assert label in tab.text("#try-answer") and label in tab.text(".model")
    assert tab.run("document.querySelectorAll('main img').length") == 0
    assert tab.run("typeof window.hit") == "undefined"
    assert tab.complaints() == []


def test_an_input_that_cannot_be_answered_is_told(page: Tab, server: Any) -> None:
    page.ask("reader", text="the boat", second="")
    status, body, _ = server.post("/models/reader/predict", {"batch": [["the boat", ""]]})
    assert status == 422
    assert page.text("#try-answer [role=alert]") == body["error"]


def test_the_key(tab: Tab, start: Callable[..., Any], models: dict[str, Path]) -> None:
    server = start(f"classifier={models['classifier']}", "--api-key", "right")
    tab.open(server.url)
    tab.wait("!document.querySelector('#key').hidden")
    assert tab.text("#state") == "API key needed"
    assert tab.run("document.querySelector('#trouble').hidden")
    tab.fill("#key-text", "wrong")
    tab.click("#key button")
    tab.wait("!document.querySelector('#trouble').hidden")
    assert "API key is missing or wrong" in tab.text("#trouble")
    tab.fill("#key-text", "right")
    tab.click("#key button")
    tab.wait("document.querySelector('#state').textContent === 'Ready'")
    assert tab.run("document.querySelector('#key').hidden && trouble.hidden")
    tab.ask("classifier", text="the boat")
    assert tab.text("#try-answer .big") in ("bad", "good")
    assert "right" not in tab.text("#curl") and "$BERTRT_API_KEY" in tab.text("#curl")
    # In no address, in no storage, in no field.
    assert not [url for url in tab.urls() if "right" in url]
    kept = "JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])"
    assert "right" not in tab.run(kept)
    assert tab.run("document.querySelector('#key-text').value") == ""
    tab.click("#forget")
    tab.wait("!document.querySelector('#key').hidden")


def test_draining_and_the_end_are_told(
    tab: Tab, start: Callable[..., Any], models: dict[str, Path]
) -> None:
    server = start(f"classifier={models['classifier']}", "--drain-seconds", "300")
    tab.open(server.url)
    tab.wait("document.querySelector('#state').textContent === 'Ready'")
    # A request whose body is not there yet holds the server up.
    with server.socket() as held:
        held.sendall(
            b"POST /models/classifier/predict HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n"
            b"expect: 100-continue\r\n\r\n"
        )
        assert held.recv(100).startswith(b"HTTP/1.1 100")
        server.process.send_signal(signal.SIGTERM)
        tab.wait("document.querySelector('#state').textContent.startsWith('Draining')")
        server.process.kill()
    tab.wait("document.querySelector('#state').textContent.startsWith('Gone')")


def test_a_model_that_is_not_loaded_is_told(
    tab: Tab, start: Callable[..., Any], models: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "broken").mkdir()
    server = start(f"good={models['classifier']}", "--repository", str(tmp_path))
    tab.open(server.url)
    tab.wait("document.querySelectorAll('.model').length === 2")
    assert "unavailable" in tab.text("[data-model=broken]")
    tab.wait("document.querySelectorAll('#try-model option').length === 1")


def test_it_rests_while_hidden(page: Tab) -> None:
    # A tab's visibility cannot be set from outside in a headless browser; its word for it can.
    page.run(
        "window.begun = window.ended = 0; const real = window.fetch;"
        "window.fetch = (...all) => { begun++; return real(...all).finally(() => ended++); };"
        "Object.defineProperty(document, 'hidden', { get: () => window.away })"
    )
    page.wait("window.begun > 1")
    page.run("window.away = true; document.dispatchEvent(new Event('visibilitychange'))")
    page.wait("window.begun === window.ended")
    before = page.run("window.begun")
    page.run("new Promise((done) => setTimeout(done, 2500))")
    assert page.run("window.begun") == before
    page.run("window.away = false; document.dispatchEvent(new Event('visibilitychange'))")
    page.wait(f"window.begun > {before}")


@pytest.mark.parametrize("path", ["/", "/docs"])
@pytest.mark.parametrize("width", [320, 390, 768])
def test_no_width_scrolls_sideways(tab: Tab, server: Any, path: str, width: int) -> None:
    tab.screen(width, 800)
    tab.open(server.url + path)
    if path == "/":
        tab.ask("classifier", text="word" * 100)
    assert tab.run("document.documentElement.scrollWidth") <= width


def test_it_can_be_used_by_keyboard_and_reader(page: Tab) -> None:
    page.wait("document.querySelectorAll('#try-text').length === 1")
    unnamed = page.run(
        "[...document.querySelectorAll('input, select, textarea')]"
        ".filter((each) => !each.labels.length).map((each) => each.id)"
    )
    assert unnamed == []
    assert page.run(
        "[...document.querySelectorAll('svg')].every((each) => each.getAttribute('aria-label'))"
    )
    page.run("document.querySelector('#try-text').focus()")
    for kind in ("keyDown", "keyUp"):
        page.send("Input.dispatchKeyEvent", type=kind, modifiers=2, key="Enter", code="Enter")
    page.wait("document.querySelector('#try-took').textContent !== ''")
    # Whatever is focused has an outline.
    page.send("Input.dispatchKeyEvent", type="keyDown", key="Tab", code="Tab")
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
