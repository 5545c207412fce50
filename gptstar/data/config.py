"""DataConfig: corpora, how they become tokens, and how tokens become sequences."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass, field, fields
from typing import Any

from gptstar.data.corpora import CorpusConfig
from gptstar.data.duplicates import NearConfig
from gptstar.data.filters import FilterConfig

MIXTURE = "mixture"  # data.corpus where data.corpora says it all
PACKINGS = ("concatenate", "best_fit")


@dataclass
class ContaminationConfig:
    """Which evaluation sets are looked for in the documents.

    tasks        names (lambada_openai, wikitext, piqa, hellaswag, winogrande), .jsonl or .txt files; empty: none
    data_dir     a folder with TASK.jsonl files; null: the Hugging Face hub
    remove       whether documents that share text with them go; otherwise they are only listed
    n            words in a row that count as shared
    shortest     shorter evaluation texts count as a whole, from so many words on
    min_matches  how many such n-grams of a set a document must have
    """

    tasks: list[str] = field(default_factory=list)
    data_dir: str | None = None
    remove: bool = False
    n: int = 13
    shortest: int = 8
    min_matches: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.shortest <= self.n:
            raise ValueError(f"data.contamination.shortest={self.shortest} must lie between 1 and n={self.n}")
        if self.min_matches < 1:
            raise ValueError(f"data.contamination.min_matches={self.min_matches} must be at least 1")


@dataclass
class DataConfig(CorpusConfig):
    """One corpus, or a mixture of several, and how they become tokens.

    corpora              a mixture: {NAME: corpus}, with the keys above; its name is kept, so that training can go on
                         when one is added
    clean                none, or ftfy: repair mojibake and normalise characters
    bad_records          stop, or skip (counted and listed): what to do at a record that cannot be read
    filters, near_duplicates, contamination    which documents are left out: see their own keys
    exact_duplicates     whether documents that repeat an earlier one to the letter are left out, in a mixture also one
                         of another corpus
    validation_fraction  share of the documents held out, chosen by a hash of their text, so that a document stays
                         on its side when the corpus grows and exact duplicates never straddle the split; of a corpus of
                         100 documents or fewer that all come to lie on one side, instead the end of each
    packing              concatenate (documents in a row, cut into sequences) or best_fit (a sequence holds whole
                         documents, as many as fit; only longer ones are cut)
    document_mask        whether attention stays within a document where several share a sequence
    shuffle_shards       how many shards of a corpus are shuffled together: 0, all of them; fewer keep reading local,
                         which shards behind a URL need
    shard_tokens         tokens in one shard file
    workers              processes that prepare; null: one for each core
    cache_dir            where prepared corpora are kept
    cache_gib            room in it for shards that came over the network
    """

    name: str = "stdlib"
    corpus: str = "stdlib"
    corpora: dict[str, Any] = field(default_factory=dict)  # of CorpusConfig: see `parts`
    clean: str = "none"
    bad_records: str = "stop"
    filters: FilterConfig = field(default_factory=FilterConfig)
    exact_duplicates: bool = False
    near_duplicates: NearConfig = field(default_factory=lambda: NearConfig(threshold=0.0))
    contamination: ContaminationConfig = field(default_factory=ContaminationConfig)
    validation_fraction: float = 0.05
    packing: str = "concatenate"
    document_mask: bool = False
    shuffle_shards: int = 0
    shard_tokens: int = 100_000_000
    workers: int | None = None
    cache_dir: str = "~/.cache/gptstar"
    cache_gib: float = 20.0

    def __post_init__(self) -> None:
        choices = (("clean", ("none", "ftfy")), ("bad_records", ("stop", "skip")), ("packing", PACKINGS))
        for key, allowed in choices:
            if getattr(self, key) not in allowed:
                raise ValueError(f"data.{key}={getattr(self, key)!r} is unknown: choose one of {', '.join(allowed)}")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"data.validation_fraction={self.validation_fraction} must lie between 0 and 1")
        for key in ("shard_tokens", "workers"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"data.{key}={value} must be at least 1")
        if self.shuffle_shards < 0:
            raise ValueError(f"data.shuffle_shards={self.shuffle_shards} must not be negative")
        if self.cache_gib <= 0:
            raise ValueError(f"data.cache_gib={self.cache_gib} must be above 0")
        if self.corpora and self.corpus == DataConfig.corpus:  # which nobody has named
            self.corpus = MIXTURE
        if (self.corpus == MIXTURE) != bool(self.corpora):
            raise ValueError(
                f"data.corpus={self.corpus} is not one of the data.corpora {', '.join(self.corpora)}: put it among them"
                if self.corpora
                else "data.corpora is empty: add corpora, for example '+data.corpora.books={paths:[books/*.txt]}'"
            )
        for name in self.parts:
            if not re.fullmatch(r"\w[\w.-]*", name):
                raise ValueError(f"{name!r} cannot name a corpus: use letters, digits, _, - and .")
        if not self.corpora:
            self.check("data")
            self._refuse_what_is_not_read()
            return
        self.corpora = {name: _corpus(f"data.corpora.{name}", values) for name, values in self.corpora.items()}
        weighted = [name for name, corpus in self.parts.items() if corpus.weight is not None]
        if weighted and len(weighted) < len(self.corpora):
            without = next(name for name in self.corpora if name not in weighted)
            raise ValueError(f"data.corpora.{without}.weight is not set, but {weighted[0]}'s is: set all or none")

    def _refuse_what_is_not_read(self) -> None:
        """Raises ValueError for what would silently be without effect."""
        if self.corpus == "stdlib":
            for key, other in (("paths", "text_files"), ("validation_paths", "text_files"), ("dataset", "hub")):
                if value := getattr(self, key):
                    raise ValueError(f"data.{key}={value} is not read by data=stdlib: add data={other}")
        for key in ("epochs", "weight"):
            if (value := getattr(self, key)) != getattr(CorpusConfig, key):
                raise ValueError(
                    f"data.{key}={value} shares a pass out among the corpora of a mixture, and this is one corpus: "
                    "leave it out; how long a run is says trainer.max_steps or trainer.max_tokens"
                )

    @property
    def parts(self) -> dict[str, CorpusConfig]:
        """The corpora by name: those of the mixture, or the only one."""
        return self.corpora or {self.name: self}

    @classmethod
    def from_dict(cls, values: dict) -> DataConfig:
        """Reads what `dataclasses.asdict` gave, in a run's config.yaml for example."""
        nested = {"filters": FilterConfig, "near_duplicates": NearConfig, "contamination": ContaminationConfig}
        made = {key: kind(**values[key]) for key, kind in nested.items() if key in values}
        return cls(**{**values, **made})


def _corpus(name: str, values: CorpusConfig | dict[str, Any]) -> CorpusConfig:
    """One corpus of a mixture. Raises ValueError for a key that is none and a value that cannot be."""
    if isinstance(values, dict):
        known = [each.name for each in fields(CorpusConfig)]
        for key in values:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"choose among {', '.join(known)}"
                raise ValueError(f"{name}.{key} is not a setting: {hint}")
        values = CorpusConfig(**values)
    elif not isinstance(values, CorpusConfig):
        raise ValueError(f"{name}={values!r} must hold the keys of a corpus, for example {{paths: [a.txt], epochs: 2}}")
    values.check(name)
    return values
