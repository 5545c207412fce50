"""The Python files of an exported folder: `modeling_gptstar.py`, the files of `gptstar/model/` that it needs, and the
ideas of its model.

They are the sources themselves. Only their imports change: `gptstar.model.block` stands beside as `gptstar_block.py`,
because transformers copies to its cache of remote code what a file imports relatively, from one flat folder.
"""

from __future__ import annotations

import re
from pathlib import Path

from gptstar import model
from gptstar.errors import UserError
from gptstar.ideas import ideas_of
from gptstar.model.config import ModelConfig
from gptstar.model.meta import on_meta, unsaved
from gptstar.model.transformer import GPT

ENTRY = "modeling_gptstar"
_IMPORT = re.compile(r"^from gptstar\.model\.(\w+) import", re.MULTILINE)
_OTHER = re.compile(r"^\s*(?:from|import) gptstar\b(?!\.model\.\w+ import).*", re.MULTILINE)


def remote_code(config: ModelConfig) -> dict[str, str]:
    """{file name: text}. Raises UserError for an idea that imports more than `gptstar.model`, or keeps numbers that no
    file holds.
    """
    with on_meta():
        lost = [f"{name}.{key}" for name, key in unsaved(GPT(config))]
    if lost:
        raise UserError(
            f"{lost[0]} is no parameter, and no buffer that is saved, so transformers would not find it: "
            "register_buffer(NAME, TENSOR) it and train again"
        )
    room = Path(model.__file__).parent
    texts = {ENTRY: Path(__file__).with_name(f"{ENTRY}.py").read_text(encoding="utf-8")}
    for idea in ideas_of(config):
        if other := _OTHER.search(idea.text):
            raise UserError(
                f"{idea.name} cannot be exported with the model: {other[0].strip()!r} is not there in transformers; "
                "import from gptstar.model, as `from gptstar.model.NAME import ...`"
            )
        texts[name := f"idea_{idea.name.removesuffix('.py')}"] = idea.text
        texts[ENTRY] += f"\nfrom .gptstar_{name} import __name__ as _{name}  # which puts it into its table\n"
    waiting = list(texts)
    while waiting:
        for name in _IMPORT.findall(texts[waiting.pop()]):
            if name not in texts:
                texts[name] = (room / f"{name}.py").read_text(encoding="utf-8")
                waiting.append(name)
    return {_beside(name): _IMPORT.sub(r"from .gptstar_\1 import", text) for name, text in texts.items()}


def _beside(name: str) -> str:
    return f"{name}.py" if name == ENTRY else f"gptstar_{name}.py"
