"""Downloads from a real server on this machine that behaves as badly as real ones do."""

import hashlib
import io
import os
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

import pytest
from debian_files import write_apt

from scoreline.errors import InputError
from scoreline.storage import downloads
from scoreline.storage.downloads import cached_path, check_url, fetch
from scoreline.storage.files import cache_folder

CONTENT = hashlib.shake_256(b"weights").digest(1_000_003)
SHA = hashlib.sha256(CONTENT).hexdigest()
HUB_FILE = "owner/name/resolve/main/sub/model.pt"


@dataclass
class Site:
    """A server.

    Attributes:
        drops: after how many bytes the next answers break off.
        statuses: HTTP status of the next answers, which have no content.
        hold: what an answer waits for after half of its content; `reached` is set by then.
        log: paths that were asked for.
    """

    address: str = ""
    drops: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    hold: threading.Event | None = None
    reached: threading.Event = field(default_factory=threading.Event)
    log: list[str] = field(default_factory=list)

    def url(self, name: str = "model.pt") -> str:
        return f"{self.address}/{name}"


class Handler(BaseHTTPRequestHandler):
    site: Site

    def do_HEAD(self) -> None:
        self.headers_of(200, {"Content-Length": str(len(CONTENT)), "ETag": f'"{SHA}"', "X-Repo-Commit": "0" * 40})

    def do_GET(self) -> None:
        self.site.log.append(self.path)
        if self.path.startswith("/away/"):
            self.headers_of(302, {"Location": "http://example.org/model.pt"})
        elif self.path.startswith("/moved/"):
            self.headers_of(302, {"Location": self.path.removeprefix("/moved")})
        elif self.site.statuses:
            self.headers_of(self.site.statuses.pop(0), {})
        else:
            self.headers_of(200, {"Content-Length": str(len(CONTENT))})
            self.answer(CONTENT[: self.site.drops.pop(0)] if self.site.drops else CONTENT)

    def answer(self, content: bytes) -> None:
        half = len(content) // 2
        self.wfile.write(content[:half])
        if self.site.hold:
            self.site.reached.set()
            self.site.hold.wait(60)
        self.wfile.write(content[half:])

    def headers_of(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that is killed is no error of the server."""


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("SCORELINE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SCORELINE_OFFLINE", raising=False)
    monkeypatch.setattr(downloads, "PAUSES", (0.0, 0.0))
    found = Site()
    server = Server(("127.0.0.1", 0), type("Bound", (Handler,), {"site": found}))
    found.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "model.pt"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_fetched_once(site: Site, target: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert fetch(site.url(), target, sha256=SHA.upper()) == target
    assert target.read_bytes() == CONTENT
    assert (names(target.parent), site.log) == (["model.pt"], ["/model.pt"])
    assert capfd.readouterr().err == f"fetching {site.url()}\n"
    path = fetch(site.url("moved/model%20a.pt?download=true"))
    assert (path.read_bytes(), path.name) == (CONTENT, "model a.pt")
    assert path == cached_path(site.url("moved/model%20a.pt?download=true")) != cached_path(site.url("model%20a.pt"))


def test_a_terminal_shows_a_bar(site: Site, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    fetch(site.url(), target)
    assert "1.00M/1.00M" in sys.stderr.getvalue()


def test_a_wrong_checksum_leaves_no_file(site: Site, target: Path) -> None:
    with pytest.raises(InputError, match=rf"{site.url()} .*{SHA} instead of 00; .*put it at {target}"):
        fetch(site.url(), target, sha256="00")
    assert names(target.parent) == []
    target.write_bytes(b"mine")
    with pytest.raises(InputError, match=rf"{target} .*{site.url()}.* instead of 00; remove it"):
        fetch(site.url(), target, sha256="00")
    assert target.read_bytes() == b"mine"


def test_broken_connections_are_tried_again(site: Site, target: Path) -> None:
    site.drops, site.statuses = [5000], [503]
    fetch(site.url(), target)
    assert (target.read_bytes(), len(site.log)) == (CONTENT, 3)


def test_connections_that_stay_broken_leave_no_file(site: Site, target: Path) -> None:
    site.drops = [5000] * 3
    with pytest.raises(InputError, match=rf"{site.url()} could not be fetched to {target} .*scoreline prefetch"):
        fetch(site.url(), target)
    assert (names(target.parent), len(site.log)) == ([], 3)


@pytest.mark.parametrize("status", [404, 204])
def test_final_answers_are_not_tried_again(site: Site, target: Path, status: int) -> None:
    site.statuses = [status]
    with pytest.raises(InputError, match=f"{status}"):
        fetch(site.url(), target)
    assert (names(target.parent), len(site.log)) == ([], 1)


def test_no_answer_at_all(site: Site, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "TIMEOUT", 0.2)
    monkeypatch.setattr(downloads, "PAUSES", ())
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        for _ in ("refuses", "accepts and is silent"):
            with pytest.raises(InputError, match="could not be fetched"):
                fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/model.pt", target)
            silent.listen()
    assert names(target.parent) == []


def test_addresses_that_are_refused(site: Site, target: Path) -> None:
    for url in ("http://example.org/model.pt", site.url("away/model.pt")):
        with pytest.raises(InputError, match=r"http://example\.org/model\.pt: over http anybody"):
            fetch(url, target)
    check_url("http://example.org/model.pt", SHA)
    for url in ("ftp://example.org/a.pt", "model.pt", "data:text/plain,a"):
        with pytest.raises(InputError, match="only https, http and file"):
            fetch(url, target)
    for url in (site.address, site.url(""), site.url("a/.."), site.url("%2e%2e")):
        with pytest.raises(InputError, match="does not end in the name of a file"):
            fetch(url)
    assert names(target.parent) == []


def test_a_folder_that_cannot_be_written(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"could not be fetched to .*file/model\.pt \(.*File exists"):
        fetch(site.url(), tmp_path / "file" / "model.pt")


def test_offline(site: Site, target: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SCORELINE_OFFLINE", "1")
    place = cached_path(site.url())
    with pytest.raises(InputError, match=rf"SCORELINE_OFFLINE .*{site.url()}; run `scoreline prefetch`.*{place}"):
        fetch(site.url())
    place.parent.mkdir(parents=True)
    place.write_bytes(CONTENT)
    assert fetch(site.url(), sha256=SHA) == place
    (tmp_path / "mirror a.pt").write_bytes(b"other")
    assert fetch((tmp_path / "mirror a.pt").as_uri(), target).read_bytes() == b"other"
    assert site.log == []


def test_files_of_the_hub_come_through_its_library(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", site.address)
    path = fetch(site.url(HUB_FILE), sha256=SHA)
    assert (path.read_bytes(), names(path.parent)) == (CONTENT, ["model.pt"])
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the library tries again for 20 seconds
    with pytest.raises(InputError, match="could not be fetched"):
        fetch("http://127.0.0.1:1/" + HUB_FILE)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SCORELINE_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder("a") == tmp_path / ".cache" / "scoreline" / "a"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder("a", "b") == tmp_path / "xdg" / "scoreline" / "a" / "b"
    monkeypatch.setenv("SCORELINE_CACHE", "~/own")
    assert cache_folder("a") == tmp_path / "own" / "a"


def process(site: Site, target: Path) -> subprocess.Popen[str]:
    """A process that fetches; its start imports none of the libraries that do."""
    program = (
        "import sys, pathlib; from scoreline.storage.downloads import fetch\n"
        "assert not {'pooch', 'requests', 'huggingface_hub', 'filelock'} & set(sys.modules)\n"
        "fetch(sys.argv[1], pathlib.Path(sys.argv[2]))"
    )
    command = [sys.executable, "-c", program, site.url(), str(target)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "no_proxy": "*"})


def test_who_waits_takes_over_from_who_is_killed(site: Site, target: Path) -> None:
    site.hold = threading.Event()
    with process(site, target) as first:
        assert site.reached.wait(60)
        with process(site, target) as second, process(site, target) as third:
            waiting = f"waiting for another process that fetches {site.url()}\n"
            assert [one.stderr.readline() for one in (second, third)] == [waiting] * 2
            first.send_signal(signal.SIGKILL)
            first.wait()
            assert not target.exists()
            site.hold.set()
            told = sorted(one.stderr.read() for one in (second, third))
    assert (second.returncode, third.returncode, told) == (0, 0, ["", f"fetching {site.url()}\n"])
    assert target.read_bytes() == CONTENT
    assert (names(target.parent), site.log) == (["model.pt"], ["/model.pt"] * 2)


def test_packages_come_through_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packages = tmp_path / "packages"
    packages.mkdir()
    (packages / "some-font.deb").write_bytes(CONTENT)
    log = write_apt(tmp_path / "bin", packages, monkeypatch)
    for _ in range(2):
        path = fetch("apt:some-font")
        assert path == cached_path("apt:some-font")
        assert path.read_bytes() == CONTENT
    assert log.read_text() == "download some-font\n"
    assert [place.name for place in path.parent.iterdir()] == ["some-font"]
    with pytest.raises(InputError, match=r"apt:odd could not be fetched .*Unable to locate package odd; `apt-get upd"):
        fetch("apt:odd")
    with pytest.raises(InputError, match="Debian has no package of such a name"):
        fetch("apt:-o=Dir::Bin", tmp_path / "x")
    monkeypatch.setenv("SCORELINE_OFFLINE", "1")
    with pytest.raises(InputError, match="forbids downloads of apt:other"):
        fetch("apt:other")
    monkeypatch.setenv("SCORELINE_OFFLINE", "0")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="there is no apt-get here"):
        fetch("apt:other")
    assert len(log.read_text().splitlines()) == 2
