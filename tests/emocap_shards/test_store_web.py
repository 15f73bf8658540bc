import logging
import pickle
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from emocap_shards.errors import NotFound, StoreError
from emocap_shards.store import RetryConfig, TransferConfig, open_store

DATA = bytes(range(256)) * 4000
QUICK = RetryConfig(deadline_s=20, first_wait_s=0.01, longest_wait_s=0.1, read_timeout_s=2)


class Answers(BaseHTTPRequestHandler):
    """A web server with support for ranges; its `odd` may answer a request in another way first."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.seen.append(self)
        if self.server.odd(self):
            return
        if not self.path.startswith("/data/x"):
            self.send(404, b"not here")
            return
        start, end = self.span()
        self.send(206, DATA[start:end], {"Content-Range": f"bytes {start}-{end - 1}/{len(DATA)}"})

    do_HEAD = do_GET  # noqa: N815

    @property
    def seen(self):
        return self.server.seen

    def span(self):
        if "Range" not in self.headers:
            return 0, len(DATA)
        start, end = self.headers["Range"].removeprefix("bytes=").split("-")
        return int(start), min(int(end) + 1, len(DATA))

    def send(self, status, body, headers=None):
        self.send_response(status if "Range" in self.headers or status >= 400 else 200)
        for name, value in {"ETag": '"1"', "Accept-Ranges": "bytes", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def answers(monkeypatch):
    monkeypatch.setenv("EMOCAP_STORE_DEADLINE_S", "5")
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.daemon_threads = True
        server.seen, server.odd = [], lambda _: False
        server.url = f"http://127.0.0.1:{server.server_port}/data"
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_web_server_is_read_like_any_store(answers, tmp_path):
    store = open_store(answers.url, traffic=TransferConfig(part_bytes=100_000))
    assert store.read("x") == DATA
    assert store.read_ranges([("x", 5, 9), ("x", 7, 500_007)]) == [DATA[5:9], DATA[7:500_007]]
    assert store.read_range("x", len(DATA) - 3, len(DATA) + 9) == DATA[-3:]
    store.get_file("x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA
    assert store.exists("x")
    assert not store.exists("y")
    with pytest.raises(NotFound, match=r"no such object.*check the path"):
        store.read("y")


def test_writes_and_listings_are_refused_with_what_to_do(answers):
    store = open_store(answers.url)
    for write in (lambda: store.put("x", b""), lambda: store.put_if_absent("x", b""), lambda: store.delete("x")):
        with pytest.raises(StoreError, match=r"read-only here; write to a folder or to S3"):
            write()
    with pytest.raises(StoreError, match="web servers have no listing"):
        store.list()
    assert not store.honours_conditions()


def test_a_server_that_ignores_ranges_gives_the_right_bytes(answers, tmp_path):
    def whole(request):
        del request.headers["Range"]
        request.send(200, DATA, {"Accept-Ranges": "none"})
        return True

    answers.odd = whole
    store = open_store(answers.url, traffic=TransferConfig(part_bytes=100_000))
    assert store.read_ranges([("x", 5, 9), ("x", 700_000, 900_000)]) == [DATA[5:9], DATA[700_000:900_000]]
    assert store.read_range("x", len(DATA) + 5, len(DATA) + 9) == b""
    store.get_file("x", tmp_path / "x")
    assert (tmp_path / "x").read_bytes() == DATA


def test_a_short_answer_is_asked_again_and_never_returned(answers):
    def short(request):
        if len(request.seen) > 3:
            return False
        start, end = request.span()
        body = DATA[start : (start + end) // 2]
        request.send(206, body, {"Content-Range": f"bytes {start}-{start + len(body) - 1}/{len(DATA)}"})
        return True

    answers.odd = short
    assert open_store(answers.url, patience=QUICK).read_range("x", 100, 5000) == DATA[100:5000]
    assert len(answers.seen) == 4


def test_another_range_than_the_one_asked_for_is_never_returned(answers):
    def shifted(request):
        if len(request.seen) > 1:
            return False
        request.send(206, DATA[0:4900], {"Content-Range": f"bytes 0-4899/{len(DATA)}"})
        return True

    answers.odd = shifted
    assert open_store(answers.url, patience=QUICK).read_range("x", 100, 5000) == DATA[100:5000]


def test_an_object_that_changes_while_it_is_copied_is_refused(answers, tmp_path):
    def changing(request):
        start, end = request.span()
        span = {"Content-Range": f"bytes {start}-{end - 1}/{len(DATA)}", "ETag": f'"{start > 500_000}"'}
        request.send(206, DATA[start:end], span)
        return True

    answers.odd = changing
    store = open_store(answers.url, traffic=TransferConfig(part_bytes=100_000))
    with pytest.raises(StoreError, match="overwritten while it was copied; nothing was kept"):
        store.get_file("x", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StoreError, match="overwritten while it was read"):
        store.read_range("x", 0, 900_000)


@pytest.mark.parametrize("status", [400, 401, 403, 501])
def test_a_refusal_for_good_is_not_repeated(answers, status):
    answers.odd = lambda request: request.send(status, b"no") or True
    with pytest.raises(StoreError, match=rf"\({status}\)"):
        open_store(answers.url).read_range("x", 0, 5)
    assert len(answers.seen) == 1


@pytest.mark.parametrize("secret_part", ["//user:canary@", "?sig=canary"])
def test_secrets_of_a_url_work_but_are_never_shown(answers, secret_part, caplog):
    caplog.set_level(logging.DEBUG, logger="emocap_shards")
    plain = answers.url
    url = plain + secret_part if "?" in secret_part else plain.replace("//", secret_part)
    store = open_store(url, patience=RetryConfig(deadline_s=0))
    assert store.read("x") == DATA
    request = answers.seen[0]
    assert "canary" in request.path or request.headers["Authorization"].startswith("Basic ")
    answers.odd = lambda request: request.send(403, b"no, canary") or True
    with pytest.raises(StoreError) as caught:
        store.read("x")
    shown = [repr(store), str(store), store.url, repr(caught.value), repr(caught.value.__cause__), caplog.text]
    assert "canary" not in " ".join(shown)
    assert b"canary" not in pickle.dumps(store)


def test_a_pickled_store_says_that_its_secrets_were_not_sent(answers):
    store = pickle.loads(pickle.dumps(open_store(answers.url.replace("//", "//user:canary@"))))
    with pytest.raises(StoreError, match=r"are not sent to other processes.*netrc"):
        store.read("x")


def redirect(status, location):
    def odd(request):
        if not request.path.startswith("/data/moved"):
            return False
        request.send_response(status)
        request.send_header("Location", location)
        request.send_header("Content-Length", "0")
        request.end_headers()
        return True

    return odd


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("where", ["/data/x", "x", "{url}/x"])
def test_a_redirect_is_followed_on_the_same_host(answers, status, where):
    answers.odd = redirect(status, where.format(url=answers.url))
    store = open_store(answers.url.replace("//", "//user:canary@"))
    assert store.read("moved") == store.read_range("moved", 0, len(DATA)) == DATA
    assert store.exists("moved")
    assert all(request.headers["Authorization"].startswith("Basic ") for request in answers.seen)


def test_a_redirect_to_another_host_is_refused_and_shown_no_password(answers, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password canary\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as other:
        other.daemon_threads = True
        other.seen, other.odd = [], lambda _: False
        threading.Thread(target=other.serve_forever, args=(0.05,), daemon=True).start()
        for place in (f"127.0.0.1:{other.server_port}", f"localhost:{other.server_port}"):
            answers.odd = redirect(302, f"http://{place}/data/x?canary")
            store = open_store(answers.url, patience=RetryConfig(deadline_s=0))
            for name, arguments in {"read": (), "read_range": (0, 5)}.items():
                redirected = rf"redirects to http://{place}; if you trust it, name it"
                with pytest.raises(StoreError, match=redirected) as caught:
                    getattr(store, name)("moved", *arguments)
                assert "canary" not in str(caught.value)
        other.shutdown()
    assert not other.seen


@pytest.mark.parametrize("location", ["file:///etc/passwd", "gopher://127.0.0.1/x", "http://[", "//169.254.169.254/x"])
def test_a_redirect_to_something_else_is_refused(answers, location):
    answers.odd = redirect(302, location)
    with pytest.raises(StoreError, match=r"Redirect \(302\)"):
        open_store(answers.url, patience=RetryConfig(deadline_s=0)).read("moved")
    assert len(answers.seen) == 1


def test_a_redirect_without_end_is_refused(answers):
    answers.odd = redirect(302, "/data/moved")
    with pytest.raises(StoreError, match="redirects more than 5 times"):
        open_store(answers.url, patience=RetryConfig(deadline_s=0)).read("moved")
    assert len(answers.seen) == 6


def test_netrc_gives_the_password(answers, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login user password canary\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    open_store(answers.url).read("x")
    assert answers.seen[0].headers["Authorization"].startswith("Basic ")
