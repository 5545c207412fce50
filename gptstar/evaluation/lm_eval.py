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

from gptstar.errors import EXIT_BAD_INPUT, UserError, complain, say_interrupted
from gptstar.hub import offline_without_network, why_not
from gptstar.pipes import outliving_readers

if "gptstar" not in model_registry:
    model_registry.register("gptstar", target="gptstar.evaluation.harness:GPTStarLM")  # imported when it is asked for


def main() -> int:
    """The harness's command line; the exit status."""
    offline_without_network()
    try:
        with outliving_readers():
            cli_evaluate()
    except UserError as error:
        complain(error)
        return EXIT_BAD_INPUT
    except ConnectionError as error:  # the hub's OfflineModeIsEnabled is one too
        complain(
            f"the data of a task could not be had from the hub ({why_not(error)}): "
            "run this once with a network, or evaluate.py with data_dir=DIR"
        )
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        return say_interrupted()
    return 0


if __name__ == "__main__":
    sys.exit(main())
