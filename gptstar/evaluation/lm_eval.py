"""lm-evaluation-harness's own command line, with our models in it:

    python -m gptstar.evaluation.lm_eval --model gptstar --model_args checkpoint=RUN --tasks piqa

The harness (0.4.13) looks for models in its own registry alone: no entry point and no option names a module to import,
so the registration has to happen in the process that runs it.
"""

from __future__ import annotations

import sys

import lm_eval.models  # noqa: F401 its own models, which it registers only while the registry is empty
from lm_eval.__main__ import cli_evaluate
from lm_eval.api.registry import model_registry

from gptstar.errors import EXIT_BAD_INPUT, UserError, say_interrupted

if "gptstar" not in model_registry:
    model_registry.register("gptstar", target="gptstar.evaluation.harness:GPTStarLM")  # imported when it is asked for

if __name__ == "__main__":
    try:
        cli_evaluate()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        sys.exit(say_interrupted())
