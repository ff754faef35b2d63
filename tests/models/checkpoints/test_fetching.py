"""The table of published weights, and fetching files: from a server on this machine, never from a real address."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch

from revbifpn import CheckpointError, RevBiFPN, convert_checkpoint, load_checkpoint
from revbifpn.models import PUBLISHED, VARIANTS, fetch_published
from revbifpn.models.checkpoints import fetch, locate
from tests.oracle import reference_state_dict

FILE = "revbifpn_s0.pth.tar"


class Server:
    """What it answers with: ``status``, ``content``, and how many of its bytes before the connection is closed."""

    def __init__(self) -> None:
        self.status, self.content, self.cut = 200, b"", 0
        self.requests = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests += 1
                self.send_response(server.status)
                self.send_header("Content-Length", str(len(server.content)))
                self.end_headers()
                self.wfile.write(server.content[: len(server.content) - server.cut])

            def log_message(self, *args: object) -> None:
                pass

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.root = f"http://127.0.0.1:{self.httpd.server_port}"
        self.url = f"{self.root}/{FILE}"
        self.thread = threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.httpd.shutdown()
        self.httpd.server_close()
        self.thread.join()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("weights") / FILE
    torch.save(reference_state_dict("revbifpn_s0"), path)
    return path.read_bytes()


@pytest.fixture
def server(weights: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Serves S0; the table names it with its own sha256."""
    server = Server()
    server.content = weights
    published = dataclasses.replace(PUBLISHED["s0"], url=server.url, sha256=hashlib.sha256(weights).hexdigest())
    monkeypatch.setitem(PUBLISHED, "s0", published)
    yield server
    server.close()


def assert_refused(folder: Path, reason: str) -> None:
    """The error names reason, address, sha256 and place, and nothing new lies in the folder."""
    before = sorted(folder.iterdir()) if folder.exists() else []
    with pytest.raises(CheckpointError, match=reason) as caught:
        fetch_published("s0", folder)
    for part in (PUBLISHED["s0"].url, PUBLISHED["s0"].sha256, str(folder / FILE), "by hand"):
        assert part in str(caught.value)
    assert sorted(folder.iterdir()) == before


def test_a_download_is_kept_and_used_again(server: Server, weights: bytes, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    assert fetch_published("s0", folder) == fetch_published("s0", folder) == folder / FILE
    assert server.requests == 1
    assert (folder / FILE).read_bytes() == weights
    assert list(folder.iterdir()) == [folder / FILE]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch.hub's folder of checkpoints."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return tmp_path / "checkpoints"


def test_without_a_folder_it_is_torch_hubs(server: Server, hub: Path) -> None:
    assert fetch_published("s0") == hub / FILE


def test_another_file_is_refused(server: Server, tmp_path: Path) -> None:
    server.content = server.content[:-1] + b"?"
    assert_refused(
        tmp_path, 'failed or arrived damaged .*invalid hash value .*, got "' + hashlib.sha256(server.content).hexdigest()
    )


def test_a_cut_connection_leaves_nothing_and_the_next_try_works(server: Server, tmp_path: Path) -> None:
    server.cut = len(server.content) // 2
    assert_refused(tmp_path, "failed or arrived damaged")
    server.cut = 0
    assert fetch_published("s0", tmp_path).is_file()


def test_a_missing_file_and_a_missing_server(server: Server, tmp_path: Path) -> None:
    server.status = 404
    assert_refused(tmp_path, "HTTPError: HTTP Error 404")
    server.close()
    assert_refused(tmp_path, "URLError")


def test_a_folder_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="FileExistsError|NotADirectoryError"):
        fetch_published("s0", tmp_path / "file")


def test_what_lies_there_is_checked(server: Server, weights: bytes, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(weights[:1000])
    assert_refused(
        tmp_path, f"{FILE} is another file or a damaged one .its sha256 is {hashlib.sha256(weights[:1000]).hexdigest()}"
    )
    assert (tmp_path / FILE).read_bytes() == weights[:1000]
    assert server.requests == 0
    (tmp_path / FILE).write_bytes(weights)  # put there by hand
    assert fetch_published("s0", tmp_path) == tmp_path / FILE
    assert server.requests == 0


def test_a_published_address_is_checked_whoever_names_it(server: Server, tmp_path: Path, hub: Path) -> None:
    model = RevBiFPN("s0")
    load_checkpoint(model, server.url)
    assert torch.equal(model.head.fc.bias, reference_state_dict("revbifpn_s0")["head.fc.bias"])
    (hub / FILE).write_bytes(b"another file")
    with pytest.raises(CheckpointError, match=f"{FILE} is another file or a damaged one"):
        load_checkpoint(model, server.url)


def test_a_published_file_that_is_not_there_is_announced(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        locate(tmp_path / FILE)
    assert str(caught.value) == (
        f"checkpoint not found: {tmp_path / FILE}. It is published at {PUBLISHED['s0'].url} "
        f"(sha256 {PUBLISHED['s0'].sha256}); that address may be named instead"
    )


class TestOtherAddresses:
    """Files whose sha256 nobody published."""

    def test_one_name_at_two_addresses_is_two_files(self, server: Server, tmp_path: Path) -> None:
        contents = {}
        for query in ("/a/model.pth", "/b/model.pth", "/b/model.pth?version=2"):
            torch.save({"a": torch.full((1,), float(len(contents)))}, tmp_path / "file")
            server.content = contents[query] = (tmp_path / "file").read_bytes()
            assert fetch(server.root + query, tmp_path / "hub").name == "model.pth"
        requests = server.requests
        for query, content in contents.items():
            assert fetch(server.root + query, tmp_path / "hub").read_bytes() == content
        assert server.requests == requests == 3

    def test_the_digits_in_a_name_are_checked(self, server: Server, weights: bytes, tmp_path: Path) -> None:
        digits = hashlib.sha256(weights).hexdigest()[:8]
        address = f"{server.root}/mask-rcnn_coco_20261124-{digits}.pth"
        path = fetch(address, tmp_path)
        assert path == tmp_path / path.name  # where torch.hub and MMEngine keep it
        path.write_bytes(weights[:-1])
        with pytest.raises(
            CheckpointError, match=f"(?s)is another file or a damaged one .* expected sha256: {digits} ..."
        ) as caught:
            fetch(address, tmp_path)
        assert address in str(caught.value)
        path.unlink()
        server.content = weights[:-1]
        with pytest.raises(CheckpointError, match=f'invalid hash value .expected "{digits}"'):
            fetch(address, tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_a_date_in_a_name_is_no_sha256(self, server: Server, tmp_path: Path) -> None:
        assert fetch(f"{server.root}/model-20261124.pth", tmp_path).is_file()

    def test_what_was_fetched_once_holds(self, server: Server, weights: bytes, tmp_path: Path) -> None:
        address = f"{server.root}/model.pth"
        path = fetch(address, tmp_path)
        path.write_bytes(weights[:-1])
        with pytest.raises(CheckpointError, match="is another file or a damaged one"):
            fetch(address, tmp_path)
        path.with_name("model.pth.sha256").unlink()  # of unknown origin: not reused
        assert fetch(address, tmp_path).read_bytes() == weights
        assert server.requests == 2

    def test_what_is_no_checkpoint_is_not_kept(self, server: Server, weights: bytes, tmp_path: Path) -> None:
        address = f"{server.root}/model.pth"
        server.content = b"<!DOCTYPE html>please log in"
        with pytest.raises(CheckpointError, match="is no checkpoint: it begins with .*DOCTYPE"):
            fetch(address, tmp_path)
        server.content, server.cut = weights, len(weights) // 2
        with pytest.raises(CheckpointError, match="is damaged: .* it may be truncated"):
            fetch(address, tmp_path)
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]
        server.cut = 0
        assert fetch(address, tmp_path).read_bytes() == weights

    def test_an_address_of_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="http://localhost/ is no address of a file"):
            fetch("http://localhost/", tmp_path)


class TestThroughTimm:
    @pytest.mark.parametrize(
        "kwargs", [{}, {"num_classes": 5}, {"in_chans": 1}, {"features_only": True, "out_indices": (0, 3)}]
    )
    def test_pretrained(self, server: Server, tmp_path: Path, kwargs: dict[str, object]) -> None:
        overlay = {"url": server.url}
        model = timm.create_model("revbifpn_s0", pretrained=True, pretrained_cfg_overlay=overlay, cache_dir=tmp_path, **kwargs)
        assert server.requests == 1
        wanted = convert_checkpoint(reference_state_dict("revbifpn_s0"))
        state = getattr(model, "model", model).state_dict()
        adapted = {"head.fc.weight", "head.fc.bias"} if "num_classes" in kwargs else set()
        assert all(torch.equal(value, wanted[key]) for key, value in state.items() if key not in adapted)
        assert not any("file" in getattr(module, "pretrained_cfg", {}) for module in model.modules())
        assert overlay == {"url": server.url}

    def test_a_wrong_file_is_refused(self, server: Server, tmp_path: Path) -> None:
        server.content = b"something else"
        with pytest.raises(CheckpointError, match="expected sha256"):
            timm.create_model(
                "revbifpn_s0.cerebras_in1k", pretrained=True, pretrained_cfg_overlay={"url": server.url}, cache_dir=tmp_path
            )
        assert list(tmp_path.iterdir()) == []

    def test_a_file_of_the_users_is_not_fetched(self, server: Server, weights: bytes, tmp_path: Path) -> None:
        (tmp_path / "mine.pth").write_bytes(weights)
        overlay = {"file": str(tmp_path / "mine.pth"), "url": server.url}
        model = timm.create_model("revbifpn_s0", pretrained=True, pretrained_cfg_overlay=overlay)
        assert server.requests == 0
        assert model.pretrained_cfg["file"] == overlay["file"]

    def test_no_download_without_pretrained(self, server: Server) -> None:
        timm.create_model("revbifpn_s0", pretrained_cfg_overlay={"url": server.url})
        assert server.requests == 0


def test_table_is_complete_and_what_timm_and_the_model_zoo_say() -> None:
    assert list(PUBLISHED) == list(VARIANTS)
    assert len({weights.sha256 for weights in PUBLISHED.values()}) == 7
    text = (Path(__file__).parents[3] / "model_zoo" / "README.md").read_text()
    rows = re.findall(r"^\| revbifpn_(s\d) \| [\d,]+ \| (\d+) \| ([\d.]+) \|.*\| `([0-9a-f]{64})` \|$", text, re.MULTILINE)
    assert rows == [(k, str(VARIANTS[k].image_size), str(w.top1), w.sha256) for k, w in PUBLISHED.items()]
    for name, published in PUBLISHED.items():
        assert timm.get_pretrained_cfg(f"revbifpn_{name}").url == published.url
        assert published.url.replace(f"_{name}.", "_s{0..6}.") in text
