"""One file of weights from a checkpoint in shards: python -m gptstar.consolidate checkpoint=RUN output_dir=FOLDER"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omegaconf import MISSING

from gptstar.configuration import run_door
from gptstar.errors import UserError
from gptstar.files import make_folder
from gptstar.pretrained.native import find_checkpoint, load_native, read_json, save_weights


@dataclass
class ConsolidateConfig:
    """What to put together, and where.

    checkpoint  a run (its last checkpoint), RUN/best or a checkpoint folder
    output_dir  a new folder for config.json, model.safetensors and tokenizer.json
    """

    checkpoint: str = MISSING
    output_dir: str = MISSING


def consolidate(config: ConsolidateConfig) -> None:
    """Writes it, for `gptstar.load`. Raises UserError for what is no checkpoint, and for a folder that is in use."""
    folder = Path(config.output_dir).expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"output_dir={folder} is not empty: choose another one")
    checkpoint = find_checkpoint(config.checkpoint)
    make_folder(folder)
    model, tokenizer = load_native(checkpoint)
    try:
        save_weights(folder, model, tokenizer, read_json(checkpoint)["training"])
    except OSError as error:
        raise UserError(
            f"output_dir={folder} cannot be written ({error.strerror or error}): choose another one"
        ) from error
    print(f"{folder}/model.safetensors")


if __name__ == "__main__":
    run_door("consolidate", ConsolidateConfig, consolidate)
