"""Published figures, as rows of results (`results.py`) that stand beside measured ones; each names its source.

They have no standard errors, and nobody says on how many documents; `published` is true in their rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from gptstar.errors import UserError

STAR = "GPT* readme and training log (github.com/fattorib/Little-GPT)"
NEO = "EleutherAI's evaluation (github.com/EleutherAI/gpt-neo), as the GPT* readme quotes it"
GPT3 = "Brown et al., arXiv:2005.14165, with its own evaluation code, as the GPT* readme quotes it"
ITS_SCRIPT = (
    "the source says neither which WikiText perplexity it is nor at which context; the project's own script computes "
    "the token-level one, 1024 is what it says it uses where nothing else is said"
)
GPT2_VOCABULARY = 50257


@dataclass(frozen=True)
class Baseline:
    """A published model.

    tasks     {task of lm-evaluation-harness: {metric: value}}, accuracies from 0 to 1
    contexts  {text: {context: value}}: WikiText-2's token-level perplexity, enwik8's bits/byte, text8's bits/character,
              by the original protocol (`windows.py`). lm-evaluation-harness's `wikitext` is another quantity
    """

    name: str
    parameters: int
    training_tokens: float
    source: str
    position: str
    trained_length: int | None
    tasks: dict[str, dict[str, float]]
    contexts: dict[str, dict[int, float]] = field(default_factory=dict)
    note: str = ""

    def rows(self, key: str) -> list[dict]:
        """One for each task, and one for each text and context. key: what it is called in `BASELINES`."""
        same: dict[str, Any] = {
            "baseline": key,
            "checkpoint": self.name,
            "model": self.name,
            "parameters": self.parameters,
            "training_tokens": self.training_tokens,
            "published": True,
            "source": self.source,
            "note": self.note,
        }
        rows = [
            {"task": task, "metrics": {name: _metric(name, value) for name, value in metrics.items()}, **same}
            for task, metrics in self.tasks.items()
        ]
        for text, values in self.contexts.items():
            for context, value in values.items():
                about: dict[str, Any] = {
                    "task": text,
                    "kind": "perplexity",
                    "text": text,
                    "preset": text,
                    "protocol": "original",
                }
                about |= {"position": self.position, "vocabulary": GPT2_VOCABULARY}
                if self.trained_length:
                    about["trained_length"] = self.trained_length
                metrics = {PUBLISHED_METRIC[text]: _metric(PUBLISHED_METRIC[text], value)}
                rows.append({**about, "max_length": context, "stride": context, "metrics": metrics, **same})
        return rows


PUBLISHED_METRIC = {
    "wikitext2": "token_perplexity",
    "enwik8": "bits_per_byte",
    "text8": "bits_per_character",
}


def _metric(name: str, value: float) -> dict:
    return {"value": value, "stderr": None, "higher_is_better": name == "acc"}


def _tasks(
    lambada_acc: float, lambada_perplexity: float, piqa: float, hellaswag: float, winogrande: float | None
) -> dict[str, dict[str, float]]:
    found = {
        "lambada_openai": {"acc": lambada_acc, "perplexity": lambada_perplexity},
        "piqa": {"acc": piqa},
        "hellaswag": {"acc": hellaswag},
    }
    return found | ({} if winogrande is None else {"winogrande": {"acc": winogrande}})


BASELINES = {
    "gpt127": Baseline(
        "GPT-127*",
        127_030_272,
        26e9,
        STAR,
        "alibi",
        512,
        _tasks(0.3623, 28.60, 0.6317, 0.2807, 0.5146),
        {
            "wikitext2": {1024: 37.99, 2048: 36.29, 3072: 35.30, 4096: 35.59, 8192: 35.29},
            "enwik8": {1024: 1.341, 2048: 1.327, 3072: 1.323, 4096: 1.321, 8192: 1.317},
            "text8": {1024: 1.342, 2048: 1.334, 3072: 1.333, 4096: 1.332, 8192: 1.331},
        },
    ),
    "gpt2_small_21b": Baseline(
        "GPT-125M (GPT-2 Small)",
        124_439_808,
        21e9,
        STAR,
        "learned",
        1024,
        _tasks(0.3652, 30.0494, 0.6246, 0.2857, None),
        {"wikitext2": {1024: 37.863}},
        note=ITS_SCRIPT,
    ),
    "gpt_neo_125m": Baseline(
        "GPT-Neo 125M",
        125_198_592,
        300e9,
        NEO,
        "learned",
        2048,
        {**_tasks(0.3736, 30.266, 0.6306, 0.2867, 0.5043), "wikitext": {"word_perplexity": 32.285}},
    ),
    "gpt3_125m": Baseline(
        "GPT-3 125M",
        125_000_000,
        300e9,
        GPT3,
        "learned",
        2048,
        _tasks(0.427, 18.6, 0.6507, 0.337, 0.520),
        note="PIQA is 65.07% in the GPT* readme, but 64.6% in EleutherAI's table that it quotes",
    ),
    "gpt303": Baseline(
        "GPT-303*",
        303_825_408,
        26e9,
        STAR,
        "alibi",
        512,
        _tasks(0.4339, 15.89, 0.652, 0.298, 0.493),
        {
            "wikitext2": {1024: 29.91, 2048: 28.57, 3072: 27.87, 4096: 28.15},
            "enwik8": {1024: 1.251, 2048: 1.239, 3072: 1.237, 4096: 1.236},
            "text8": {1024: 1.270, 2048: 1.266, 3072: 1.267, 4096: 1.268},
        },
        note="8192 tokens did not fit into 24 GB",
    ),
    "gpt354": Baseline(
        "GPT-354 (GPT-2 Medium)",
        354_823_168,
        21e9,
        STAR,
        "learned",
        1024,
        _tasks(0.4822, 13.29, 0.6567, 0.3236, None),
        {"wikitext2": {1024: 28.177}},
        note=ITS_SCRIPT,
    ),
    "gpt_neo_350m": Baseline(
        "GPT-Neo 350M",
        350_000_000,
        300e9,
        NEO,
        "learned",
        2048,
        {**_tasks(0.4727, 13.876, 0.6507, 0.3216, 0.5114), "wikitext": {"word_perplexity": 22.5657}},
    ),
    "gpt3_350m": Baseline(
        "GPT-3 350M", 350_000_000, 300e9, GPT3, "learned", 2048, _tasks(0.543, 9.09, 0.702, 0.436, 0.521)
    ),
}


def baseline_rows(names: list[str]) -> list[dict]:
    """The rows of published models; `all` stands for every one. UserError for an unknown name."""
    unknown = [name for name in names if name not in (*BASELINES, "all")]
    if unknown:
        raise UserError(f"baselines={unknown[0]} is unknown: choose among all, {', '.join(BASELINES)}")
    wanted = BASELINES if "all" in names else dict.fromkeys(names)
    return [row for name in wanted for row in BASELINES[name].rows(name)]
