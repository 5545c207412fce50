"""The files of an inspection."""

from __future__ import annotations

import json
from pathlib import Path

from gptstar.errors import UserError
from gptstar.files import make_folder, replace_text
from gptstar.training.inspection import Inspection
from gptstar.training.inspection_plot import draw_inspection


def write_inspection(found: Inspection, output_dir: str) -> list[Path]:
    """inspection.json and inspection.png. Raises UserError where they cannot be written."""
    folder = Path(output_dir).expanduser()
    make_folder(folder)
    paths = [folder / "inspection.json", folder / "inspection.png"]
    try:
        replace_text(paths[0], json.dumps(found.as_dict(), indent=1, ensure_ascii=False) + "\n")
        draw_inspection(found, paths[1])
    except OSError as error:
        said = error.strerror or error
        raise UserError(f"output_dir={output_dir} cannot be written ({said}): choose another one") from error
    return paths
