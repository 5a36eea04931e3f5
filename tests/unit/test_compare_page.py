"""The page's server over real HTTP: blind, durable, escaped, and closed to whoever has no link."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.testclient import TestClient

from genopt.cli import main
from genopt.compare.app import create_app
from genopt.compare.ballot_box import BallotBox
from genopt.compare.voting import OpenPage, taking_votes
from genopt.errors import SpecError, StorageError
from genopt.quality.comparison import Comparison, ComparisonFolder, Question, TextAnswer
from genopt.report.assemble import assemble
from genopt.report.write import write_reports
from genopt.store.append_log import AppendLog
from genopt.store.run_folder import RunFolder
from genopt.testing.fake_run import WINNER, write_fake_run

HOSTILE = "<script>alert('x')</script><img src=x onerror=alert(1)>"
PNG = b"\x89PNG\r\n\x1a\n"
HTTP = httpx.Client()


def teardown_module() -> None:
    HTTP.close()


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return write_fake_run(tmp_path / "run")


@pytest.fixture
def comparison(run: RunFolder) -> ComparisonFolder:
    """Three questions: plain, hostile and empty texts."""
    texts = [("Hello?", "from the original", "from the other"), (HOSTILE, HOSTILE, HOSTILE[::-1]), ("Nothing?", "", "something")]
    found = ComparisonFolder(run.path / "compare" / "original-vs-quick")
    found.write(Comparison(a="original", b=WINNER, questions=tuple(
        Question(id=f"q{number}", prompt=prompt, a=TextAnswer(text=a, tokens=11), b=TextAnswer(text=b, cut=True))
        for number, (prompt, a, b) in enumerate(texts)
    )))  # fmt: skip
    return found


@pytest.fixture
def page(run: RunFolder, comparison: ComparisonFolder) -> Iterator[OpenPage]:
    with taking_votes(run, comparison, host="127.0.0.1", port=0, raters=2) as (_, found):
        yield found


def cast(link: str, position: int, said: str) -> httpx.Response:
    return HTTP.post(f"{link}/votes", json={"position": position, "said": said})


def finished(link: str, *said: str) -> Any:
    for position, word in enumerate(said):
        assert cast(link, position, word).status_code == 200
    answer = HTTP.post(f"{link}/finish")
    assert answer.status_code == 200
    return answer.json()


def test_each_rater_votes_and_sees_the_names_at_the_end(page: OpenPage) -> None:
    first, second = (link.url for link in page.links)
    assert HTTP.get(f"{first}/sheet").json() == {"said": [None, None, None], "finished": False}
    found = finished(first, "left", "tie", "bad")
    assert {found["a"], found["b"]} == {"original", WINNER}
    assert sum(found["votes"].values()) == 3
    assert sorted(found["yours"].values())[1:] == ["bad", "tie"]
    assert found["raters"] == [{**found["raters"][0], "rater": "rater 1", "votes": 3, "finished": True}]
    assert HTTP.get(f"{first}/result").json() == found
    assert HTTP.get(f"{second}/sheet").json()["finished"] is False
    assert finished(second, "left", "right", "right")["agreement"]["pairs"] == 3


def test_nothing_tells_the_variants_apart_before_the_end(page: OpenPage, comparison: ComparisonFolder) -> None:
    link = page.links[0].url
    seen = [HTTP.get(link), HTTP.get(f"{link}/sheet"), *(HTTP.get(f"{link}/questions/{number}") for number in range(3))]
    seen += [cast(link, 0, "left"), HTTP.get(f"{link}/result"), HTTP.post(f"{link}/finish")]
    assert [answer.status_code for answer in seen] == [200] * 6 + [409, 409]
    for answer in seen:
        assert WINNER not in answer.text
        assert "original" not in answer.text.replace("from the original", "")
        assert "tokens" not in answer.text
    questions = [answer.json() for answer in seen[2:5]]
    assert all(question["left"].keys() == question["right"].keys() == {"kind", "text", "cut"} for question in questions)
    assert sorted(question["prompt"] for question in questions) == sorted(["Hello?", HOSTILE, "Nothing?"])


def test_hostile_text_travels_as_data_under_a_policy_that_runs_nothing_else(page: OpenPage) -> None:
    link = page.links[0].url
    answers = [HTTP.get(f"{link}/questions/{number}") for number in range(3)]
    assert {answer.headers["content-type"] for answer in answers} == {"application/json"}
    assert HOSTILE in {answer.json()["prompt"] for answer in answers}
    html = HTTP.get(link)
    policy = html.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert policy.count("sha256-") == 2
    assert html.headers["referrer-policy"] == "no-referrer"
    assert html.headers["x-content-type-options"] == "nosniff"
    assert html.headers["cache-control"] == "no-store"
    assert html.headers["content-type"].startswith("text/html")
    assert not re.search(r"(?:src|href)=|url\(|@import|https?:|innerHTML|insertAdjacentHTML|outerHTML|document\.write| on\w+=", html.text)
    everything = [HTTP.get(link), HTTP.get(f"{link}/sheet"), HTTP.get(f"{link}x"), cast(link, 9, "left")]
    assert {answer.headers["content-security-policy"] for answer in everything} == {policy}


def test_a_vote_posted_twice_counts_once_and_the_last_one_wins(page: OpenPage, comparison: ComparisonFolder) -> None:
    link = page.links[0].url
    for said in ("left", "left", "left", "tie"):
        assert cast(link, 1, said).json() == {"position": 1, "said": said}
    assert [vote.choice for vote in comparison.ballots().votes] == ["tie"]
    assert HTTP.get(f"{link}/sheet").json()["said"] == [None, "tie", None]
    finished(link, "left", "right", "bad")
    closed = cast(link, 1, "left")
    assert (closed.status_code, closed.json()["error"]["message"]) == (409, "Your votes are closed, because you have seen the names.")
    assert HTTP.get(f"{link}/sheet").json()["said"] == ["left", "right", "bad"]


def test_two_raters_who_vote_at_once_are_both_kept(page: OpenPage, comparison: ComparisonFolder) -> None:
    start = threading.Barrier(6)
    codes: list[int] = []

    def vote(link: str, position: int) -> None:
        start.wait()
        codes.append(cast(link, position, "left").status_code)

    threads = [threading.Thread(target=vote, args=(link.url, position)) for link in page.links for position in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codes == [200] * 6
    assert {(vote.rater, vote.question) for vote in comparison.ballots().votes} == {(f"rater {n}", f"q{k}") for n in (1, 2) for k in range(3)}


@pytest.mark.parametrize("path", ["", "r", "r/", "r/x", "r/x/sheet", "r/x/questions/0", "r/x/images/0/left", "r/x/result", "docs"])
def test_without_a_link_there_is_nothing(page: OpenPage, path: str) -> None:
    parts = urlsplit(page.links[0].url)
    answer = HTTP.get(f"{parts.scheme}://{parts.netloc}/{path}")
    assert answer.status_code == 404
    assert "Hello?" not in answer.text
    assert HTTP.post(f"{parts.scheme}://{parts.netloc}/r/guess/votes", json={"position": 0, "said": "left"}).status_code == 404
    assert HTTP.post(f"{parts.scheme}://{parts.netloc}/r/guess/finish").status_code == 404


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", 422), (b"{}", 422), (b"[]", 422), (b"not json", 422), (b'{"position": 0, "said": "a"}', 422),
        (b'{"position": -1, "said": "left"}', 422), (b'{"position": 3, "said": "left"}', 404),
        (b'{"position": 0, "said": "left", "rater": "rater 2"}', 422), (b"\xff\xfe", 422),
        (b'{"position": 0, "said": "' + b"x" * 5_000 + b'"}', 413),
    ],
)  # fmt: skip
def test_what_is_no_vote_is_refused_in_one_sentence(page: OpenPage, comparison: ComparisonFolder, body: bytes, code: int) -> None:
    answer = HTTP.post(f"{page.links[0].url}/votes", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == code
    assert answer.json()["error"]["message"].endswith(".")
    assert "Traceback" not in answer.text
    assert comparison.ballots().votes == ()


def test_an_endless_vote_is_cut_short(page: OpenPage) -> None:
    parts = urlsplit(page.links[0].url)
    connection = HTTPConnection(str(parts.hostname), parts.port, timeout=10)
    connection.putrequest("POST", f"{parts.path}/votes")
    connection.putheader("Content-Length", str(10**9))
    connection.endheaders()
    connection.send(b"x" * 2_000)
    assert connection.getresponse().status == 413
    connection.close()


def test_a_full_disk_is_said_and_nothing_counts(page: OpenPage, comparison: ComparisonFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_log: AppendLog, _record: object) -> None:
        raise StorageError("No space is left for /secret/path; free some.")

    link = page.links[0].url
    with monkeypatch.context() as patched:
        patched.setattr(AppendLog, "append", fail)
        answer = cast(link, 0, "left")
    assert answer.status_code == 507
    assert "/secret/path" not in answer.text
    assert HTTP.get(f"{link}/sheet").json()["said"][0] is None
    assert cast(link, 0, "left").status_code == 200


def test_links_and_votes_outlive_the_server(run: RunFolder, comparison: ComparisonFolder) -> None:
    with taking_votes(run, comparison, host="127.0.0.1", port=0, raters=1) as (_, before):
        cast(before.links[0].url, 1, "right")
    with taking_votes(run, comparison, host="127.0.0.1", port=0, raters=2) as (_, after):
        assert [urlsplit(link.url).path for link in after.links][:1] == [urlsplit(before.links[0].url).path]
        assert HTTP.get(f"{after.links[0].url}/sheet").json()["said"] == [None, "right", None]
        assert len(after.links) == 2


def test_pictures_are_shown_by_the_same_page(run: RunFolder) -> None:
    folder = ComparisonFolder(run.path / "compare" / "pictures")
    one, other = folder.add_image(PNG + b"one"), folder.add_image(PNG + b"other")
    folder.write(Comparison(a="original", b=WINNER, questions=(Question(id="q0", prompt="A lighthouse", a=one, b=other),)))
    with taking_votes(run, folder, host="127.0.0.1", port=0, raters=1) as (_, page):
        link = page.links[0].url
        question = HTTP.get(f"{link}/questions/0").json()
        assert question["left"] == {"kind": "image", "address": "images/0/left"}
        pictures = [HTTP.get(f"{link}/{question[side]['address']}") for side in ("left", "right")]
        assert {picture.content for picture in pictures} == {PNG + b"one", PNG + b"other"}
        assert {picture.headers["content-type"] for picture in pictures} == {"image/png"}
        assert not any(one.file in str(picture.headers) or other.file in str(picture.headers) for picture in pictures)
        assert HTTP.get(f"{link}/images/1/left").status_code == 404
        assert HTTP.get(f"{link}/images/0/middle").status_code == 422
        (folder.path / "images" / one.file).unlink()
        assert sorted(HTTP.get(f"{link}/images/0/{side}").status_code for side in ("left", "right")) == [200, 404]


def test_nothing_beside_a_picture_tells_its_variant(tmp_path: Path) -> None:
    folder = ComparisonFolder(tmp_path / "compare")
    one, other = folder.add_image(PNG + b"one"), folder.add_image(PNG + b"of another length")
    os.utime(folder.image(one), (1e9, 1e9))  # a variant's pictures are all written before those of the next one
    folder.write(Comparison(a="original", b=WINNER, questions=(Question(id="q0", prompt="A lighthouse", a=one, b=other),)))
    box = BallotBox(folder)
    client, address = TestClient(create_app(box, lambda: pytest.fail("no result is asked for"))), f"/r/{box.raters[0].token}/images/0"
    for asked in ({}, {"Range": "bytes=0-1"}, {"If-Modified-Since": "Tue, 01 Jan 2019 00:00:00 GMT"}):
        pictures = [client.get(f"{address}/{side}", headers=asked) for side in ("left", "right")]
        assert {picture.content for picture in pictures} == {PNG + b"one", PNG + b"of another length"}
        left, right = ({name: value for name, value in picture.headers.items() if name != "content-length"} for picture in pictures)
        assert left == right
        assert left["cache-control"] == "no-store"


def test_an_address_that_cannot_be_used_is_explained(run: RunFolder, comparison: ComparisonFolder) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(SpecError, match=f"Port {port} .* --port"), taking_votes(run, comparison, host="127.0.0.1", port=port, raters=1):
            pass
    with pytest.raises(SpecError, match="--host"), taking_votes(run, comparison, host="nowhere.invalid", port=0, raters=1):
        pass


def test_links_name_an_address_that_others_reach(run: RunFolder, comparison: ComparisonFolder) -> None:
    with taking_votes(run, comparison, host="0.0.0.0", port=0, raters=1) as (server, page):
        host = urlsplit(page.links[0].url).hostname
        assert host not in ("0.0.0.0", None)
        assert HTTP.get(f"http://127.0.0.1:{server.port}{urlsplit(page.links[0].url).path}/sheet").status_code == 200


# The result elsewhere


def test_the_report_has_what_people_preferred(run: RunFolder, page: OpenPage) -> None:
    assert assemble(run).human == ()
    finished(page.links[0].url, "left", "tie", "bad")
    written = write_reports(run)
    report = json.loads((run.path / "report.json").read_text(encoding="utf-8"))
    assert report["human"][0]["comparison"] == "original-vs-quick"
    assert written.human[0].judged == 3
    for name in ("report.md", "report.html"):
        text = (run.path / name).read_text(encoding="utf-8")
        assert "What people preferred" in text
        assert "<script>alert" not in text.replace("\\<script\\>alert", "")
        assert "original against quick" in text


def test_the_command_line_shows_results(run: RunFolder, page: OpenPage, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", str(run.path), "--results"]) == 0
    assert "Nobody has voted yet." in capsys.readouterr().err
    finished(page.links[0].url, "left", "tie", "bad")
    assert main(["compare", str(run.path), "--results"]) == 0
    shown = capsys.readouterr().err
    assert "original against quick" in shown
    assert all(phrase in shown for phrase in ("rater 1", "3 of 3", "both bad", "Hello?"))
    assert main(["compare", str(run.path), "original", "quick", "--results", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(item["a"], item["b"], item["judged"]) for item in found] == [("original", "quick", 3)]
    assert main(["compare", str(run.path), "baseline", "quick", "--results", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
