"""The page in a real Chromium, over the real server with tiny random models; rare answers are put in by hand."""

import json
import os
import re
import shutil
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from threading import Thread

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, Route, expect, sync_playwright

from pdfs import save_pdf
from served import running, service_of
from shoulders.engine.scheduler import Scheduler
from shoulders.serving.app import PAGE
from shoulders.serving.config import add_key

CHROMIUM = os.environ.get("SHOULDERS_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None
)
QUIET = ("--disable-background-networking", "--disable-component-update", "--disable-sync", "--no-first-run")
ROOT = ("--no-sandbox",) if hasattr(os, "geteuid") and os.geteuid() == 0 else ()  # the sandbox refuses root
QUESTION = "What lives in Bern?"
PHONE = {"width": 360, "height": 740}

in_browser = pytest.mark.skipif(
    not CHROMIUM, reason="there is no Chromium: apt-get install chromium, or name one in SHOULDERS_CHROMIUM"
)


def test_page_has_no_inline_code_and_names_nothing_outside():
    texts = {file.name: file.read_text() for file in PAGE.iterdir()}
    for name, text in texts.items():
        assert re.findall(r"https?://(?!www\.w3\.org/)", text) == [], name
    assert re.findall(r"\s(on\w+|style)=|<style|<script(?! type=\"module\" src)", texts["index.html"]) == []
    named = re.findall(r'(?:src|href)="page/([^"]+)"', texts["index.html"])
    imported = [name for text in texts.values() for name in re.findall(r'from "\./([^"]+)"', text)]
    assert {*named, *imported, "index.html"} == set(texts)


def test_page_puts_no_html_together():
    for file in PAGE.glob("*.js"):
        assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", file.read_text()) == []


@pytest.fixture(scope="module")
def browser():
    # Playwright's loop counts as running in this thread until it ends: not for longer than these tests need it.
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=[*QUIET, *ROOT])
        yield found
        found.close()


@pytest.fixture
def opened(browser: Browser):
    """Opens the page of a server; no page may ask elsewhere, or break its content security policy."""
    contexts, faults = [], []

    def open_page(url: str, **how: object) -> Page:
        context = browser.new_context(permissions=["clipboard-read", "clipboard-write"], **how)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: faults.append(said.text) if "Failed to load" not in said.text else None)
        page.on("request", lambda asked: None if asked.url.startswith((url, "blob:")) else faults.append(asked.url))
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [fault for fault in faults if "server responded" not in fault] == []


@pytest.fixture
def page(opened, server) -> Page:
    return opened(server.url)


@pytest.fixture
def unhurried(monkeypatch):
    """Makes a step of the server's engine take as long as one of a larger model."""
    step = Scheduler.step

    def slow_step(scheduler: Scheduler) -> bool:
        time.sleep(0.03)
        return step(scheduler)

    monkeypatch.setattr(Scheduler, "step", slow_step)


def choose(page: Page, *names: str) -> None:
    page.locator("#models li").first.wait_for()
    for box in reversed(page.locator("#models input:checked").all()):
        box.uncheck()
    for name in names:
        page.locator(f"#models input[value={name}]").check()


def ask(page: Page, *names: str, question: str = QUESTION, **settings: object) -> None:
    """Ask, and wait for all answers."""
    begin(page, *names, question=question, **settings)
    expect(page.get_by_role("button", name="Stop")).to_be_disabled(timeout=30_000)
    expect(page.locator("[aria-busy=true]")).to_have_count(0)  # shown, too: a frame later


def begin(page: Page, *names: str, question: str = QUESTION, **settings: object) -> None:
    choose(page, *names)
    page.get_by_role("textbox", name="Question").fill(question)
    for label, value in settings.items():
        page.locator(f"#{label}").fill(str(value))
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.locator(".column")).to_have_count(len(names))


def column(page: Page, name: str) -> Locator:
    return page.get_by_role("article", name=name, exact=True)


def figure(page: Page, name: str, what: str) -> str:
    return column(page, name).locator(f"[data-figure={what}]").inner_text()


ANSWER = {
    "type": "answer",
    "answer": "Tolkien",
    "said": "Tolkien",
    "probability": 0.5,
    "threshold": 0,
    "passes": 1,
    "passages": [],
    "read": [],
    "found": None,
    "candidates": [],
    "stage": None,
    "doubt": "",
    "usage": {"completion_tokens": 2},
}


def stream_of(*events: object, end: str = "data: [DONE]\n\n") -> dict:
    """A response of `/v1/answer`, to be put in the place of the server's."""
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + end
    return {"status": 200, "content_type": "text/event-stream", "body": body}


def put_in(page: Page, *responses: dict) -> None:
    """Answer questions with these responses in turn, and from then on with the last."""
    left = list(responses)

    def respond(route: Route) -> None:
        route.fulfill(**(left.pop(0) if len(left) > 1 else left[0]))

    page.route("**/v1/answer", respond)


@in_browser
@pytest.mark.slow
class TestAnswers:
    def test_columns_show_what_the_server_answers(self, page, http):
        names = ("bare", "prefix", "twice", "textual", "cascade")
        ask(page, *names, longest=6)
        for name in names:
            told = http.post("/v1/answer", json={"model": name, "question": QUESTION, "max_tokens": 6}).json()
            last = column(page, name).locator(".said").last
            assert last.evaluate("element => element.textContent") == told["said"]
            assert figure(page, name, "tokens") == str(told["usage"]["completion_tokens"])
            assert figure(page, name, "passes") == str(told["passes"])
            assert re.fullmatch(r"\d+\.\d+ s", figure(page, name, "first"))
            assert re.fullmatch(r"\d+\.\d+ s", figure(page, name, "seconds"))
        expect(column(page, "cascade")).to_contain_text("stage 2")

    def test_first_pass_stands_beside_the_second(self, page, http):
        ask(page, "bare", "twice", "textual", longest=6)
        first = http.post("/v1/answer", json={"model": "twice:first", "question": QUESTION, "max_tokens": 6}).json()
        passes = column(page, "twice").locator(".pass")
        assert passes.locator("h4").all_inner_texts() == ["First pass", "Second pass"]
        assert passes.first.locator(".said").evaluate("element => element.textContent") == first["said"]
        assert column(page, "bare").locator(".pass").count() == 0
        assert column(page, "textual").locator(".candidates li").count() == 3

    def test_same_seed_same_text(self, page):
        texts = []
        for seed in (7, 7, 8):
            ask(page, "bare", "prefix", temperature=1, seed=seed, longest=12)
            texts.append(page.locator(".said").all_inner_texts())
        assert texts[0] == texts[1] != texts[2]

    def test_passages_that_were_read_and_found(self, page, http):
        ask(page, "reader", "unsure")
        told = http.post("/v1/answer", json={"model": "reader", "question": QUESTION}).json()
        read = column(page, "reader").locator(".evidence > .passages > li")
        assert [line.split("\n")[0] for line in read.all_inner_texts()] == [one["title"] for one in told["read"]]
        expect(column(page, "unsure")).to_contain_text("No answer")
        expect(column(page, "unsure")).to_contain_text("below the threshold of 100.0%")

    def test_stopping_frees_the_server(self, page, server, unhurried):
        begin(page, "bare", "prefix", "suffix", longest=200)
        page.keyboard.press("Escape")
        expect(page.locator(".state", has_text="Stopped").first).to_be_visible()
        expect(page.get_by_role("button", name="Stop")).to_be_disabled()
        with server.http() as http:
            page.wait_for_timeout(500)
            assert "shoulders:requests_running 0" in http.get("/metrics").text
        column(page, "bare").get_by_role("button", name="Try again").click()
        expect(page.locator(".state", has_text="Answering")).to_have_count(1)
        page.get_by_role("button", name="Stop").click()
        expect(page.locator(".state", has_text="Stopped")).to_have_count(3)

    def test_documents_are_uploaded_and_asked(self, page, tmp_path):
        save_pdf(tmp_path / "zoo.pdf", [["On zoos."], ["The zoo of Bern has a bear."]])
        page.locator("#models li").first.wait_for()
        page.locator("#file").set_input_files(tmp_path / "zoo.pdf")
        expect(page.locator("#document-chosen")).to_contain_text("zoo.pdf 1 passage")
        ask(page, "bare", "infix", question="Which zoo has a bear?")
        expect(column(page, "infix").locator(".evidence")).to_contain_text("page 2")
        page.get_by_role("button", name="Remove", exact=True).click()
        page.get_by_role("button", name="Paste text").click()
        page.locator("#paste-value").fill("In Chur lives an ibex.")
        page.get_by_role("button", name="Use this text").click()
        expect(page.locator("#document-chosen")).to_contain_text("1 passage")
        (tmp_path / "empty.txt").write_text(" ")
        page.get_by_role("button", name="Remove", exact=True).click()
        page.locator("#file").set_input_files(tmp_path / "empty.txt")
        expect(page.locator("#document-error")).to_contain_text("empty.txt")

    def test_curl_does_the_same(self, page):
        ask(page, "prefix", question='Who\'s $HOME and "why"?', longest=6)
        column(page, "prefix").get_by_role("button", name="Copy as curl").click()
        expect(page.locator("#toast")).to_have_text("Command copied")
        command = page.evaluate("navigator.clipboard.readText()")
        told = json.loads(subprocess.run(["sh", "-c", command], capture_output=True, check=True, text=True).stdout)
        assert told["said"] == column(page, "prefix").locator(".said").evaluate("element => element.textContent")


@in_browser
@pytest.mark.slow
class TestText:
    def test_html_is_text(self, page):
        html = '<img src=x onerror="document.title=1"><script>document.title=2</script>'
        passage = {"title": html, "text": f"{html} end", "score": 1, "read": True, "page": None}
        answer = {**ANSWER, "answer": html, "said": html, "passages": [passage], "read": [passage]}
        answer |= {"found": {"read": 0, "start": 0, "end": len(html)}, "candidates": [{"text": html, "probability": 1}]}
        put_in(page, stream_of({"type": "delta", "text": html}, answer))
        ask(page, "bare", question=html)
        assert column(page, "bare").locator(".said, .title, .candidates span:first-child, mark").all_inner_texts() == [
            html,
            html,
            html,
            html,
        ]
        assert page.locator("article img").count() == 0
        assert page.title() == "shoulders"

    def test_answer_is_marked_by_whole_characters(self, page):
        text = "📖 Bücher 👩‍🚀 by Tolkien, 1937"
        start = text.index("Tolkien")
        passage = {"title": "a.pdf > page 3", "text": text, "score": 1, "read": True, "page": 3}
        found = {"read": 0, "start": start, "end": start + 7}
        put_in(page, stream_of({**ANSWER, "passages": [passage], "read": [passage], "found": found}))
        ask(page, "bare")
        expect(page.locator("mark")).to_have_text("Tolkien")
        expect(page.locator("mark")).to_be_visible()


@in_browser
@pytest.mark.slow
class TestErrors:
    def test_a_key_is_asked_for(self, opened, tmp_path, lm, saved):
        key = add_key(tmp_path / "keys.json", "tests", requests_per_minute=60)
        with running(service_of(lm, saved, ("prefix",), keys=tmp_path / "keys.json")) as server:
            page = opened(server.url)
            expect(page.get_by_role("alert")).to_contain_text("asks for an API key")
            for value, shown in (("sk-wrong", "does not accept this API key"), (key, "")):
                page.get_by_role("button", name="Enter API key").click()
                page.get_by_label("Key", exact=True).fill(value)
                page.get_by_role("button", name="Use this key").click()
                if shown:
                    expect(page.get_by_role("alert")).to_contain_text(shown)
            ask(page, "bare", "prefix", longest=4)
            assert page.locator(".column[data-state=done]").count() == 2
            assert page.evaluate("Object.keys(localStorage)") == []

    def test_a_busy_server_is_asked_again(self, page):
        busy = {"status": 429, "headers": {"Retry-After": "1"}, "json": {"error": {"message": "3 wait"}}}
        put_in(page, busy, stream_of(ANSWER))
        begin(page, "bare")
        expect(page.locator(".state")).to_contain_text("Busy, again in 1 s")
        expect(page.locator(".said")).to_have_text("Tolkien")

    def test_a_long_wait_is_left_to_the_person(self, page):
        put_in(page, {"status": 429, "headers": {"Retry-After": "90"}, "json": {"error": {"message": "3 wait"}}})
        ask(page, "bare")
        expect(column(page, "bare").locator(".error")).to_have_text(
            "The server is busy: 3 wait. It asks for 90 seconds."
        )
        put_in(page, stream_of(ANSWER))
        column(page, "bare").get_by_role("button", name="Try again").click()
        expect(page.locator(".said")).to_have_text("Tolkien")
        expect(page.locator(".column .error")).to_have_count(0)

    @pytest.mark.parametrize(
        ("response", "shown"),
        [
            (stream_of({"type": "delta", "text": "Tol"}, end=""), "The connection broke"),
            (stream_of({"type": "delta", "text": "Tol"}, {"error": {"message": "too slow"}}), "Too slow"),
            ({"status": 500, "body": "oops"}, "It answered with status 500"),
            ({"status": 404, "json": {"error": {"message": "there is no model 'bare'"}}}, "There is no model 'bare'"),
        ],
    )
    def test_what_went_wrong_is_said(self, page, response, shown):
        put_in(page, response)
        ask(page, "bare")
        expect(column(page, "bare").locator(".error")).to_contain_text(shown)
        expect(column(page, "bare").locator(".state")).to_have_text("Failed")

    def test_a_server_that_goes_away_in_the_middle(self, opened, server, unhurried):
        relay = Relay(server.url)
        page = opened(relay.url)
        begin(page, "bare", longest=200)
        expect(page.locator(".said")).not_to_be_empty()
        relay.cut()
        expect(page.locator(".column .error")).to_contain_text("The connection broke before the answer was complete")
        page.get_by_role("button", name="Try again").click()
        expect(page.locator(".column .error")).to_contain_text("The server does not answer")


@in_browser
@pytest.mark.slow
class TestComparisons:
    def test_wins_are_counted_and_filtered(self, page):
        other = {**ANSWER, "answer": "Peake", "said": "Peake"}
        put_in(page, stream_of(ANSWER), stream_of(other), stream_of(ANSWER))
        for question in ("Differs?", "Agrees?"):
            ask(page, "bare", "prefix", question=question)
            page.get_by_label("Best: bare").check()
            page.get_by_role("button", name="Save comparison").click()
        page.get_by_label("Best: prefix").check()
        page.get_by_role("button", name="Save comparison").click()  # in the place of the one before
        table = page.get_by_role("table")
        assert table.locator("tr.totals td").all_inner_texts()[:2] == ["1 won, 1 tied, 0 lost", "0 won, 1 tied, 1 lost"]
        page.reload()
        expect(table.locator("tbody tr")).to_have_count(2)
        page.get_by_label("Only where answers differ").check()
        expect(table.locator("tbody tr")).to_have_count(1)
        assert table.locator("tr.totals td").all_inner_texts()[:2] == ["1 won, 0 tied, 0 lost", "0 won, 0 tied, 1 lost"]
        page.get_by_role("button", name="Remove: Differs?").click()
        expect(page.locator("#saved-empty")).to_have_text("0 of 1 shown")

    def test_saved_comparisons_have_a_bound_and_none_is_lost(self, page):
        put_in(page, stream_of(ANSWER))
        one = {"id": "0", "question": "Q", "document": None, "saved": "2026-01-01", "answers": []}
        page.evaluate("list => localStorage.setItem('shoulders.comparisons', JSON.stringify(list))", [one] * 200)
        ask(page, "bare", "prefix")
        page.get_by_role("button", name="Save comparison").click()
        expect(page.get_by_role("alert")).to_contain_text("200 comparisons are saved, and no more are kept")
        assert page.evaluate("JSON.parse(localStorage.getItem('shoulders.comparisons')).length") == 200
        page.evaluate("localStorage.setItem('shoulders.comparisons', '{broken')")
        page.reload()
        expect(page.locator("#saved-empty")).to_contain_text("wins and losses")
        assert page.evaluate("localStorage.getItem('shoulders.comparisons.unreadable')") == "{broken"

    def test_link_holds_the_question(self, page, opened):
        ask(page, "bare", "suffix", question="50% of 1+1 = & ü?", seed=5, temperature=0.5, longest=7)
        page.get_by_role("button", name="Copy link").click()
        expect(page.locator("#toast")).to_have_text("Link copied")
        link = page.evaluate("navigator.clipboard.readText()")
        assert link == page.url
        page.goto("about:blank")
        page.goto(link)
        expect(page.locator("#models input:checked")).to_have_count(2)
        assert [box.get_attribute("value") for box in page.locator("#models input:checked").all()] == ["bare", "suffix"]
        fields = {
            name: page.locator(f"#{name}").input_value() for name in ("question", "seed", "temperature", "longest")
        }
        assert fields == {"question": "50% of 1+1 = & ü?", "seed": "5", "temperature": "0.5", "longest": "7"}
        page.goto(link.replace("m=suffix", "m=gone"))
        page.reload()
        expect(page.get_by_role("alert")).to_contain_text("does not serve gone")

    def test_exported_json_has_everything(self, page):
        ask(page, "bare", "twice", longest=4)
        with page.expect_download() as download:
            page.get_by_role("button", name="Export JSON").first.click()
        told = json.loads(Path(download.value.path()).read_text())
        assert told["question"] == QUESTION
        assert [one["model"] for one in told["answers"]] == ["bare", "twice"]
        assert told["answers"][1]["details"]["object"] == "answer"
        assert told["answers"][1]["first_pass"]["model"] == "twice:first"


@in_browser
@pytest.mark.slow
class TestAccess:
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_axe_finds_nothing_serious(self, opened, server, unhurried, scheme):
        page = opened(server.url, color_scheme=scheme)
        faults = axe(page, "empty")
        passages = [
            {"title": "A book", "text": "By Tolkien", "score": 1, "read": read, "page": 3} for read in (True, False)
        ]
        read = {**ANSWER, "passages": passages, "read": passages[:1], "found": {"read": 0, "start": 3, "end": 10}}
        none = {**ANSWER, "answer": None, "threshold": 0.9, "candidates": [{"text": "Peake", "probability": 0.1}]}
        put_in(page, stream_of(read), stream_of(none), stream_of(ANSWER, end=""), stream_of(ANSWER))
        ask(page, "bare", "prefix", "suffix", "twice")
        faults += axe(page, "answers and an error")
        page.get_by_label("Best: bare").check()
        page.get_by_role("button", name="Save comparison").click()
        faults += axe(page, "a saved comparison")
        page.unroute("**/v1/answer")
        begin(page, "bare", "prefix", "twice", longest=200)
        faults += axe(page, "answers that arrive")
        page.keyboard.press("Escape")
        for name in ("API key", "Paste text"):
            page.get_by_role("button", name=name).click()
            faults += axe(page, name)
            page.keyboard.press("Escape")
        page.set_viewport_size(PHONE)
        faults += axe(page, "phone")
        assert faults == []

    def test_phone_shows_everything_in_its_width(self, opened, server):
        page = opened(server.url, viewport=PHONE)
        ask(page, "bare", "prefix", "twice", "textual", "reader", question=f"{QUESTION} {'long' * 60}", longest=60)
        page.get_by_role("button", name="Save comparison").click()
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
        narrow = (
            "elements => elements.filter(one => one.offsetParent && one.offsetHeight < 24).map(one => one.outerHTML)"
        )
        assert page.locator("button, select, label:has(input[type=checkbox])").evaluate_all(narrow) == []

    def test_keyboard_alone(self, page):
        page.locator("#models li").first.wait_for()
        reached = []
        for _ in range(40):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.id || document.activeElement.value"))
            if reached[-1] == "question":
                page.keyboard.type(QUESTION)
            if reached[-1] == "infix":
                page.keyboard.press("Space")
        assert {"skip", "key-open", "theme", "question", "document-file", "seed", "go", "infix"} <= set(reached)
        page.keyboard.press("Control+Enter")
        expect(column(page, "infix").locator("[data-figure=tokens]")).to_have_text(re.compile(r"\d"))
        page.keyboard.press("Shift+Tab")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"

    def test_what_happens_is_said_to_screen_readers(self, page):
        put_in(page, stream_of(ANSWER))
        ask(page, "bare", "prefix")
        said = page.get_by_role("log").locator("p").all_inner_texts()
        assert said == ["Asking bare, prefix", "bare: Tolkien", "prefix: Tolkien"]

    def test_colours_follow_the_choice(self, page):
        background = "getComputedStyle(document.body).backgroundColor"
        light = page.evaluate(background)
        page.get_by_label("Colours").select_option("Dark")
        assert page.evaluate(background) != light
        page.reload()
        assert page.evaluate(background) != light

    def test_five_scaffolds_at_most(self, page):
        choose(page, "bare", "prefix", "infix", "suffix", "input", "twice")
        expect(page.locator("#models input[value=reader]")).to_be_disabled()
        page.get_by_label("Find a scaffold").fill("TWICE")
        expect(page.locator("#models li:visible")).to_have_count(1)


class Relay:
    """A relay before a server, whose connections can be cut."""

    def __init__(self, url: str) -> None:
        self.server = ("127.0.0.1", int(url.rpartition(":")[2]))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}/"
        self.ends = [self.listener]
        Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with suppress(OSError):
            while True:
                pair = self.listener.accept()[0], socket.create_connection(self.server)
                self.ends.extend(pair)
                for source, target in (pair, pair[::-1]):
                    Thread(target=self.pass_on, args=(source, target), daemon=True).start()

    def pass_on(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        for end in self.ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def axe(page: Page, state: str) -> list[str]:
    """What axe finds in a state of the page that is serious or critical."""
    found = Axe().run(page).response["violations"]
    return [
        f"{state}: {one['id']}: {node['html']}"
        for one in found
        if one["impact"] in ("serious", "critical")
        for node in one["nodes"]
    ]
