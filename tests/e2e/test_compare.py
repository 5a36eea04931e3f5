"""People compare two variants in a real browser, on a desk and on a phone, while the server is killed and comes back."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from genopt.compare.voting import taking_votes
from genopt.quality.comparison import Comparison, ComparisonFolder, Question, TextAnswer
from genopt.store.append_log import read_log
from genopt.store.run_folder import RunFolder
from genopt.testing.fake_run import WINNER, write_fake_run
from genopt.testing.plugin import write_plugin
from genopt.testing.ports import unused_port

pytestmark = pytest.mark.e2e
START_S = 60.0
ANSWER_S = 30.0
"""Longest time that the page may take for anything, on a machine that runs other tests too."""
DESK = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}
FINGER = 44
"""Least height of what a finger is to hit, in CSS pixels."""
HOSTILE = "<img src=x onerror=\"document.title='taken over'\">"
PROMPTS = ("Who are you?", f"{HOSTILE} What is this?", "Spell " + "longword" * 40, "And the last one?")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium, else the one that `playwright install chromium` fetches."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    expect.set_options(timeout=1000 * ANSWER_S)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, chromium_sandbox=os.geteuid() != 0)
        yield chromium
        chromium.close()


class Compare:
    """`genopt compare` on a run of the fake engine.

    Args:
        folder: Of the run and its surroundings.
        port: Of the page.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.run = folder / "run"
        self._folder, self._port = folder, port
        write_plugin(folder / "plugin")
        texts = {"original": "The original wrote <b>this</b>. ", WINNER: f"The quick one wrote {HOSTILE}. "}
        write_fake_run(self.run, answers=texts, stop_after=70)
        (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
        root = str(Path(__file__).parents[2])
        self._environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder / "plugin"), root])}
        self.process: subprocess.Popen[bytes] | None = None
        self.links: list[str] = []

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        command = [sys.executable, "-m", "genopt", "compare", str(self.run), "--prompts", str(self._folder / "prompts.jsonl"), "--raters", "2",
                   "--max-tokens", "80", "--port", str(self._port), "--json"]  # fmt: skip
        with (self._folder / "compare.json").open("wb") as out, (self._folder / "compare.log").open("ab") as log:
            self.process = subprocess.Popen(command, env=self._environment, stdout=out, stderr=log, cwd=self._folder)
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                self.links = [link["url"] for link in json.loads((self._folder / "compare.json").read_text())["links"]]
                if httpx.get(self.links[0]).status_code == 200:
                    return
            except (ValueError, httpx.HTTPError):
                pass
            time.sleep(0.1)  # nothing can be awaited before the server listens
        raise AssertionError(f"genopt compare did not start: {(self._folder / 'compare.log').read_text()}")

    def stop(self, number: signal.Signals) -> int:
        """Ends the server with a signal and returns its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout=60)

    def results(self) -> Any:
        """What `genopt compare RUN --results --json` prints."""
        command = [sys.executable, "-m", "genopt", "compare", str(self.run), "--results", "--json"]
        return json.loads(subprocess.run(command, env=self._environment, capture_output=True, check=True, timeout=60).stdout)

    def votes(self) -> list[dict[str, Any]]:
        """All lines of the log of votes."""
        return list(read_log(next((self.run / "compare").glob("*/votes.jsonl"))))


@pytest.fixture(scope="module")
def compare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compare]:
    found = Compare(tmp_path_factory.mktemp("compare"), unused_port())
    found.start()
    yield found
    if found.process is not None and found.process.poll() is None:
        found.process.kill()
        found.process.wait()


def png(colour: str) -> bytes:
    """A picture that is twice as wide as high."""
    stream = io.BytesIO()
    Image.new("RGB", (64, 32), colour).save(stream, "PNG")
    return stream.getvalue()


class Rater:
    """A person at a browser; whatever the page should not do is remembered.

    Args:
        page: A new page.
        link: The rater's.
    """

    def __init__(self, page: Page, link: str) -> None:
        self.page = page
        self.problems: list[str] = []
        origin = link.partition("/r/")[0]
        page.on("dialog", lambda dialog: self.problems.append(f"dialog {dialog.message}"))
        page.on("pageerror", lambda error: self.problems.append(f"error {error}"))
        page.on("console", lambda message: self.problems.append(message.text) if "ERR_CONNECTION" not in message.text else None)
        page.on("request", lambda request: None if request.url.startswith(origin) else self.problems.append(f"request {request.url}"))
        page.goto(link)

    def at(self, number: int) -> None:
        """Waits until a question is there with both answers whole."""
        expect(self.page.locator("#place")).to_have_text(f"Question {number} of {len(PROMPTS)}")
        expect(self.page.locator("body")).not_to_have_class("revealing")

    def vote(self, name: str) -> Any:
        """A button, by what it says."""
        return self.page.get_by_role("button", name=name)

    def first(self) -> str:
        """Which variant stands on the left or above, as its text tells."""
        return WINNER if self.page.locator("#left").inner_text().startswith("The quick one") else "original"


@pytest.fixture
def desk(browser: Browser, compare: Compare) -> Iterator[Rater]:
    context = browser.new_context(viewport=DESK)
    rater = Rater(context.new_page(), compare.links[0])
    yield rater
    context.close()
    assert rater.problems == []


@pytest.fixture
def phone(browser: Browser, compare: Compare) -> Iterator[Rater]:
    context = browser.new_context(viewport=PHONE, is_mobile=True, has_touch=True, device_scale_factor=2, color_scheme="dark")
    rater = Rater(context.new_page(), compare.links[1])
    yield rater
    context.close()
    assert rater.problems == []


def test_at_a_desk_with_mouse_and_keyboard_while_the_server_dies(desk: Rater, compare: Compare) -> None:
    page = desk.page
    desk.at(1)
    left, right = (page.locator(f"#{side}").bounding_box() for side in ("left", "right"))
    assert left is not None
    assert right is not None
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] <= right["x"]
    assert page.get_by_role("button", name="A is better").inner_text().split() == ["A", "is", "better", "A", "←"]
    wanted = {page.locator("#prompt").inner_text(): desk.first()}
    desk.vote("A is better").dblclick()
    desk.at(2)
    assert [vote["choice"] for vote in compare.votes()] == ["b" if desk_choice == WINNER else "a" for desk_choice in wanted.values()]
    page.keyboard.press(" ")
    page.keyboard.press("t")
    desk.at(3)
    page.reload()
    desk.at(3)
    assert compare.stop(signal.SIGKILL) == -signal.SIGKILL
    page.keyboard.press("x")
    expect(page.get_by_role("alert")).to_contain_text("Your vote is not saved yet. The server does not answer.")
    compare.start()
    page.get_by_role("button", name="Try again").click()
    desk.at(4)
    expect(page.get_by_role("alert")).to_be_hidden()
    page.keyboard.press("u")
    desk.at(3)
    expect(desk.vote("Both bad")).to_have_attribute("aria-pressed", "true")
    page.get_by_role("button", name="Next").click()
    desk.at(4)
    wanted[page.locator("#prompt").inner_text()] = "original" if desk.first() == WINNER else WINNER
    assert not re.search(rf"\b{WINNER}\b", page.content().replace("The quick one", ""))
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("heading", name="That was the last question.")).to_be_visible()
    page.get_by_role("button", name="Show the names").click()
    expect(page.locator("#decision")).to_contain_text("automatic verdict that quick is as good as original")
    rows = {row[0]: row[1] for line in page.locator("#details tr").all() if (row := line.locator("td").all_inner_texts())}
    assert set(rows) == set(PROMPTS)
    assert {prompt: rows[prompt] for prompt in wanted} == wanted
    assert sorted(rows.values()) == sorted([*wanted.values(), "tie", "both bad"])
    page.reload()
    expect(page.locator("#decision")).to_be_visible()
    assert [vote["event"] for vote in compare.votes()] == ["vote"] * 4 + ["finish"]


def test_on_a_phone_with_fingers(phone: Rater, compare: Compare) -> None:
    page = phone.page
    for number in range(1, len(PROMPTS) + 1):
        phone.at(number)
        assert page.title() == "Which answer is better?"
        assert page.locator(".answer img").count() == 0
        assert "<" in page.locator("#left").inner_text()
        boxes = [box for item in page.locator("#prompt, article, .vote").all() if (box := item.bounding_box())]
        assert len(boxes) == 7
        assert all(box["x"] >= 0 and box["x"] + box["width"] <= PHONE["width"] for box in boxes)
        first, second = boxes[1:3]
        assert first["y"] + first["height"] <= second["y"]
        assert all(box["height"] >= FINGER and box["y"] + box["height"] <= PHONE["height"] for box in boxes[3:])
        expect(page.locator("kbd").first).to_be_hidden()
        phone.vote(("Tie", "B is better", "Both bad", "Tie")[number - 1]).tap()
    page.get_by_role("button", name="Go back").tap()
    phone.at(4)
    expect(phone.vote("Tie")).to_have_attribute("aria-pressed", "true")
    phone.vote("A is better").tap()
    page.get_by_role("button", name="Show the names").tap()
    expect(page.locator("#yours")).to_contain_text("You preferred")
    box = page.locator("#result").bounding_box()
    assert box is not None
    assert box["width"] <= PHONE["width"]


def test_both_answers_appear_at_the_same_pace_whatever_their_lengths(browser: Browser, compare: Compare, tmp_path: Path) -> None:
    folder = ComparisonFolder(tmp_path / "paces")
    lengths = {"short": 300, "long": 1500}
    short, long = (TextAnswer(text=letter * length) for letter, length in zip("sl", lengths.values(), strict=True))
    folder.write(Comparison(a="original", b=WINNER, questions=(Question(id="q0", prompt="Write", a=short, b=long),)))
    with taking_votes(RunFolder(compare.run), folder, host="127.0.0.1", port=0, raters=1) as (_, opened):
        context = browser.new_context(viewport=DESK)
        rater = Rater(context.new_page(), opened.links[0].url)
        seen: list[list[int]] = []
        while not seen or max(seen[-1]) < lengths["long"]:
            shown = rater.page.locator(".answer span:first-child").evaluate_all("parts => parts.map(part => part.textContent.length)")
            seen.append(sorted(shown) if shown else [0, 0])
        context.close()
    assert len({tuple(pair) for pair in seen}) >= 5
    assert [pair for pair in seen if pair[0] != min(pair[1], lengths["short"])] == []
    assert rater.problems == []


def test_pictures_stand_side_by_side(browser: Browser, compare: Compare, tmp_path: Path) -> None:
    folder = ComparisonFolder(tmp_path / "pictures")
    red, blue = (folder.add_image(png(colour)) for colour in ("red", "blue"))
    folder.write(Comparison(a="original", b=WINNER, questions=(Question(id="q0", prompt="A colour", a=red, b=blue),)))
    with taking_votes(RunFolder(compare.run), folder, host="127.0.0.1", port=0, raters=1) as (_, opened):
        context = browser.new_context(viewport=DESK)
        rater = Rater(context.new_page(), opened.links[0].url)
        expect(rater.vote("Tie")).to_be_visible()
        boxes = [box for image in rater.page.locator(".answer img").all() if (box := image.bounding_box())]
        assert len(boxes) == 2
        assert all(box["width"] == pytest.approx(2 * box["height"], abs=1) for box in boxes)
        assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
        rater.page.keyboard.press("b")
        expect(rater.page.get_by_role("heading", name="That was the last question.")).to_be_visible()
        context.close()
    assert rater.problems == []
    assert len(folder.ballots().votes) == 1


def test_what_they_said_is_in_the_results_and_in_the_report(compare: Compare) -> None:
    assert compare.stop(signal.SIGINT) == 0
    found = compare.results()[0]
    assert [(rater["rater"], rater["votes"], rater["finished"]) for rater in found["raters"]] == [("rater 1", 4, True), ("rater 2", 4, True)]
    assert sum(found["votes"].values()) == 8
    assert found["agreement"]["pairs"] == 4
    report = json.loads((compare.run / "report.json").read_text(encoding="utf-8"))
    assert report["human"] == [found]
    assert "What people preferred" in (compare.run / "report.html").read_text(encoding="utf-8")
