"""Downloads from a real server on this machine that behaves as badly as real ones do."""

import hashlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from scoreline import cache, transfers
from scoreline.downloads import cached_path, fetch, verify
from scoreline.errors import InputError

CONTENT = hashlib.shake_256(b"weights").digest(1_000_003)
OTHER = hashlib.shake_256(b"other weights").digest(1_000_003)
SHA, MD5 = hashlib.sha256(CONTENT).hexdigest(), hashlib.md5(CONTENT).hexdigest()


class Asked(NamedTuple):
    """One request and how many bytes of content were sent for it."""

    path: str
    range: str | None
    condition: str | None
    sent: int


@dataclass
class Manner:
    """How the server behaves.

    Attributes:
        drops: after how many bytes the next answers break off.
        refusals: status of the next answers, with no content.
        hold: what an answer waits for after `held` bytes.
    """

    content: bytes = CONTENT
    tag: str | None = '"one"'
    modified: str | None = None
    ranges: bool = True
    heeds_if_range: bool = True
    length: int | None = None
    says_length: bool = True
    shift: int = 0
    drops: list[int] = field(default_factory=list)
    refusals: list[int] = field(default_factory=list)
    hold: threading.Event | None = None
    held: int = 0
    log: list[Asked] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    manner: Manner

    def do_GET(self) -> None:
        manner, asked, condition = self.manner, self.headers["Range"], self.headers["If-Range"]
        if self.path.startswith("/moved/"):
            self.refuse(302, location=self.path.removeprefix("/moved"))
        elif self.path.startswith("/away/"):
            self.refuse(302, location="http://example.org/model.pt")
        elif self.path.startswith("/missing"):
            self.refuse(404)
        elif manner.refusals:
            self.refuse(manner.refusals.pop(0))
        else:
            same = condition in (None, manner.tag, manner.modified) or not manner.heeds_if_range
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and manner.ranges and same else 0
            self.answer(start, asked, condition)

    def answer(self, start: int, asked: str | None, condition: str | None) -> None:
        manner = self.manner
        if start:
            self.send_response(206)
            first, last = start + manner.shift, len(manner.content) - 1
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(manner.content)}")
        else:
            self.send_response(200)
        for name, value in (("ETag", manner.tag), ("Last-Modified", manner.modified)):
            if value:
                self.send_header(name, value)
        body = manner.content[start:]
        if manner.says_length:
            self.send_header("Content-Length", str(manner.length or len(body)))
        self.end_headers()
        body = body[: manner.drops.pop(0)] if manner.drops else body
        if manner.hold:
            self.wfile.write(body[: manner.held])
            manner.hold.wait(60)
            body, before = body[manner.held :], manner.held
        else:
            before = 0
        manner.log.append(Asked(self.path, asked, condition, before + len(body)))
        self.wfile.write(body)

    def refuse(self, status: int, location: str | None = None) -> None:
        self.manner.log.append(Asked(self.path, self.headers["Range"], self.headers["If-Range"], 0))
        self.send_response(status)
        if location:
            self.send_header("Location", location)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Clients that are killed are no errors of ours."""


@dataclass
class Site:
    manner: Manner
    address: str

    def url(self, name: str = "model.pt") -> str:
        return f"{self.address}/{name}"

    @property
    def ranges(self) -> list[str | None]:
        return [asked.range for asked in self.manner.log]

    @property
    def sent(self) -> list[int]:
        return [asked.sent for asked in self.manner.log]


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("SCORELINE_OFFLINE", raising=False)
    monkeypatch.setattr(transfers, "PAUSES", (0.0, 0.0))
    manner = Manner()
    server = Server(("127.0.0.1", 0), type("Bound", (Handler,), {"manner": manner}))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield Site(manner, f"http://127.0.0.1:{server.server_port}")
    if manner.hold:
        manner.hold.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "model.pt"


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_a_file_arrives_whole_and_alone(site: Site, target: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert fetch(site.url(), target) == target
    assert target.read_bytes() == CONTENT
    assert names(target.parent) == ["model.pt"]
    assert f"fetching {site.url()}" in capfd.readouterr().err
    fetch(site.url(), target, sha256=SHA.upper(), md5=MD5)
    assert site.sent == [len(CONTENT)]


def test_an_empty_file_is_a_file(site: Site, target: Path) -> None:
    site.manner.content = b""
    assert fetch(site.url(), target).read_bytes() == b""


def test_broken_connections_go_on_where_they_ended(site: Site, target: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """More breaks than pauses: those that follow on progress are not counted together."""
    site.manner.drops = [100_000, 200_000, 300_000, 1000]
    fetch(site.url(), target)
    assert target.read_bytes() == CONTENT
    assert site.ranges == [None, "bytes=100000-", "bytes=300000-", "bytes=600000-", "bytes=601000-"]
    assert sum(site.sent) == len(CONTENT)
    assert {asked.condition for asked in site.manner.log[1:]} == {'"one"'}
    assert "the connection ended after 100000 of 1000003 bytes; trying again" in capfd.readouterr().err


def test_attempts_without_progress_are_few(site: Site, target: Path) -> None:
    site.manner.drops = [5000, 0, 0, 0, 0]
    with pytest.raises(InputError, match=rf"{site.url()} could not be fetched to .* put it at {target}$") as caught:
        fetch(site.url(), target)
    assert "after 5000 of 1000003 bytes" in str(caught.value)
    assert len(site.manner.log) == 3
    assert names(target.parent) == ["model.pt.part", "model.pt.part.json"]
    site.manner.drops = []
    fetch(site.url(), target)
    assert target.read_bytes() == CONTENT
    assert site.ranges[-1] == "bytes=5000-"
    assert names(target.parent) == ["model.pt"]


@pytest.mark.parametrize("status", [500, 503, 429])
def test_passing_refusals_are_tried_again(site: Site, target: Path, status: int) -> None:
    site.manner.refusals = [status, status]
    fetch(site.url(), target)
    assert target.read_bytes() == CONTENT


def test_final_refusals_are_not(site: Site, target: Path) -> None:
    with pytest.raises(InputError, match=r"the server answers 404 Not Found"):
        fetch(site.url("missing.pt"), target)
    assert len(site.manner.log) == 1
    assert names(target.parent) == []


def test_no_server_at_all(site: Site, target: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(InputError, match=r"could not be fetched to .*Connection refused"):
            fetch(f"http://127.0.0.1:{unused.getsockname()[1]}/model.pt", target)
    assert capfd.readouterr().err.count("trying again") == len(transfers.PAUSES)
    assert names(target.parent) == []


def test_a_server_that_stops_answering(site: Site, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "TIMEOUT", 0.2)
    monkeypatch.setattr(transfers, "PAUSES", ())
    site.manner.hold, site.manner.held = threading.Event(), 70_000
    with pytest.raises(InputError, match=r"the connection broke \(timed out\)"):
        fetch(site.url(), target)
    assert (target.parent / "model.pt.part").read_bytes() == CONTENT[:70_000]


def interrupted(site: Site, target: Path, size: int = 400_000) -> None:
    """Leaves a part of that size."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfers, "PAUSES", ())
        site.manner.drops = [size]
        with pytest.raises(InputError, match="the connection ended"):
            fetch(site.url(), target)
    site.manner.log.clear()


def test_a_server_that_ignores_ranges(site: Site, target: Path) -> None:
    interrupted(site, target)
    site.manner.ranges = False
    fetch(site.url(), target)
    assert target.read_bytes() == CONTENT
    assert (site.ranges, site.sent) == (["bytes=400000-"], [len(CONTENT)])


@pytest.mark.parametrize("heeds", [True, False])
def test_a_file_that_has_changed_starts_anew(site: Site, target: Path, heeds: bool) -> None:
    """Also where the server forgets to compare: its ETag tells."""
    interrupted(site, target)
    site.manner.content, site.manner.tag, site.manner.heeds_if_range = OTHER, '"two"', heeds
    fetch(site.url(), target)
    assert target.read_bytes() == OTHER


def test_a_date_stands_in_for_a_weak_tag(site: Site, target: Path) -> None:
    site.manner.tag, site.manner.modified = 'W/"one"', "Wed, 21 Oct 2015 07:28:00 GMT"
    interrupted(site, target)
    fetch(site.url(), target)
    assert target.read_bytes() == CONTENT
    assert site.manner.log == [Asked("/model.pt", "bytes=400000-", site.manner.modified, len(CONTENT) - 400_000)]


def test_without_tag_or_date_a_part_is_used_only_towards_a_checksum(site: Site, tmp_path: Path) -> None:
    site.manner.tag = None
    for name, checksum, wanted in (("a", None, [None]), ("b", SHA, ["bytes=400000-"])):
        interrupted(site, tmp_path / name)
        fetch(site.url(), tmp_path / name, sha256=checksum)
        assert (tmp_path / name).read_bytes() == CONTENT
        assert site.ranges == wanted


def test_a_part_of_another_file_is_noticed_by_its_checksum(
    site: Site, target: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    site.manner.tag, site.manner.content = None, OTHER
    interrupted(site, target)
    site.manner.content = CONTENT
    fetch(site.url(), target, sha256=SHA)
    assert target.read_bytes() == CONTENT
    assert site.ranges == ["bytes=400000-", None]
    assert "fetching it anew" in capfd.readouterr().err


def test_a_part_of_another_address_is_not_used(site: Site, target: Path) -> None:
    interrupted(site, target)
    fetch(site.url("second.pt"), target)
    assert site.ranges == [None]


def test_a_wrong_position(site: Site, target: Path) -> None:
    interrupted(site, target)
    site.manner.shift = 1
    fetch(site.url(), target)
    assert target.read_bytes() == CONTENT
    assert site.ranges == ["bytes=400000-", None]


def test_a_range_that_the_server_no_longer_has(site: Site, target: Path) -> None:
    interrupted(site, target)
    site.manner.refusals = [416]
    fetch(site.url(), target)
    assert target.read_bytes() == CONTENT
    assert site.ranges == ["bytes=400000-", None]


def test_a_whole_part_needs_no_server(site: Site, target: Path) -> None:
    """Killed between the last byte and the rename."""
    interrupted(site, target)
    target.with_name("model.pt.part").write_bytes(CONTENT)
    fetch(site.url(), target, sha256=SHA)
    assert target.read_bytes() == CONTENT
    assert site.manner.log == []


@pytest.mark.parametrize("text", ["{", "[]", '{"url": 1}'])
def test_a_part_of_unknown_origin_is_not_used(site: Site, target: Path, text: str) -> None:
    interrupted(site, target)
    target.with_name("model.pt.part.json").write_text(text)
    fetch(site.url(), target)
    assert target.read_bytes() == CONTENT
    assert site.ranges == [None]


def test_a_server_that_lies_about_the_length(site: Site, target: Path) -> None:
    site.manner.length = len(CONTENT) + 1000
    with pytest.raises(InputError, match="the connection ended after 1000003 of 1001003 bytes"):
        fetch(site.url(), target)
    assert not target.exists()
    site.manner.length = 1000
    with pytest.raises(InputError, match=r"arrived with SHA-256 \w{64} instead of"):
        fetch(site.url(), target.with_name("second"), sha256=SHA)
    assert not target.with_name("second").exists()


def test_a_server_that_does_not_tell_the_length(site: Site, target: Path) -> None:
    site.manner.says_length = False
    fetch(site.url(), target, sha256=SHA)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize(("key", "title"), [("sha256", "SHA-256"), ("md5", "MD5")])
def test_a_wrong_checksum_leaves_nothing_and_takes_nothing(site: Site, target: Path, key: str, title: str) -> None:
    with pytest.raises(InputError, match=rf"{site.url()} arrived with {title} \w+ instead of 00; try again, or fetch"):
        fetch(site.url(), target, **{key: "00"})
    assert names(target.parent) == []
    target.write_bytes(b"mine")
    with pytest.raises(InputError, match=rf"{target} is there, but has {title} \w+ instead of 00; remove it"):
        fetch(site.url(), target, **{key: "00"})
    assert target.read_bytes() == b"mine"


def test_redirects_keep_the_range(site: Site, target: Path) -> None:
    site.manner.drops = [300_000]
    fetch(site.url("moved/model.pt"), target)
    assert target.read_bytes() == CONTENT
    content = [asked for asked in site.manner.log if asked.path == "/model.pt"]
    assert [asked.range for asked in content] == [None, "bytes=300000-"]


def test_addresses_that_anybody_could_have_altered(site: Site, target: Path) -> None:
    with pytest.raises(InputError, match=r"http://example\.org/model\.pt: over http anybody on the way"):
        fetch("http://example.org/model.pt", target)
    with pytest.raises(InputError, match=r"http://example\.org/model\.pt: over http anybody on the way"):
        fetch(site.url("away/model.pt"), target)
    transfers.check_url("http://example.org/model.pt", checked=True)
    for url in ("ftp://example.org/a.pt", "model.pt", "data:text/plain,a"):
        with pytest.raises(InputError, match="only https, http and file addresses"):
            fetch(url, target)
    assert not target.exists()


def test_a_place_that_cannot_be_written(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"could not be fetched to .*file/model\.pt \(.*File exists"):
        fetch(site.url(), tmp_path / "file" / "model.pt")


def test_offline(site: Site, target: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCORELINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SCORELINE_OFFLINE", "1")
    place = cached_path(site.url())
    with pytest.raises(InputError) as caught:
        fetch(site.url())
    assert str(caught.value) == (
        f"{place} is not there, and SCORELINE_OFFLINE forbids to fetch {site.url()}; "
        f"fetch it by other means and put it at {place}"
    )
    assert site.manner.log == []
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT)
    assert fetch(site.url(), sha256=SHA) == place
    assert verify(place) == SHA
    (tmp_path / "mirror.pt").write_bytes(OTHER)
    assert fetch((tmp_path / "mirror.pt").as_uri(), target).read_bytes() == OTHER
    monkeypatch.setenv("SCORELINE_OFFLINE", "0")
    assert fetch(site.url("b.pt")).read_bytes() == CONTENT


def test_the_cache_knows_what_arrived(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCORELINE_CACHE", str(tmp_path))
    path = fetch(site.url("model%20a.pt?download=true"))
    assert path.is_relative_to(tmp_path / "downloads")
    assert names(path.parent) == ["model a.pt", "model a.pt.json"]
    record = json.loads(path.with_name("model a.pt.json").read_text())
    assert record == {"url": site.url("model%20a.pt?download=true"), "bytes": len(CONTENT), "sha256": SHA}
    assert fetch(site.url("model%20a.pt?download=true"), sha256=SHA, md5=MD5) == path
    assert fetch(site.url("model%20a.pt?download=false")) != path
    assert len(site.manner.log) == 2
    with pytest.raises(InputError, match=rf"arrived with SHA-256 {SHA} instead of 00; remove the folder"):
        fetch(record["url"], sha256="00")
    with pytest.raises(InputError, match=rf"has MD5 {MD5} instead of 00; remove the folder"):
        fetch(record["url"], md5="00")


def test_changes_in_the_cache_are_noticed(site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCORELINE_CACHE", str(tmp_path))
    path = fetch(site.url())
    path.write_bytes(OTHER)
    assert fetch(site.url()) == path
    with pytest.raises(InputError, match=rf"has changed since it arrived: it has SHA-256 \w+ instead of {SHA}"):
        verify(path)
    path.write_bytes(CONTENT[:-1])
    with pytest.raises(InputError, match="has 1000002 bytes where 1000003 had arrived"):
        fetch(site.url())
    path.with_name("model.pt.json").write_text("{}")
    with pytest.raises(InputError, match=r"model\.pt\.json is damaged"):
        fetch(site.url())
    path.with_name("model.pt.json").unlink()
    with pytest.raises(InputError, match="is there, but has SHA-256"):
        fetch(site.url(), sha256=SHA)
    with pytest.raises(InputError, match="is not on record"):
        verify(path)


def test_names_that_are_none(site: Site) -> None:
    for url in (site.address, f"{site.address}/", f"{site.address}/a/..", f"{site.address}/%2e%2e"):
        with pytest.raises(InputError, match="does not end in the name of a file"):
            fetch(url)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SCORELINE_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache.folder() == tmp_path / ".cache" / "scoreline"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache.folder("a") == tmp_path / ".cache" / "scoreline" / "a"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.folder("a", "b") == tmp_path / "xdg" / "scoreline" / "a" / "b"
    monkeypatch.setenv("SCORELINE_CACHE", "~/own")
    assert cache.folder("a") == tmp_path / "own" / "a"


def process(site: Site, target: Path) -> subprocess.Popen[str]:
    program = (
        "import sys, pathlib; from scoreline.downloads import fetch; fetch(sys.argv[1], pathlib.Path(sys.argv[2]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, site.url(), str(target)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "no_proxy": "*"},
    )


def test_a_killed_process_loses_nothing(site: Site, target: Path) -> None:
    site.manner.hold, site.manner.held = threading.Event(), 524_288
    part = target.with_name("model.pt.part")
    with process(site, target) as killed:
        deadline = time.monotonic() + 60
        while not (part.exists() and part.stat().st_size > 500_000):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
    assert killed.returncode == -signal.SIGKILL
    assert not target.exists()
    have = part.stat().st_size
    assert part.read_bytes() == CONTENT[:have]
    site.manner.hold.set()
    site.manner.hold = None
    fetch(site.url(), target)
    assert target.read_bytes() == CONTENT
    rest = [asked for asked in site.manner.log if asked.range]
    assert rest == [Asked("/model.pt", f"bytes={have}-", '"one"', len(CONTENT) - have)]
    assert names(target.parent) == ["model.pt"]


def test_of_two_processes_one_fetches_and_one_waits(site: Site, target: Path) -> None:
    site.manner.hold, site.manner.held = threading.Event(), 1000
    with process(site, target) as first:
        assert first.stderr is not None
        assert first.stderr.readline() == f"fetching {site.url()}\n"
        with process(site, target) as second:
            assert second.stderr is not None
            assert second.stderr.readline() == f"waiting for another process that fetches {site.url()}\n"
            site.manner.hold.set()
            assert second.stderr.read() == ""
    assert (first.returncode, second.returncode) == (0, 0)
    assert target.read_bytes() == CONTENT
    assert site.sent == [len(CONTENT)]
    assert names(target.parent) == ["model.pt"]


def test_who_waits_takes_over_from_who_is_killed(site: Site, target: Path) -> None:
    site.manner.hold, site.manner.held = threading.Event(), 524_288
    with process(site, target) as first:
        assert first.stderr is not None
        first.stderr.readline()
        with process(site, target) as second:
            assert second.stderr is not None
            second.stderr.readline()
            first.send_signal(signal.SIGKILL)
            site.manner.hold.set()
            assert second.stderr.readline() == f"fetching {site.url()}\n"
    assert second.returncode == 0
    assert target.read_bytes() == CONTENT
