from __future__ import annotations

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from gptstar import fetch as fetch_module
from gptstar.errors import UserError
from gptstar.pretrained.download import check_archive, main

MODELS = "127_model_only 127_complete_state 303_model_only 303_complete_state GPT2_345"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """(its address, its folder): a server with the published names, each a small archive that says its own."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bucket" / "models").mkdir(parents=True)
    for name in MODELS.split():
        torch.save({"name": name}, tmp_path / "bucket" / "models" / f"{name}.pth.tar")
    handler = functools.partial(Quiet, directory=str(tmp_path / "bucket"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", tmp_path / "bucket"
        server.shutdown()


@pytest.mark.parametrize(
    ("arguments", "local", "published"),
    [
        (["--model-size", "127"], "127_weights", "127_model_only"),
        (["--model-size", "127", "--full-state"], "127_complete_state", "127_complete_state"),
        (["--model-size", "303"], "303_weights", "303_model_only"),
        (["--model-size", "303", "--full-state"], "303_complete_state", "303_complete_state"),
        (["--model-size", "354"], "354_weights", "GPT2_345"),
    ],
)
def test_each_checkpoint_gets_its_local_name_and_how_to_use_it_is_said(bucket, capsys, arguments, local, published):
    assert main([*arguments, "--url", bucket[0]]) == 0
    assert [path.name for path in Path("checkpoints").iterdir()] == [f"{local}.pth.tar"]
    assert torch.load(f"checkpoints/{local}.pth.tar")["name"] == published
    out = capsys.readouterr().out
    assert f'gptstar.load("checkpoints/{local}.pth.tar")' in out
    assert f"python sample.py checkpoint=checkpoints/{local}.pth.tar" in out


def test_what_cannot_be_had_is_one_line_and_exit_code_2(bucket, capsys):
    url, folder = bucket
    (folder / "models" / "303_model_only.pth.tar").unlink()
    (folder / "models" / "127_model_only.pth.tar").write_text("<html>Please log in</html>")
    Path("taken").touch()
    for arguments, words in (
        (["--model-size", "354", "--full-state"], "--model-size 354 --full-state was never published: choose one of"),
        (["--model-size", "303"], "303_model_only.pth.tar: the server answers 404"),
        (["--model-size", "127"], "127_weights.pth.tar.part is no torch archive: it was removed"),
        (["--model-size", "127", "--directory", "taken"], "--directory taken cannot be made (File exists)"),
    ):
        assert main([*arguments, "--url", url]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and words in error and error.count("\n") == 1
    assert not list(Path("checkpoints").iterdir())


def test_after_ctrl_c_the_same_command_goes_on(bucket, capsys, monkeypatch):
    def one_byte(response):
        yield response.read(1)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fetch_module, "_chunks", one_byte)
        assert main(["--model-size", "127", "--url", bucket[0]]) == 75
    assert "interrupted: the same command goes on from checkpoints/127_weights.pth.tar.part" in capsys.readouterr().err
    assert Path("checkpoints/127_weights.pth.tar.part").stat().st_size == 1
    assert main(["--model-size", "127", "--url", bucket[0]]) == 0


def test_both_kinds_of_torch_archive_are_known_and_nothing_else(tmp_path):
    path = tmp_path / "x.pth.tar"
    for zipped in (True, False):
        torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=zipped)
        check_archive(path)
    for content in (path.read_bytes()[:10], b"", b"PK\x03\x04 and no end"):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"x.pth.tar is no torch archive"):
            check_archive(path)
    with pytest.raises(UserError, match="is no torch archive"):
        check_archive(tmp_path)
