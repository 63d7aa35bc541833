# Copyright 2026 The oneref-hf authors. Licensed under the Apache License, Version 2.0.
"""The page as a server: many visitors at once, memory, what is left of uploads, whom it talks to, how it ends."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hub_server import Hub
from PIL import Image

from oneref_hf import cli


pytestmark = pytest.mark.demo

PHRASES = "the red cup\nthe spoon"
VISITORS = 20
PATIENCE = 600  # seconds; nothing waits that long unless the machine is busy or the test fails


class Server:
    """A process that serves the page, its address, and the folder that it may write to."""

    def __init__(self, command: list, folder: Path, **environment: str):
        self.folder = folder
        self.process = subprocess.Popen(
            [str(part) for part in command],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "TMPDIR": str(folder), **environment},
            # Whoever starts the tests in the background has the shell ignore it for all that they start.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        self.output = []
        self.address = None
        self._ready = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        if not self._ready.wait(PATIENCE) or self.address is None:
            self.process.kill()
            raise AssertionError("no page was served:\n" + "".join(self.output))

    def _read(self):
        for line in self.process.stdout:
            self.output.append(line)
            if found := re.search(r"the page is at (http://\S+)", line):
                self.address = found[1]
            if "the model is ready" in line:
                self._ready.set()
        self._ready.set()

    def memory(self) -> float:
        """MiB that the process holds."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024

    def stop(self, with_signal=signal.SIGINT) -> int:
        self.process.send_signal(with_signal)
        return self.process.wait(PATIENCE)


@pytest.fixture(scope="module")
def server(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    script = Path(__file__).with_name("serve.py")
    arguments = ["--model", tiny_model, "--device", "cpu"]
    started = Server([sys.executable, script, folder / "notes", *arguments], folder)
    yield started
    started.process.kill()


def uploads(folder: Path) -> list[Path]:
    """Files in the page's temporary folders, but for the examples that it draws."""
    found = [path for path in folder.glob("oneref-demo-*/**/*") if path.is_file()]
    return [path for path in found if not path.parent.name.startswith("oneref-demo-examples-")]


def picture(number: int, folder: Path) -> Path:
    """A picture of its own for every question."""
    path = folder / f"picture-{number}.png"
    Image.effect_noise((640, 480), 20 + number).convert("RGB").save(path)
    return path


def ask(address: str, path: Path, phrases: str = PHRASES) -> tuple:
    from gradio_client import Client, handle_file

    options = {"analytics_enabled": False, "download_files": False, "httpx_kwargs": {"timeout": PATIENCE}}
    client = Client(address, verbose=False, **options)
    return client.predict(handle_file(path), phrases, api_name="/find")


def ask_at_once(server: Server, count: int, folder: Path) -> list[tuple]:
    paths = [picture(number, folder) for number in range(count)]
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda path: ask(server.address, path), paths))


def test_twenty_at_once_are_all_answered_and_memory_stays_flat(server, tmp_path):
    warm_up = ask_at_once(server, VISITORS, tmp_path)
    before = server.memory()
    answers = warm_up + ask_at_once(server, VISITORS, tmp_path) + ask_at_once(server, VISITORS, tmp_path)
    assert len(answers) == 3 * VISITORS
    for number, (answer, status) in enumerate(answers):
        assert answer["name"] == f"picture-{number % VISITORS}.png", "everyone gets the answer to their own question"
        assert [one["phrase"] for one in answer["answers"]] == PHRASES.splitlines()
        assert "2 phrases found" in status
    print(f"memory: {before:.0f} MiB after {VISITORS} questions, {server.memory():.0f} after {3 * VISITORS}")
    assert server.memory() - before < 40, "MiB, after twice as many questions again"


class Held:
    """A pipeline that answers the first question when it is let go, and notes how many it has at once."""

    def __init__(self, finder):
        self.finder = finder
        self.asked, self.let_go = threading.Event(), threading.Event()
        self.now = self.most = self.calls = 0
        self._lock = threading.Lock()

    def __call__(self, *args, **kwargs):
        with self._lock:
            self.now, self.calls = self.now + 1, self.calls + 1
            self.most = max(self.most, self.now)
        self.asked.set()
        try:
            assert self.let_go.wait(PATIENCE)
            return self.finder(*args, **kwargs)
        finally:
            with self._lock:
                self.now -= 1


def test_one_question_at_a_time(finder, tmp_path, monkeypatch):
    """Whatever Gradio does by default, which the environment may set, and wherever on the page it was asked."""
    import httpx

    from oneref_hf.demo.answering import ModelSlot
    from oneref_hf.demo.server import running_page

    monkeypatch.setenv("GRADIO_DEFAULT_CONCURRENCY_LIMIT", "4")
    held, slot = Held(finder), ModelSlot("the tiny model")
    slot.load(lambda: held)
    # As the page's own script does: clients are not let ask what a click on an example asks.
    with running_page(slot) as address, httpx.Client(base_url=address, timeout=PATIENCE) as visitor:
        try:
            events = [one["id"] for one in visitor.get("config").json()["dependencies"] if len(one["inputs"]) == 2]
            assert len(events) == 2, "the button and the examples"
            for number, event in enumerate(2 * events):
                file = {"files": picture(number, tmp_path).open("rb")}
                (path,) = visitor.post("gradio_api/upload", files=file).json()
                data = [{"path": path, "meta": {"_type": "gradio.FileData"}}, PHRASES]
                question = {"data": data, "fn_index": event, "session_hash": f"visitor{number}"}
                assert visitor.post("gradio_api/queue/join", json=question).is_success
            assert held.asked.wait(PATIENCE)
            time.sleep(1)  # in which a second question would come, were it let
            assert held.most == 1
        finally:
            held.let_go.set()
        for number in range(4):
            parameters = {"session_hash": f"visitor{number}"}
            with visitor.stream("GET", "gradio_api/queue/data", params=parameters) as lines:
                (answer,) = [line for line in lines.iter_lines() if "process_completed" in line]
            assert "2 phrases found" in answer and f"picture-{number}.png" in answer
    assert (held.calls, held.most) == (4, 1)


def test_uploads_are_deleted(finder, coffee, tmp_path, monkeypatch):
    from oneref_hf.demo.answering import ModelSlot
    from oneref_hf.demo.server import running_page

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    slot = ModelSlot("the tiny model")
    slot.load(lambda: finder)
    with running_page(slot, keep_seconds=10) as address:
        ask(address, coffee)
        deadline = time.monotonic() + PATIENCE
        while uploads(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert uploads(tmp_path) == []
        assert ask(address, coffee)[0]["name"] == "coffee_210x140.png", "the page goes on"
    assert not list(tmp_path.glob("oneref-demo-*"))


def test_examples_outlive_uploads_and_addresses_are_not_fetched(finder, tmp_path, monkeypatch):
    import httpx

    from oneref_hf.demo.answering import ModelSlot
    from oneref_hf.demo.server import running_page

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    slot = ModelSlot("the tiny model")
    slot.load(lambda: finder)
    with running_page(slot, keep_seconds=2) as address, httpx.Client(base_url=address, timeout=PATIENCE) as visitor:
        events = visitor.get("config").json()["dependencies"]
        (pick,) = [one["id"] for one in events if any(kind == "pick" for _, kind in one["targets"])]
        click = {"data": [], "fn_index": pick, "event_data": {"number": 0}, "session_hash": "visitor"}
        deadline = time.monotonic() + PATIENCE
        for _ in range(2):
            shown = visitor.post("gradio_api/run/predict", json=click).json()["data"][0]["path"]
            assert Path(shown).is_file()
            while Path(shown).exists() and time.monotonic() < deadline:
                time.sleep(0.2)  # until it is deleted like an upload
        find = next(one["id"] for one in events if len(one["inputs"]) == 2)
        with Hub({}) as elsewhere:
            place = {"path": f"{elsewhere.address}/a.png", "meta": {"_type": "gradio.FileData"}}
            question = {"data": [place, PHRASES], "fn_index": find, "session_hash": "visitor"}
            answer = visitor.post("gradio_api/run/predict", json=question)
        assert answer.status_code == 500 and "takes uploads, not addresses" in answer.text


def test_problems_are_answers_too(server, coffee, broken):
    answer, status = ask(server.address, coffee, " \n")
    assert "answers" not in answer and "no phrase yet" in status
    answer, status = ask(server.address, broken)
    assert "answers" not in answer and "cannot be read" in status


def test_only_this_computer_is_served_and_the_page_comes_with_a_policy(server):
    import httpx

    port = int(server.address.rstrip("/").rpartition(":")[2])
    assert server.address.startswith("http://127.0.0.1:")
    addresses = {found[4][0] for found in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for address in addresses - {"127.0.0.1"}:
        with socket.socket() as outside:
            outside.settimeout(5)
            assert outside.connect_ex((address, port)) != 0
    page = httpx.get(server.address)
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert page.headers["referrer-policy"] == "no-referrer"


def test_no_other_computer_is_asked_and_stopping_leaves_nothing(server, coffee):
    """The last test of this server."""
    ask(server.address, coffee)
    assert "coffee_210x140.png" in [path.name for path in uploads(server.folder)]
    assert server.stop(signal.SIGTERM) == 0, "".join(server.output)
    assert not list(server.folder.glob("oneref-demo-*"))
    notes = (server.folder / "notes").read_text().splitlines()
    assert "Hub telemetry: False" in notes
    talks = [note for note in notes if note.startswith(("connects", "looks"))]
    assert talks, "Gradio asks itself when it starts"
    assert not [note for note in talks if not re.search(r"127\.0\.0\.1|localhost|::1", note)]


def test_a_space_serves_the_same_page(tiny_model, coffee, tmp_path):
    repository = Path(__file__).resolve().parents[2]
    space = tmp_path / "space"
    shutil.copytree(repository / "spaces", space)
    shutil.copytree(repository / "src", space / "src")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {"ONEREF_MODEL": str(tiny_model), "GRADIO_SERVER_PORT": str(port)}
    started = Server([sys.executable, space / "app.py"], tmp_path, **environment)
    try:
        answer, _ = ask(f"http://127.0.0.1:{port}", coffee)
        assert [one["phrase"] for one in answer["answers"]] == PHRASES.splitlines()
        assert started.stop() == 0
    finally:
        started.process.kill()


def test_a_model_from_the_hub(tiny_model, coffee, tmp_path):
    files = {("owner/name", path.name): path.read_bytes() for path in tiny_model.iterdir()}
    command = [sys.executable, Path(__file__).with_name("serve.py"), tmp_path / "notes", "--device", "cpu", "--model"]
    with Hub(files) as hub:
        environment = {
            "HF_ENDPOINT": hub.address,
            "HF_HOME": str(tmp_path / "home"),
            "HF_HUB_CACHE": str(tmp_path / "cache"),
            "HF_HUB_OFFLINE": "0",
            "NO_PROXY": "127.0.0.1",
        }
        started = Server([*command, "owner/name"], tmp_path, **environment)
        try:
            answer, _ = ask(started.address, coffee)
            assert [one["phrase"] for one in answer["answers"]] == PHRASES.splitlines()
            assert started.stop(signal.SIGTERM) == 0
        finally:
            started.process.kill()
        ended = Server([*command, "owner/absent"], tmp_path, **environment)
        assert ended.process.wait(PATIENCE) == 1
    said = ended.output[-1]
    assert said.startswith("oneref: There is no directory 'owner/absent', and the Hub has no model of that name")
    assert not [line for line in ended.output if "Traceback" in line]


def test_without_a_model_the_small_one_answers(coffee, tmp_path):
    started = Server(
        [sys.executable, Path(__file__).with_name("serve.py"), tmp_path / "notes", "--device", "cpu"], tmp_path
    )
    try:
        answer, _ = ask(started.address, coffee)
        assert [one["phrase"] for one in answer["answers"]] == PHRASES.splitlines()
        assert any("which knows drawn scenes and no photographs" in line for line in started.output)
    finally:
        started.process.kill()


def test_a_port_that_is_taken(tiny_model, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert cli.main(["demo", "--model", str(tiny_model), "--port", str(port)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("oneref: The page cannot be served: ") and str(port) in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--host", "nowhere.invalid"], 1, "The page cannot be served: nowhere.invalid: "),
        (["--port", "99999"], 1, "port 99999: "),
        (["--port", "-5"], 1, "port -5: "),
        (["--keep", "inf"], 2, "--keep is a number of minutes above 0, not inf"),
    ],
)
def test_addresses_and_times_that_are_none(arguments, code, sentence, tiny_model, capsys):
    assert cli.main(["demo", "--model", str(tiny_model), *arguments]) == code
    error = capsys.readouterr().err
    assert error.startswith("oneref: ") and sentence in error and len(error.splitlines()) == 1


def test_a_model_that_cannot_be_loaded_ends_the_page(tiny_model, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_model, damaged)
    (damaged / "model.safetensors").write_bytes(b"no weights")
    assert cli.main(["demo", "--model", str(damaged)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"oneref: The model '{damaged}' cannot be loaded: ") and len(error.splitlines()) == 1
    assert not list(tmp_path.glob("oneref-demo-*"))
