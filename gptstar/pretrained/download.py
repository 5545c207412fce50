"""Brings a published GPT* checkpoint here: python -m gptstar.pretrained.download --help"""

from __future__ import annotations

import argparse
import sys
import zipfile
from pathlib import Path

from gptstar.environment import door_command
from gptstar.errors import EXIT_BAD_INPUT, EXIT_INTERRUPTED, UserError
from gptstar.fetch import fetch_visibly

URL = "https://bfattoripublic.s3.ca-central-1.amazonaws.com"
PUBLISHED = {  # (model size, full state): where it lies below URL
    ("127", False): "models/127_model_only.pth.tar",
    ("127", True): "models/127_complete_state.pth.tar",
    ("303", False): "models/303_model_only.pth.tar",
    ("303", True): "models/303_complete_state.pth.tar",
    ("354", False): "models/GPT2_345.pth.tar",
}
SIZES = tuple(dict.fromkeys(size for size, _ in PUBLISHED))
OLD_PICKLE = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how torch.save began before it wrote zip archives


def download(model_size: str, full_state: bool = False, directory: str | Path = "checkpoints", url: str = URL) -> Path:
    """The local path of a published checkpoint, brought there if it is not there yet, its progress shown on stderr.

    model_size: 127, 303 (GPT*) or 354 (the reference in GPT-2 Medium's shape). full_state: optimizer, step and scaler
    too, which 354 has not. A download that broke goes on where it broke. Raises UserError as `fetch` does, and for a
    file that torch did not write.
    """
    if (model_size, full_state) not in PUBLISHED:
        known = ", ".join(size + (" with full state" if full else "") for size, full in PUBLISHED)
        wanted = f"--model-size {model_size}" + (" --full-state" if full_state else "")
        raise UserError(f"{wanted} was never published: choose one of {known}")
    target = local_path(model_size, full_state, directory)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--directory {directory} cannot be made ({error.strerror}): choose another") from error
    fetch_visibly(f"{url.rstrip('/')}/{PUBLISHED[model_size, full_state]}", target, check_archive)
    return target


def local_path(model_size: str, full_state: bool, directory: str | Path) -> Path:
    """What a checkpoint is called here."""
    return Path(directory).expanduser() / f"{model_size}_{'complete_state' if full_state else 'weights'}.pth.tar"


def check_archive(path: Path) -> None:
    """UserError unless torch.save wrote this: a zip archive with its directory, which is its end, or an old pickle."""
    try:
        with path.open("rb") as file:
            if file.read(len(OLD_PICKLE)) == OLD_PICKLE:
                return
            with zipfile.ZipFile(file) as archive:
                if any(name.endswith("/data.pkl") for name in archive.namelist()):
                    return
    except (zipfile.BadZipFile, OSError):
        pass
    raise UserError(f"{path} is no torch archive")


def main(arguments: list[str] | None = None) -> int:
    """The command line; its exit code: 2 for what a user can mend, 75 for Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m gptstar.pretrained.download",
        description="Downloads a published GPT* checkpoint. Run it again after an interruption: it goes on.",
    )
    parser.add_argument("--model-size", required=True, choices=SIZES, help="GPT-127*, GPT-303*, or GPT-354 (GPT-2's)")
    parser.add_argument("--full-state", action="store_true", help="with optimizer and scaler, to go on training")
    parser.add_argument("--directory", default="checkpoints", help="where to put it (%(default)s)")
    parser.add_argument("--url", default=URL, help="where the folder models/ lies (%(default)s)")
    given = parser.parse_args(arguments)
    try:
        path = download(given.model_size, given.full_state, given.directory, given.url)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        path = local_path(given.model_size, given.full_state, given.directory)
        print(f"interrupted: the same command goes on from {path}.part", file=sys.stderr)
        return EXIT_INTERRUPTED
    print(f"{path} is here ({path.stat().st_size:,} bytes)")
    print(f"  {door_command('sample')} checkpoint={path} prompt='Hello'")
    print(f'  gptstar.load("{path}")')
    return 0


if __name__ == "__main__":
    sys.exit(main())
