"""The unmodified `openai` client and the files of a training node, over the sealed channel."""

from __future__ import annotations

import hashlib
import json
import logging
from typing import TYPE_CHECKING, Any

import openai
import pytest
from dataset_rows import SALT, commit, lines, numbered, prove
from openai.types import FileDeleted, FileObject, Upload
from openai.types.uploads import UploadPart
from training_place import TrainingPlace, run

from confide.node.train_store import FileLimits
from confide.rats import Status
from confide.training.inclusion import parse_dataset_proof, verify_row

if TYPE_CHECKING:
    from pathlib import Path

ROWS = numbered(100)
FILE = ("rows.jsonl", ROWS)
COMMITTED = {"dataset": commit(ROWS).digest.hex(), "dataset_salt": SALT.hex()}


@pytest.fixture
def place(tmp_path: Path) -> TrainingPlace:
    return TrainingPlace(tmp_path / "files")


def dataset_of(file: FileObject) -> dict[str, Any]:
    found: dict[str, Any] = file.to_dict()["dataset"]  # type: ignore[assignment]
    return found


def exactly(value: Any, kind: type[Any]) -> None:
    """Every member of the answer is one that the SDK's type has, or one of ours."""
    assert type(value) is kind
    kind.model_validate(value.to_dict(), strict=True)


def test_a_file_lives_and_dies(place: TrainingPlace) -> None:
    async def scenario() -> None:
        async with place.client() as client:
            made = await client.files.create(file=FILE, purpose="fine-tune", extra_body=COMMITTED)
            exactly(made, FileObject)
            assert (made.bytes, made.filename, made.status) == (
                len(ROWS),
                "rows.jsonl",
                "processed",
            )
            assert dataset_of(made) == {
                "commitment": COMMITTED["dataset"],
                "kind": "completion",
                "rows": 100,
                "root": commit(ROWS).root.hex(),
                "committed_by": "client",
            }
            assert await client.files.retrieve(made.id) == made
            assert (await client.files.content(made.id)).content == ROWS
            assert (await client.files.wait_for_processing(made.id)) == made
            gone = await client.files.delete(made.id)
            exactly(gone, FileDeleted)
            assert place.stored == []
            with pytest.raises(openai.NotFoundError):
                await client.files.content(made.id)

    run(scenario())


def test_files_are_listed_in_pages(place: TrainingPlace) -> None:
    async def scenario() -> None:
        async with place.client() as client:
            made = [
                await client.files.create(file=(f"{n}.jsonl", numbered(n)), purpose="fine-tune")
                for n in (1, 2, 3)
            ]
            assert [file async for file in client.files.list(limit=2)] == made[::-1]
            page = await client.files.list(limit=2, order="asc", purpose="fine-tune")
            assert (page.data, page.has_more) == (made[:2], True)
            assert (await client.files.list(purpose="vision")).data == []
            for wrong in ({"limit": 0}, {"limit": 10_001}, {"order": "up"}):
                with pytest.raises(openai.BadRequestError):
                    await client.files.list(**wrong)

    run(scenario())


def test_a_client_that_says_nothing_is_told_what_the_node_computed(place: TrainingPlace) -> None:
    async def scenario() -> None:
        async with place.client() as client:
            made = await client.files.create(file=FILE, purpose="fine-tune")
            said = dataset_of(made)
            assert said["committed_by"] == "node"
            salt = bytes.fromhex(said["salt"])
            assert said["commitment"] == commit(ROWS, salt).digest.hex()

    run(scenario())


@pytest.mark.parametrize(
    "changed",
    [
        ROWS.replace(b"42!", b"43!"),
        b"".join(ROWS.splitlines(keepends=True)[:-1]),
        ROWS + ROWS.splitlines(keepends=True)[0],
        b"".join(ROWS.splitlines(keepends=True)[::-1]),
    ],
    ids=["changed", "dropped", "duplicated", "reordered"],
)
def test_rows_that_are_not_those_committed_to_are_refused(
    place: TrainingPlace, changed: bytes
) -> None:
    async def scenario() -> None:
        async with place.client() as client:
            with pytest.raises(openai.BadRequestError) as caught:
                await client.files.create(
                    file=("rows.jsonl", changed), purpose="fine-tune", extra_body=COMMITTED
                )
            assert caught.value.code == "dataset_mismatch"
            assert place.stored == []
            assert (await client.files.list()).data == []

    run(scenario())


def test_another_salt_is_refused(place: TrainingPlace) -> None:
    async def scenario() -> None:
        async with place.client() as client:
            with pytest.raises(openai.BadRequestError) as caught:
                await client.files.create(
                    file=FILE,
                    purpose="fine-tune",
                    extra_body={**COMMITTED, "dataset_salt": "00" * 32},
                )
            assert caught.value.code == "dataset_mismatch"

    run(scenario())


def test_a_broken_row_is_named_and_not_repeated(place: TrainingPlace) -> None:
    async def scenario() -> None:
        broken = numbered(500) + lines({"prompt": "canary", "canary": ""}) + numbered(500)
        async with place.client() as client:
            with pytest.raises(openai.BadRequestError) as caught:
                await client.files.create(file=("rows.jsonl", broken), purpose="fine-tune")
        assert (caught.value.code, caught.value.param) == ("invalid_training_file", "file")
        assert "line 501" in caught.value.message
        assert "canary" not in str(caught.value)
        assert place.stored == []

    run(scenario())


def test_a_row_is_proven_by_the_node_and_opened_by_the_owner(place: TrainingPlace) -> None:
    async def scenario() -> None:
        async with place.client() as client:
            made = await client.files.create(file=FILE, purpose="fine-tune", extra_body=COMMITTED)
            for index in (0, 41, 99):
                raw = await client.get(f"/files/{made.id}/inclusion/{index}", cast_to=object)
                proof = parse_dataset_proof(json.dumps(raw).encode())
                findings = verify_row(proof, commitment=commit(ROWS).digest)
                assert findings[1].status is Status.NOT_PROVEN
                own = prove(ROWS, index)
                assert (proof.leaf, proof.path) == (own.leaf, own.path)
            for wrong in ("100", "-1", "1e1", "99999999999", "x"):
                with pytest.raises(openai.NotFoundError):
                    await client.get(f"/files/{made.id}/inclusion/{wrong}", cast_to=object)

    run(scenario())


def test_an_upload_in_parts_becomes_a_file(place: TrainingPlace) -> None:
    async def scenario() -> None:
        async with place.client() as client:
            done = await client.uploads.upload_file_chunked(
                file=ROWS,
                filename="rows.jsonl",
                bytes=len(ROWS),
                mime_type="application/jsonl",
                purpose="fine-tune",
                part_size=1000,
                md5=hashlib.md5(ROWS, usedforsecurity=False).hexdigest(),
            )
            exactly(done, Upload)
            assert (done.status, done.bytes) == ("completed", len(ROWS))
            assert done.file is not None
            exactly(done.file, FileObject)
            assert (await client.files.content(done.file.id)).content == ROWS
            # The file and its leaves; no part is left.
            assert len(place.stored) == 2

    run(scenario())


async def _pending(client: openai.AsyncOpenAI, **more: Any) -> Upload:
    return await client.uploads.create(
        bytes=len(ROWS),
        filename="rows.jsonl",
        mime_type="application/jsonl",
        purpose="fine-tune",
        extra_body={**COMMITTED, **more},
    )


async def _part(client: openai.AsyncOpenAI, upload: Upload, data: bytes) -> UploadPart:
    return await client.uploads.parts.create(upload.id, data=data)


def test_what_goes_on_elsewhere_comes_in_parts_too_and_is_kept_as_it_is(
    place: TrainingPlace,
) -> None:
    state = b"no row, \x00 and no line\n" * 40

    async def begin(client: openai.AsyncOpenAI, **more: Any) -> Upload:
        asked: Any = {"purpose": "fine-tune-state", "mime_type": "application/octet-stream"}
        return await client.uploads.create(
            bytes=len(state), filename="checkpoint", extra_body=more, **asked
        )

    async def scenario() -> None:
        async with place.client() as client:
            upload = await begin(client)
            assert str(upload.purpose) == "fine-tune-state"
            parts = [await _part(client, upload, state[at : at + 400]) for at in range(0, 960, 400)]
            done = await client.uploads.complete(upload.id, part_ids=[each.id for each in parts])
            assert done.file is not None
            assert (str(done.file.purpose), done.file.bytes) == ("fine-tune-state", len(state))
            assert "dataset" not in done.file.to_dict()
            assert (await client.files.content(done.file.id)).content == state
            assert not any(state[:20] in path.read_bytes() for path in place.stored)
            with pytest.raises(openai.BadRequestError, match="is no data set"):
                await begin(client, **COMMITTED)

    run(scenario())


def test_an_upload_that_was_interrupted_goes_on(place: TrainingPlace) -> None:
    async def scenario() -> None:
        async with place.client() as client:
            upload = await _pending(client)
            exactly(upload, Upload)
            second = await _part(client, upload, ROWS[1500:])
            exactly(second, UploadPart)
        # Another process of the same owner asks what is there.
        async with place.client() as client:
            there: Any = await client.get(f"/uploads/{upload.id}", cast_to=object)
            assert there["parts"] == [
                {
                    "id": second.id,
                    "bytes": len(ROWS) - 1500,
                    "sha256": hashlib.sha256(ROWS[1500:]).hexdigest(),
                }
            ]
            first = await _part(client, upload, ROWS[:1500])
            ids = [first.id, second.id]
            done = await client.uploads.complete(upload.id, part_ids=ids)
            assert done.file is not None
            assert dataset_of(done.file)["committed_by"] == "client"
            # The answer was lost: asked again, it is the same.
            assert await client.uploads.complete(upload.id, part_ids=ids) == done

    run(scenario())


def test_what_does_not_complete_leaves_the_upload_as_it_was(place: TrainingPlace) -> None:
    async def scenario() -> None:
        async with place.client() as client:
            upload = await _pending(client)
            one, two = [await _part(client, upload, ROWS[a:b]) for a, b in ((0, 700), (700, None))]
            for ids, md5, code in (
                ([two.id, one.id], openai.omit, "invalid_training_file"),
                ([one.id], openai.omit, "invalid_upload_size"),
                ([one.id, one.id], openai.omit, "invalid_part_ids"),
                ([one.id, "part_0"], openai.omit, "invalid_part_ids"),
                ([one.id, two.id], "00" * 16, "md5_mismatch"),
            ):
                with pytest.raises(openai.BadRequestError) as caught:
                    await client.uploads.complete(upload.id, part_ids=ids, md5=md5)
                assert caught.value.code == code
                assert len(place.stored) == 2
            done = await client.uploads.complete(upload.id, part_ids=[one.id, two.id])
            assert done.status == "completed"

    run(scenario())


def test_a_cancelled_upload_leaves_nothing_and_takes_nothing(place: TrainingPlace) -> None:
    async def scenario() -> None:
        async with place.client() as client:
            upload = await _pending(client)
            part = await _part(client, upload, ROWS)
            ended = await client.uploads.cancel(upload.id)
            exactly(ended, Upload)
            assert (ended.status, place.stored) == ("cancelled", [])
            with pytest.raises(openai.BadRequestError):
                await _part(client, upload, ROWS)
            with pytest.raises(openai.BadRequestError):
                await client.uploads.complete(upload.id, part_ids=[part.id])
            assert (await client.uploads.cancel(upload.id)).status == "cancelled"

    run(scenario())


def test_nobody_else_sees_a_file_or_an_upload(place: TrainingPlace) -> None:
    async def scenario() -> None:
        async with place.client() as mine, place.client("the-token-of-somebody-else") as theirs:
            file = await mine.files.create(file=FILE, purpose="fine-tune")
            upload = await _pending(mine)
            assert (await theirs.files.list()).data == []
            calls = (
                theirs.files.retrieve(file.id),
                theirs.files.content(file.id),
                theirs.files.delete(file.id),
                theirs.get(f"/files/{file.id}/inclusion/0", cast_to=object),
                theirs.files.list(after=file.id),
                theirs.get(f"/uploads/{upload.id}", cast_to=object),
                _part(theirs, upload, ROWS),
                theirs.uploads.cancel(upload.id),
                theirs.uploads.complete(upload.id, part_ids=[]),
            )
            for call in calls:
                with pytest.raises(openai.NotFoundError):
                    await call
            assert (await mine.files.retrieve(file.id)).id == file.id
        async with place.client("short") as nobody:
            with pytest.raises(openai.AuthenticationError):
                await nobody.files.list()

    run(scenario())


def test_a_full_disk_leaves_nothing_half_written_and_can_be_tried_again(
    place: TrainingPlace,
) -> None:
    many = numbered(6000)

    async def scenario() -> None:
        async with place.client() as client:
            file = await client.files.create(file=("rows.jsonl", many), purpose="fine-tune")
            needed = sum(path.stat().st_size for path in place.stored)
            assert needed > 6 * 65536
            await client.files.delete(file.id)
            upload = await client.uploads.create(
                bytes=len(many), filename="x", mime_type="x", purpose="fine-tune"
            )
            part = await _part(client, upload, many)
            before = place.stored
            # The last refusal is at the very last byte.
            for left in (*range(0, needed, needed // 9), needed - 1):
                for call in (
                    client.files.create(file=("rows.jsonl", many), purpose="fine-tune"),
                    client.uploads.complete(upload.id, part_ids=[part.id]),
                ):
                    place.disk.left = left
                    with pytest.raises(openai.InternalServerError) as caught:
                        await call
                    assert (caught.value.status_code, caught.value.code) == (507, "storage_failed")
                    assert place.stored == before
            place.disk.left = 10
            with pytest.raises(openai.InternalServerError):
                await _part(client, upload, many)
            assert place.stored == before
            place.disk.left = None
            done = await client.uploads.complete(upload.id, part_ids=[part.id])
            assert done.file is not None
            assert (await client.files.content(done.file.id)).content == many

    run(scenario())


def test_files_and_uploads_end_when_their_time_is_over(place: TrainingPlace) -> None:
    async def scenario() -> None:
        async with place.client() as client:
            kept = await client.files.create(file=FILE, purpose="fine-tune")
            hour: Any = {"anchor": "created_at", "seconds": 3600}
            short = await client.files.create(file=FILE, purpose="fine-tune", expires_after=hour)
            assert short.expires_at == short.created_at + 3600
            upload = await _pending(client)
            await _part(client, upload, ROWS)
            place.clock.move(3600)
            assert (await client.files.list()).data == [kept]
            assert len(place.stored) == 2
            with pytest.raises(openai.NotFoundError):
                await client.uploads.cancel(upload.id)
            for wrong in ({"anchor": "created_at", "seconds": 60}, {"seconds": 3600}):
                with pytest.raises(openai.BadRequestError):
                    await client.files.create(
                        file=FILE,
                        purpose="fine-tune",
                        expires_after=wrong,  # type: ignore[arg-type]
                    )

    run(scenario())


def test_a_restart_forgets_everything(place: TrainingPlace) -> None:
    async def scenario() -> None:
        async with place.client() as client:
            await client.files.create(file=FILE, purpose="fine-tune")
        place.boot()
        assert place.stored == []
        async with place.client() as client:
            assert (await client.files.list()).data == []

    run(scenario())


def test_a_file_changed_on_the_disk_is_not_given_out(place: TrainingPlace) -> None:
    async def scenario() -> None:
        async with place.client() as client:
            file = await client.files.create(file=FILE, purpose="fine-tune")
            for path in place.stored:
                raw = bytearray(path.read_bytes())
                raw[-1] ^= 1
                path.write_bytes(raw)
            for route in (f"/files/{file.id}/content", f"/files/{file.id}/inclusion/0"):
                with pytest.raises(openai.InternalServerError):
                    await client.get(route, cast_to=object)

    run(scenario())


def test_a_large_file_leaves_the_client_as_it_is_read(place: TrainingPlace, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(numbered(80_000))

    async def scenario() -> None:
        async with place.client() as client:
            with path.open("rb") as file:
                made = await client.files.create(file=file, purpose="fine-tune")
            assert made.bytes == path.stat().st_size > 2 * 1024 * 1024
        assert sum(map(len, place.wire)) > made.bytes
        assert max(map(len, place.wire)) < 256 * 1024

    run(scenario())


def test_a_thousand_canaries_are_in_no_file_log_or_traffic(
    place: TrainingPlace, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    rows = [{"prompt": f"canary-{n:04}-song", "completion": f"CANARY-{n:04}"} for n in range(1000)]
    raw = lines(*rows)

    async def scenario() -> None:
        async with place.client() as client:
            file = await client.files.create(file=("canary-names.jsonl", raw), purpose="fine-tune")
            await client.uploads.upload_file_chunked(
                file=raw,
                filename="canary-names.jsonl",
                bytes=len(raw),
                mime_type="application/jsonl",
                purpose="fine-tune",
                part_size=10_000,
            )
            pending = await client.uploads.create(
                bytes=len(raw), filename="canary", mime_type="x", purpose="fine-tune"
            )
            await _part(client, pending, raw)
            with pytest.raises(openai.BadRequestError):
                await client.files.create(file=("x", raw + b"{"), purpose="fine-tune")
            assert (await client.files.content(file.id)).content == raw

    run(scenario())
    assert len(place.stored) == 5
    everything = [path.read_bytes() for path in place.stored]
    everything += [str(path).encode() for path in place.stored]
    everything += [b"".join(place.wire), caplog.text.encode()]
    assert sum(map(len, everything)) > 9 * len(raw)
    for seen in everything:
        assert b"canary" not in seen.lower()


@pytest.mark.parametrize(
    ("asked", "status", "first", "last"),
    [
        ("bytes=0-0", 206, 0, 0),
        ("bytes=70000-140000", 206, 70_000, 140_000),
        ("bytes=100-999999999", 206, 100, None),
        ("bytes=0-999999999", 200, 0, None),
        ("bytes=-5", 200, 0, None),
        ("bytes=0-1,3-4", 200, 0, None),
        ("lines=0-1", 200, 0, None),
    ],
)
def test_one_range_of_a_file_is_given(
    place: TrainingPlace, asked: str, status: int, first: int, last: int | None
) -> None:
    raw = numbered(8000)

    async def scenario() -> None:
        async with place.client() as client, place.plain() as plain:
            file = await client.files.create(file=("r.jsonl", raw), purpose="fine-tune")
            path = f"/v1/files/{file.id}/content"
            answer = await plain.get(path, headers={"range": asked})
            wanted = raw[first : None if last is None else last + 1]
            assert (answer.status_code, answer.content == wanted) == (status, True)
            if status == 206:
                end = first + len(wanted) - 1
                assert answer.headers["content-range"] == f"bytes {first}-{end}/{len(raw)}"
            beyond = await plain.get(path, headers={"range": f"bytes={len(raw)}-{len(raw)}"})
            assert beyond.status_code == 416

    run(scenario())


def test_too_much_is_refused(tmp_path: Path) -> None:
    limits = FileLimits(
        max_form_bytes=20_000,
        max_file_bytes=10_000,
        max_total_bytes=15_000,
        max_files_each=2,
        max_uploads_each=1,
        max_parts=3,
    )
    place = TrainingPlace(tmp_path / "files", limits)

    async def scenario() -> None:
        async with place.client() as client:
            large = ("rows.jsonl", numbered(2000))
            with pytest.raises(openai.APIStatusError) as caught:
                await client.files.create(file=large, purpose="fine-tune")
            assert caught.value.status_code == 413
            assert place.stored == []
            upload = await _pending(client)
            with pytest.raises(openai.RateLimitError):
                await _pending(client)
            for _ in range(3):
                await _part(client, upload, ROWS[:10])
            with pytest.raises(openai.BadRequestError) as bad:
                await _part(client, upload, ROWS[:10])
            assert bad.value.code == "too_many_parts"
            await client.uploads.cancel(upload.id)
            other = await _pending(client)
            await _part(client, other, ROWS)
            await _part(client, other, ROWS)
            with pytest.raises(openai.APIStatusError) as caught:
                await _part(client, other, ROWS)
            assert caught.value.code == "file_too_large"
            assert len(place.stored) == 2
            for _ in range(2):
                await client.files.create(file=FILE, purpose="fine-tune")
            with pytest.raises(openai.RateLimitError) as full:
                await client.files.create(file=FILE, purpose="fine-tune")
            assert full.value.code == "too_many_files"

    run(scenario())
