"""What is shown is what is read."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from gptstar.data.config import DataConfig
from gptstar.data.corpora import CorpusConfig
from gptstar.data.packing import IGNORED
from gptstar.data.prepare import prepare
from gptstar.data.tokenizer import TokenizerConfig
from gptstar.errors import UserError
from gptstar.pretrained.native import FORMAT
from gptstar.training.config import BatchWarmup, LengthWarmup, TrainerConfig
from gptstar.training.inspection import InspectConfig, inspect, mixture_table, read_window
from gptstar.training.inspection_files import write_inspection
from gptstar.training.inspection_text import show_inspection
from gptstar.training.order import Order
from gptstar.training.run_folder import open_run_folder
from support import tiny_model, write_corpus


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> InspectConfig:
    """Two corpora, of short and of long documents, in a warm-up of batch and length."""
    folder = tmp_path_factory.mktemp("inspection")
    write_corpus(folder / "long", n_file=12)
    write_corpus(folder / "short", n_file=60, seed=1)
    for i, path in enumerate((folder / "short").glob("*.txt")):
        path.write_text(path.read_text()[: 20 + i])
    corpora = {name: CorpusConfig(paths=[f"{folder}/{name}/*.txt"]) for name in ("long", "short")}
    corpora["long"].epochs = 0.5
    return InspectConfig(
        model=tiny_model(),
        data=DataConfig(name="both", corpora=corpora, cache_dir=str(folder / "cache"), validation_fraction=0.2),
        tokenizer=TokenizerConfig(vocab_size=300),
        trainer=TrainerConfig(
            batch_size=4,
            max_steps=20,
            device="cpu",
            peak_flops=1e11,
            eval_every=0,
            batch_warmup=BatchWarmup(2, 2, 4),
            length_warmup=LengthWarmup(8, 3),
        ),
    )


def write_checkpoint(run, config, step) -> None:
    """What is read of one here."""
    folder = run / "checkpoints" / f"step-{step}"
    (folder / "training").mkdir(parents=True)
    data = prepare(config.data, config.tokenizer)
    order = Order(data, config.data, config.trainer, config.sequence_length)
    data.tokenizer.save(folder / "tokenizer.json")
    (folder / "config.json").write_text(json.dumps({"format": FORMAT, "eot_token": data.tokenizer.eot_token}))
    (folder / "training" / "progress.json").write_text(json.dumps({"data": order.as_dict(step)}))


def said(found, tokens=False) -> str:
    console = Console(file=io.StringIO(), width=160)
    show_inspection(found, console, tokens)
    return console.file.getvalue()


@pytest.mark.parametrize("packing", ["concatenate", "best_fit"])
def test_windows_are_the_rows_of_the_batch(config, packing):
    data_config = replace(config.data, packing=packing)
    data = prepare(data_config, config.tokenizer)
    order = Order(data, data_config, config.trainer, config.sequence_length)
    padded = cut = 0
    for step in (0, 1, 2, 3, 6):
        batch = order.read(step)
        for row, (inputs, targets) in enumerate(zip(batch.inputs.tolist(), batch.targets.tolist(), strict=True)):
            window = read_window(order, data.tokenizer, step, row)
            assert window.length == len(targets) == order.lengths.length(step)
            tokens = [token for segment in window.segments for token in segment.tokens]
            assert tokens + [IGNORED] * window.padding == targets
            begin = 0
            for segment in window.segments:
                assert inputs[begin] == segment.after and segment.text == data.tokenizer.decode(segment.tokens)
                assert segment.ends == (segment.tokens[-1] == data.tokenizer.eot_id)
                stream = data.corpora[window.corpus].train
                everything = stream.read(0, len(stream))
                starts = np.append(0, np.flatnonzero(everything == data.tokenizer.eot_id) + 1)
                place = starts[segment.document] + segment.first
                assert everything[place : place + len(segment.tokens)].tolist() == segment.tokens
                assert place + len(segment.tokens) <= starts[segment.document + 1]
                begin += len(segment.tokens)
            padded += window.padding > 0
            cut += not window.segments[-1].ends if window.segments else 0
    assert cut and (padded > 0) == (packing == "best_fit")


def test_the_table_adds_up(config):
    data = prepare(config.data, config.tokenizer)
    order = Order(data, config.data, config.trainer, config.sequence_length)
    rows = mixture_table(order, data, 7)
    assert sum(row.taken for row in rows.values()) == order.sizes.position(7)
    assert sum(row.share for row in rows.values()) == pytest.approx(1)
    assert rows["long"].epochs == 0.5 and rows["long"].windows == order.packings["long"].n_window
    assert {name: row.epochs_taken for name, row in rows.items()} == order.epochs(7)
    assert rows["short"].documents == data.corpora["short"].train.split.documents


def test_all_of_it_as_text_json_and_picture(config, tmp_path):
    found = inspect(replace(config, step=30, window=1))
    text = said(found)
    for words in (
        "step 30 (from 0, beyond the last of the budget, 19), sequence 1 of 4: 32 tokens of",
        "mixture at step 30",
        "what packing into 32 tokens costs",
        "* concatenate",
        "best_fit + mask",
        "a sequence has 32",
        "the most frequent of 300 tokens",
        f"long: all {found.mixture['long'].tokens:,} training tokens counted",
    ):
        assert words in text, words
    assert found.window.segments[0].text in text
    token = found.window.segments[0].tokens[3]
    assert f"{token}:" in said(found, tokens=True)
    json_path, png = write_inspection(found, str(tmp_path / "look"))
    values = json.loads(json_path.read_text())
    assert values["mixture"]["long"]["epochs"] == 0.5 and values["packing"]["chosen"] == "concatenate"
    assert values["window"]["segments"][0]["text"] == found.window.segments[0].text
    shares = [entry["share"] for entry in values["tokens"]["top"]]
    assert shares == sorted(shares, reverse=True) and len(shares) == 25
    long, short = (found.usage[name].share for name in ("long", "short"))
    weights = [found.mixture[name].share for name in ("long", "short")]
    assert np.allclose(found.mixed(), weights[0] * long + weights[1] * short) and found.mixed().sum() == pytest.approx(
        1
    )
    assert png.read_bytes().startswith(b"\x89PNG")


def test_a_run_is_shown_with_the_corpora_that_were_added_and_those_left_out(config, tmp_path):
    run = tmp_path / "run"
    resumed = replace(config, resume=str(run), run_dir=str(run))
    open_run_folder(resumed, None, {})
    assert inspect(replace(resumed, step=2)).window == inspect(replace(config, step=2)).window  # no checkpoint yet
    write_checkpoint(run, config, 6)

    write_corpus(tmp_path / "new", n_file=8, seed=2)
    new = CorpusConfig(paths=[f"{tmp_path}/new/*.txt"])
    added = replace(resumed, data=replace(config.data, corpora={**config.data.corpora, "new": new}))
    before, after = inspect(replace(added, step=5)), inspect(replace(added, step=9))
    assert "new" not in before.mixture and list(after.mixture) == ["long", "short", "new"]
    assert before.mixed().sum() == pytest.approx(1) and "new" in said(before)
    write_inspection(before, str(tmp_path / "before"))
    assert before.mixture == inspect(replace(config, step=5)).mixture

    left = replace(resumed, data=replace(config.data, corpora={"short": config.data.corpora["short"]}))
    names = [read_names(config, 4, row) for row in range(4)]
    assert set(names) == {"long", "short"}
    shown = inspect(replace(left, step=4, window=names.index("short")))
    assert shown.mixture["long"].documents == 0 and "left out since" in said(shown)
    write_inspection(shown, str(tmp_path / "left"))
    with pytest.raises(UserError, match="step=4 reads corpus 'long', which has been left out since"):
        inspect(replace(left, step=4, window=names.index("long")))
    with pytest.raises(UserError, match=r"the run was made with other settings \(trainer.batch_size 4 -> 8\)"):
        inspect(replace(resumed, trainer=replace(config.trainer, batch_size=8)))


def read_names(config, step, row) -> str:
    return inspect(replace(config, step=step, window=row)).window.corpus


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"window": 4, "step": 5}, "window=4 is out of range: step 5 has 4 sequences, 0 to 3"),
        ({"resume": "nowhere"}, "nowhere: no such run or checkpoint folder"),
        ({"output_dir": "/proc/look"}, "output_dir=/proc/look cannot be made"),
        ({"step": -1}, "step=-1 must be at least 0"),
    ],
)
def test_mistakes_are_one_line(config, changes, words):
    with pytest.raises((UserError, ValueError), match=words):
        inspect(replace(config, **changes))
