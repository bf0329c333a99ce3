"""Where models are and how they are obtained, with the real worker on a Hub on loopback and with scripted workers."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from pydantic import ByteSize

from server.errors import ModelUnavailable
from server.models.acquire import AcquireProgress, Acquirer
from server.models.built import build_arguments
from server.settings.types import ModelSettings, StorageSettings
from tests.support.loopback_hub import COMMIT, REPO, LoopbackHub, hub_environment, loopback_hub, stall, status
from tests.support.tiny_model import write_tiny_model

FETCHED = ModelSettings(id="tiny", acquire="fetch", fetch=REPO)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    with loopback_hub(LoopbackHub()) as hub:
        for name, value in hub_environment(hub, tmp_path / "home").items():
            monkeypatch.setenv(name, value)
        # This process read its environment when it imported huggingface_hub; the children read theirs now.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", f"{tmp_path}/home/hub")
        yield hub


def acquirer(tmp_path: Path, **storage: object) -> Acquirer:
    return Acquirer(StorageSettings.model_validate({"cache_dir": tmp_path / "cache", **storage}))


def scripted(tmp_path: Path, script: str) -> Acquirer:
    """An acquirer whose worker is `script`."""
    file = tmp_path / "worker.py"
    file.write_text(script)
    return Acquirer(StorageSettings(cache_dir=tmp_path), python=(sys.executable, str(file)))


def refusal(acquirer: Acquirer, model: ModelSettings) -> str:
    assert acquirer.locate(model) is None
    with pytest.raises(ModelUnavailable) as caught:
        asyncio.run(acquirer.acquire(model, lambda _: None))
    return caught.value.message


def test_a_model_is_fetched_with_progress_and_found_from_then_on(hub: LoopbackHub, tmp_path: Path) -> None:
    subject, seen = acquirer(tmp_path), list[AcquireProgress]()
    assert subject.locate(FETCHED) is None
    folder = asyncio.run(subject.acquire(FETCHED, seen.append))
    assert subject.locate(FETCHED) == folder
    assert seen[-1].phase == "fetching"
    assert seen[-1].done == seen[-1].total
    pinned = FETCHED.model_copy(update={"fetch": f"{REPO}@{COMMIT}"})
    assert subject.locate(pinned) == folder


def test_the_workers_sentence_is_the_users(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.fault("/api/", status(403, X_Error_Code="GatedRepo"))
    assert "accept its licence" in refusal(acquirer(tmp_path), FETCHED)


def test_a_transfer_that_breaks_off_is_no_reason_to_build(hub: LoopbackHub, tmp_path: Path) -> None:
    subject = scripted(
        tmp_path,
        "import json, sys\n"
        "assert 'server.models.fetch' in sys.argv, sys.argv\n"
        "print(json.dumps({'phase': 'fetching', 'done': 1, 'total': 2, 'text': ''}))\n"
        "print(json.dumps({'error': {'message': 'The Hub stopped answering.', 'retryable': True}}))\n",
    )
    model = ModelSettings(id="tiny", fetch=REPO, build_from="org/source")
    assert refusal(subject, model) == "The Hub stopped answering."


@pytest.mark.parametrize("left", ["blobs/0123.part", f"snapshots/{COMMIT}/model-00001-of-00002.safetensors"])
def test_a_transfer_that_an_earlier_try_began_is_no_reason_to_build(
    hub: LoopbackHub, tmp_path: Path, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    subject = scripted(
        tmp_path,
        "import json, sys\n"
        "assert 'server.models.fetch' in sys.argv, sys.argv\n"
        "print(json.dumps({'error': {'message': 'The Hub answered 503.', 'retryable': True}}))\n",
    )
    file = tmp_path / "hub" / f"models--{REPO.replace('/', '--')}" / left
    file.parent.mkdir(parents=True)
    file.write_bytes(b"weights")
    assert refusal(subject, ModelSettings(id="tiny", fetch=REPO, build_from="org/source")) == "The Hub answered 503."


def test_a_source_of_another_name_or_policy_is_another_model(hub: LoopbackHub, tmp_path: Path) -> None:
    models = [
        ModelSettings(id="a", build_from="org/source"),
        ModelSettings(id="b", build_from="org/source@v2"),
        ModelSettings(id="c", build_from="other/source"),
        ModelSettings(id="d", build_from="org/source", policy="uniform-4"),
        ModelSettings(id="e", build_from="org/source", calibrate=False),
        ModelSettings(id="f", build_from="org/source", policy="uniform-4", calibrate=True),
    ]
    places = [build_arguments(str(m.build_from), m, StorageSettings(cache_dir=tmp_path))[4] for m in models]
    assert len(set(places)) == len(models)
    calls = [build_arguments(str(m.build_from), m, StorageSettings(cache_dir=tmp_path)) for m in models]
    assert ["--calibrate" in call for call in calls] == [True, True, True, False, False, True]
    assert {Path(place).parent for place in places} == {tmp_path / "models"}


def test_a_build_gets_the_memory_that_the_settings_give_it(tmp_path: Path) -> None:
    model = ModelSettings(id="a", build_from="org/source", build_memory_limit=ByteSize(12 * 10**9))
    given = build_arguments("org/source", model, StorageSettings(cache_dir=tmp_path))
    assert given[given.index("--memory-limit") + 1] == "12000000000"


def test_downloads_can_be_switched_off(hub: LoopbackHub, tmp_path: Path) -> None:
    message = refusal(acquirer(tmp_path, allow_download=False), FETCHED)
    assert message == "The model 'tiny' is not on this machine, and storage.allow_download is false."
    assert hub.requests == []


def test_a_local_folder_is_used_as_it_is_and_a_missing_one_is_not_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = ModelSettings(id="mine", acquire="local", path=tmp_path / "model")
    message = refusal(acquirer(tmp_path), model)
    assert message == "The folder of the model 'mine' is missing or has no config.json."
    assert str(tmp_path / "model") in caplog.text
    (tmp_path / "model").mkdir()
    assert refusal(acquirer(tmp_path), model) == message
    (tmp_path / "model" / "config.json").write_text("{}")
    assert acquirer(tmp_path).locate(model) == tmp_path / "model"


def test_a_build_from_a_folder_names_no_path_of_this_machine(tmp_path: Path) -> None:
    source, policy = write_tiny_model(tmp_path / "source"), tmp_path / "mine.toml"
    model, seen = ModelSettings(id="a", build_from=f"{source}/", policy=str(policy)), list[AcquireProgress]()

    async def refused(subject: Acquirer) -> str:
        with pytest.raises(ModelUnavailable) as caught:
            await subject.acquire(model, seen.append)
        return caught.value.message

    assert asyncio.run(refused(acquirer(tmp_path))) == "The policy mine.toml cannot be read: No such file or directory."
    policy.write_text("[roles]")
    subject = scripted(
        tmp_path,
        "import json, sys\n"
        "source, place = sys.argv[4:6]\n"
        "print(json.dumps({'phase': 'building', 'done': 1, 'total': 2, 'text': source + ' read'}))\n"
        "print(json.dumps({'error': {'message': place + ' is damaged.', 'retryable': False}}))\n",
    )
    assert asyncio.run(refused(subject)).startswith("storage.cache_dir/models/source-mine-")
    assert seen[-1].text == "building from source, 50%: source read"
    assert not any(str(tmp_path) in now.text for now in seen)


def test_if_neither_works_the_source_is_named_without_its_folder(hub: LoopbackHub, tmp_path: Path) -> None:
    subject = scripted(
        tmp_path,
        "import json, sys\nprint(json.dumps({'error': {'message': f'No {sys.argv[2]}.', 'retryable': False}}))\n",
    )
    model = ModelSettings(id="a", fetch=REPO, build_from=str(tmp_path / "source"))
    assert refusal(subject, model) == "No server.models.fetch. Building it from source failed as well: No quantize."


@pytest.mark.parametrize("taken", [".", "models"])
def test_a_cache_folder_that_cannot_be_is_a_sentence(
    tmp_path: Path, taken: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = ModelSettings(id="a", build_from=str(write_tiny_model(tmp_path / "source")), policy="uniform-4")
    file = (tmp_path / "cache" / taken).resolve()
    file.parent.mkdir(exist_ok=True)
    file.write_text("")
    assert "is not a folder" in refusal(acquirer(tmp_path), model)
    assert str(tmp_path / "cache") in caplog.text


def test_a_policy_that_may_not_be_read_is_the_builders_to_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(_: Path) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    policy = tmp_path / "mine.toml"
    policy.write_text("")
    monkeypatch.setattr(Path, "read_bytes", denied)
    assert acquirer(tmp_path).locate(ModelSettings(id="a", build_from="org/source", policy=str(policy))) is None


def test_cancelling_ends_the_worker_and_all_it_started(tmp_path: Path) -> None:
    subject = scripted(
        tmp_path,
        "import json, os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "line = {'phase': 'fetching', 'done': os.getpid(), 'total': child.pid, 'text': ''}\n"
        "print(json.dumps(line), flush=True)\n"
        "time.sleep(600)\n",
    )

    async def start_and_cancel() -> AcquireProgress:
        started: asyncio.Future[AcquireProgress] = asyncio.get_running_loop().create_future()
        task = asyncio.create_task(subject.acquire(FETCHED, started.set_result))
        progress = await started
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return progress

    progress = asyncio.run(start_and_cancel())
    assert progress.total is not None
    with pytest.raises(ChildProcessError):
        os.waitpid(progress.done, os.WNOHANG)
    psutil.wait_procs([psutil.Process(progress.total)] if psutil.pid_exists(progress.total) else [], timeout=5)
    assert not psutil.pid_exists(progress.total) or psutil.Process(progress.total).status() == psutil.STATUS_ZOMBIE


def test_cancelling_a_stalled_download_takes_no_time(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.fault(f"GET /{REPO}/resolve", stall)

    async def start_and_cancel() -> None:
        task = asyncio.create_task(acquirer(tmp_path).acquire(FETCHED, lambda _: None))
        assert await asyncio.to_thread(hub.stalled.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.shield(task), 5)

    asyncio.run(start_and_cancel())


def test_a_worker_that_dies_without_a_word_is_one_sentence_and_its_stderr_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    subject = scripted(tmp_path, "import sys; print('not json'); print(7); sys.exit('secret /path of a traceback')")
    with pytest.raises(ModelUnavailable) as caught:
        asyncio.run(subject.acquire(FETCHED, lambda _: None))
    assert caught.value.message == "Preparing the model ended unexpectedly; the server's log has the reason."
    assert "secret /path of a traceback" in caplog.text
    assert "not json" in caplog.text


def test_the_http_side_starts_without_the_hubs_library() -> None:
    code = "import sys, server.models.acquire, server.models.catalog; sys.exit('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
