"""The files of a training node, asked as no SDK asks: broken forms, races, callers who leave."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from dataset_rows import numbered
from training_place import TOKEN, Disk, TrainingPlace, run

from confide.node.train_store import FileLimits

if TYPE_CHECKING:
    from collections.abc import Iterable

    import httpx2

ROWS = numbered(20)
FORM = {"content-type": "multipart/form-data; boundary=b0"}


@pytest.fixture
def place(tmp_path: Path) -> TrainingPlace:
    return TrainingPlace(tmp_path / "files")


def part(name: str, value: bytes, filename: str | None = None) -> bytes:
    more = f'; filename="{filename}"' if filename is not None else ""
    head = f'--b0\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
    return head.encode() + value + b"\r\n"


END = b"--b0--\r\n"
PURPOSE = part("purpose", b"fine-tune")
FILE = part("file", ROWS, "rows.jsonl")

FORMS: dict[str, tuple[bytes, str]] = {
    "no purpose": (FILE + END, "invalid_purpose"),
    "another purpose": (part("purpose", b"vision") + FILE + END, "invalid_purpose"),
    "the file first": (FILE + PURPOSE + END, "invalid_purpose"),
    "a field after the file": (PURPOSE + FILE + part("dataset", b"") + END, "invalid_multipart"),
    "two files": (PURPOSE + FILE + FILE + END, "invalid_multipart"),
    "no file": (PURPOSE + END, "missing_file"),
    "a file of another name": (PURPOSE + part("data", ROWS, "x") + END, "unknown_parameter"),
    "a field that is unknown": (part("model", b"x") + PURPOSE + FILE + END, "unknown_parameter"),
    "a field twice": (PURPOSE + PURPOSE + FILE + END, "invalid_multipart"),
    "a field that is long": (part("purpose", b"x" * 5000) + FILE + END, "invalid_multipart"),
    "a field that is no UTF-8": (part("purpose", b"\xff") + FILE + END, "invalid_multipart"),
    "a file without a name": (PURPOSE + part("file", ROWS, "") + END, "invalid_filename"),
    "half a commitment": (PURPOSE + part("dataset", b"0" * 64) + FILE + END, "invalid_dataset"),
    "half a salt": (PURPOSE + part("dataset_salt", b"0" * 64) + FILE + END, "invalid_dataset"),
    "a short salt": (
        PURPOSE + part("dataset", b"0" * 64) + part("dataset_salt", b"0") + FILE + END,
        "invalid_dataset",
    ),
    "no end": (PURPOSE + FILE, "invalid_multipart"),
    "more after the end": (PURPOSE + FILE + END + b"x" * 9, "invalid_multipart"),
    "an empty file": (PURPOSE + part("file", b"", "x") + END, "invalid_training_file"),
    "no form": (b"{}", "invalid_multipart"),
    "nothing": (b"", "invalid_multipart"),
}


def fault(answer: httpx2.Response) -> tuple[int, str]:
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return answer.status_code, error["code"]


@pytest.mark.parametrize(("body", "code"), FORMS.values(), ids=FORMS)
def test_a_form_of_another_shape_is_refused_and_leaves_nothing(
    place: TrainingPlace, body: bytes, code: str
) -> None:
    async def scenario() -> None:
        async with place.plain() as http:
            answer = await http.post("/v1/files", content=body, headers=FORM)
            assert fault(answer) == (400, code)
            assert place.stored == []
            assert (await http.get("/v1/files")).json()["data"] == []

    run(scenario())


UPLOADS: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"{", "invalid_json"),
    "a list": (b"[]", "invalid_json"),
    "a member twice": (b'{"bytes":1,"bytes":1}', "invalid_json"),
    "no size": (b'{"filename":"x","mime_type":"x","purpose":"fine-tune"}', "invalid_request"),
    "no bytes at all": (
        b'{"bytes":0,"filename":"x","mime_type":"x","purpose":"fine-tune"}',
        "invalid_request",
    ),
    "another purpose": (
        b'{"bytes":1,"filename":"x","mime_type":"x","purpose":"batch"}',
        "invalid_purpose",
    ),
    "a member that is unknown": (
        b'{"bytes":1,"filename":"x","mime_type":"x","purpose":"fine-tune","model":"x"}',
        "invalid_request",
    ),
    "a name with a line end": (
        b'{"bytes":1,"filename":"x\\n","mime_type":"x","purpose":"fine-tune"}',
        "invalid_filename",
    ),
    "an end too soon": (
        b'{"bytes":1,"filename":"x","mime_type":"x","purpose":"fine-tune","expires_after":%b}'
        % b'{"anchor":"created_at","seconds":1}',
        "invalid_expires_after",
    ),
}


@pytest.mark.parametrize(("body", "code"), UPLOADS.values(), ids=UPLOADS)
def test_an_upload_of_another_shape_is_refused(
    place: TrainingPlace, body: bytes, code: str
) -> None:
    async def scenario() -> None:
        async with place.plain() as http:
            assert fault(await http.post("/v1/uploads", content=body)) == (400, code)

    run(scenario())


def test_what_is_too_large_is_refused(tmp_path: Path) -> None:
    place = TrainingPlace(tmp_path / "files", FileLimits(max_file_bytes=10_000))

    async def scenario() -> None:
        async with place.plain() as http:
            answer = await http.post("/v1/uploads", content=b" " * (1 << 20) + b"{}")
            assert fault(answer) == (413, "request_too_large")
            answer = await http.post("/v1/uploads", json=_upload(10_001))
            assert fault(answer) == (413, "file_too_large")

    run(scenario())


def _upload(size: int) -> dict[str, Any]:
    return {"bytes": size, "filename": "x", "mime_type": "x", "purpose": "fine-tune"}


def test_routes_and_methods_that_are_not_there_have_the_shape_of_errors(
    place: TrainingPlace,
) -> None:
    async def scenario() -> None:
        async with place.plain() as http:
            assert fault(await http.get("/v1/models")) == (404, "not_found")
            assert fault(await http.put("/v1/files")) == (405, "method_not_allowed")
            assert fault(await http.get("/v1/files/file-0/inclusion/0")) == (404, "not_found")

    run(scenario())


@pytest.mark.parametrize(
    "given",
    ["", "Bearer short", "Basic " + "x" * 20, "Bearer " + "x" * 513, "Bearer a b" + "c" * 20],
)
def test_without_a_token_there_is_nothing(place: TrainingPlace, given: str) -> None:
    async def scenario() -> None:
        async with place.plain() as http:
            answer = await http.get("/v1/files", headers={"authorization": given})
            assert fault(answer) == (401, "invalid_api_key")

    run(scenario())


async def _ask(
    place: TrainingPlace, path: str, messages: Iterable[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Ask the application itself, with exactly these messages."""
    sent: list[dict[str, Any]] = []
    left = iter(messages)

    async def receive() -> Any:
        return next(left)

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [
            (b"authorization", b"Bearer " + TOKEN.encode()),
            (b"content-type", FORM["content-type"].encode()),
        ],
    }
    await place.files(scope, receive, send)
    return sent


def test_a_caller_that_goes_away_leaves_nothing(place: TrainingPlace) -> None:
    async def scenario() -> None:
        many = PURPOSE + part("file", numbered(40_000), "rows.jsonl")
        assert len(many) > 2 * 512 * 1024
        gone: list[dict[str, Any]] = [
            {"type": "http.request", "body": many, "more_body": True},
            {"type": "http.disconnect"},
        ]
        await _ask(place, "/v1/files", gone)
        assert place.stored == []
        async with place.plain() as http:
            assert (await http.get("/v1/files")).json()["data"] == []

    run(scenario())


@dataclass
class SlowDisk(Disk):
    """A disk on which nothing is begun before it is let go."""

    def __post_init__(self) -> None:
        self.reached = threading.Event()
        self.go = threading.Event()
        self.go.set()

    def create(self, path: Path) -> Any:
        self.reached.set()
        assert self.go.wait(20)
        return super().create(path)


def test_too_many_at_once_are_sent_away_and_changes_exclude_each_other(tmp_path: Path) -> None:
    disk = SlowDisk()
    place = TrainingPlace(tmp_path / "files", FileLimits(concurrent=1), disk)

    async def scenario() -> None:
        async with place.plain() as http:
            upload = (await http.post("/v1/uploads", json=_upload(len(ROWS)))).json()["id"]
            body = part("data", ROWS, "x") + END
            made = await http.post(f"/v1/uploads/{upload}/parts", content=body, headers=FORM)
            disk.reached.clear()
            disk.go.clear()
            named = {"part_ids": [made.json()["id"]]}
            completing = asyncio.ensure_future(
                http.post(f"/v1/uploads/{upload}/complete", json=named)
            )
            try:
                assert await asyncio.to_thread(disk.reached.wait, 20)
                whole = PURPOSE + FILE + END
                busy = await http.post("/v1/files", content=whole, headers=FORM)
                assert fault(busy) == (429, "node_busy")
                assert busy.headers["retry-after"] == "1"
                for path in ("cancel", "complete"):
                    other = await http.post(f"/v1/uploads/{upload}/{path}", json=named)
                    assert fault(other) == (409, "upload_in_use")
            finally:
                disk.go.set()
            assert (await completing).json()["status"] == "completed"

    run(scenario())


@pytest.mark.parametrize("how", ["cancelled", "expired"])
def test_a_part_that_comes_after_its_upload_ended_is_not_kept(tmp_path: Path, how: str) -> None:
    disk = SlowDisk()
    place = TrainingPlace(tmp_path / "files", disk=disk)

    async def scenario() -> None:
        async with place.plain() as http:
            upload = (await http.post("/v1/uploads", json=_upload(len(ROWS)))).json()["id"]
            disk.go.clear()
            body = part("data", ROWS, "x") + END
            sending = asyncio.ensure_future(
                http.post(f"/v1/uploads/{upload}/parts", content=body, headers=FORM)
            )
            try:
                assert await asyncio.to_thread(disk.reached.wait, 20)
                if how == "cancelled":
                    await http.post(f"/v1/uploads/{upload}/cancel")
                else:
                    place.clock.move(3600)
                    await http.get("/v1/files")
            finally:
                disk.go.set()
            assert fault(await sending) == (409, "upload_in_use")
            assert place.stored == []

    run(scenario())


def test_a_hundred_thousand_rows_are_kept_and_each_can_be_proven(place: TrainingPlace) -> None:
    async def scenario() -> None:
        async with place.plain() as http:
            whole = PURPOSE + part("file", numbered(100_000), "rows.jsonl") + END
            answer = await http.post("/v1/files", content=whole, headers=FORM)
            assert answer.json()["dataset"]["rows"] == 100_000
            proof = await http.get(f"/v1/files/{answer.json()['id']}/inclusion/77777")
            assert proof.json()["index"] == 77_777
            assert len(proof.json()["path"]) == 17

    run(scenario())


_LARGE = """
import asyncio, re, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from test_train_files import END, PURPOSE, _ask, part
from training_place import TrainingPlace

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])

def messages():
    head, tail = PURPOSE + part("file", b"", "rows.jsonl")[:-2], b"\\r\\n" + END
    rows = b'{"prompt":"%b","completion":"%b"}\\n' % (b"x" * 2000, b"y" * 2000) * 100
    yield {"type": "http.request", "body": head, "more_body": True}
    for _ in range(400):
        yield {"type": "http.request", "body": rows, "more_body": True}
    yield {"type": "http.request", "body": tail, "more_body": False}

place = TrainingPlace(Path(sys.argv[1]))
before = peak()
sent = asyncio.run(_ask(place, "/v1/files", messages()))
assert sent[0]["status"] == 200, sent
assert sum(path.stat().st_size for path in place.stored) > 160_000_000
print(peak() - before)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    here = Path(__file__).parent
    paths = [str(here), str(here.parents[1] / "simulators")]
    done = subprocess.run(
        [sys.executable, "-c", _LARGE, str(tmp_path / "files"), *paths],
        capture_output=True,
        text=True,
        check=True,
    )
    # KiB, while 160 MB went through.
    assert int(done.stdout) < 24 * 1024
