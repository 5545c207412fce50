"""Links between the pages, and paths they name, lead somewhere; every setting is explained."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gptstar.consolidate import ConsolidateConfig
from gptstar.data.config import ContaminationConfig, DataConfig
from gptstar.data.corpora import CorpusConfig
from gptstar.data.duplicates import NearConfig
from gptstar.data.filters import FilterConfig
from gptstar.data.tokenizer import TokenizerConfig
from gptstar.describe import DescribeConfig
from gptstar.evaluation.command import EvaluateConfig
from gptstar.evaluation.perplexity import PerplexityConfig
from gptstar.generation.settings import SamplingSettings
from gptstar.lab.command import CompareConfig
from gptstar.lab.coordinates import CoordinateConfig
from gptstar.model.config import ModelConfig
from gptstar.plan import PlanConfig
from gptstar.prepare import PrepareConfig
from gptstar.report import ReportConfig
from gptstar.training.config import LoggerConfig, TrainConfig, TrainerConfig
from gptstar.training.inspection import InspectConfig
from gptstar.training.optimizers import OptimizerConfig
from gptstar.training.schedules import ScheduleConfig

SCHEMAS = [
    *(ModelConfig, TrainConfig, TrainerConfig, LoggerConfig, OptimizerConfig, ScheduleConfig, SamplingSettings),
    *(DataConfig, CorpusConfig, TokenizerConfig, FilterConfig, NearConfig, ContaminationConfig, PrepareConfig),
    *(EvaluateConfig, PerplexityConfig, ReportConfig, CompareConfig, CoordinateConfig, ConsolidateConfig),
    *(DescribeConfig, PlanConfig, InspectConfig),
]
ROOT = Path(__file__).resolve().parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_of_the_project_that_are_named_are_there(page):
    if page.name in ("CHANGELOG.md", "traininglog.md"):  # what was, too
        return
    path = r"`((?:gptstar|tests|benchmarks|configs|docs)/[\w./-]+\.(?:py|md|yaml|json|cpp|png))`"
    missing = [
        path
        for path in re.findall(path, page.read_text())
        if not (ROOT / path).exists() and path != "configs/experiment/mine.yaml"
    ]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_nothing_is_left_to_fill_in(page):
    assert not re.findall(r"@[A-Z_]+@|\bTODO\b|\bTBD\b|\bXXX\b", page.read_text())


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: schema.__name__)
def test_every_setting_is_in_the_docstring(schema):
    assert schema.__annotations__
    missing = [name for name in schema.__annotations__ if not re.search(rf"\b{name}\b", schema.__doc__)]
    assert not missing
