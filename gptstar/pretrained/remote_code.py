"""The Python files of an exported folder: `modeling_gptstar.py` and the files of `gptstar/model/` that it needs.

They are the sources themselves. Only their imports change: `gptstar.model.block` stands beside as `gptstar_block.py`,
because transformers copies to its cache of remote code what a file imports relatively, from one flat folder.
"""

from __future__ import annotations

import re
from pathlib import Path

from gptstar import model

ENTRY = "modeling_gptstar"
_IMPORT = re.compile(r"^from gptstar\.model\.(\w+) import", re.MULTILINE)


def remote_code() -> dict[str, str]:
    """{file name: text}."""
    room = Path(model.__file__).parent
    texts = {ENTRY: Path(__file__).with_name(f"{ENTRY}.py").read_text(encoding="utf-8")}
    waiting = [ENTRY]
    while waiting:
        for name in _IMPORT.findall(texts[waiting.pop()]):
            if name not in texts:
                texts[name] = (room / f"{name}.py").read_text(encoding="utf-8")
                waiting.append(name)
    return {_beside(name): _IMPORT.sub(r"from .gptstar_\1 import", text) for name, text in texts.items()}


def _beside(name: str) -> str:
    return f"{name}.py" if name == ENTRY else f"gptstar_{name}.py"
