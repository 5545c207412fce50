import pytest

from gptstar.data.tokenizer import TokenizerConfig
from gptstar.errors import UserError
from gptstar.training.config import LoggerConfig, TrainConfig, TrainerConfig, spare_embeddings
from gptstar.training.schedules import ScheduleConfig
from support import tiny_model


def config(trainer=None, schedule=None, **changes) -> TrainConfig:
    return TrainConfig(
        model=tiny_model(**changes),
        tokenizer=TokenizerConfig(vocab_size=300),
        trainer=TrainerConfig(**{"max_steps": 10, **(trainer or {})}),
        schedule=ScheduleConfig(**(schedule or {})),
    )


def test_a_budget_in_tokens_is_whole_steps():
    run = config({"max_steps": None, "max_tokens": 1000, "batch_size": 4})
    assert (run.tokens_per_step, run.total_steps) == (128, 7)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: config(schedule={"warmup_steps": 11}), "schedule.warmup_steps=11 is longer than the run of 10 steps"),
        (lambda: config({"sequence_length": 64}, position="learned"), "trainer.sequence_length=64 is longer"),
        (lambda: config({"max_steps": None, "max_tokens": 100}), "trainer.max_tokens=100 is less than one step"),
        (
            lambda: config({"attention": "flex", "device": "cpu"}),
            "trainer.attention=flex: .* cannot be used to train on a CPU.*: choose auto or one of dense, sdpa, folded",
        ),
        (
            lambda: config({"attention": "folded", "device": "cpu"}, windows=[0, 5]),
            r"trainer.attention=folded: .* windows shorter than the sequence \(model.windows\): choose auto or",
        ),
        (lambda: config(vocab_size=299), "the tokenizer has 300 tokens but model.vocab_size=299"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused(make, words):
    with pytest.raises(UserError, match=words):
        make().check()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"precision": "fp8"}, "trainer.precision='fp8' is unknown"),
        ({"max_tokens": 5}, "exactly one"),
        ({"max_steps": None}, "exactly one"),
        ({"batch_size": 6, "microbatch": 4}, "trainer.batch_size=6 is not a multiple of trainer.microbatch=4"),
        ({"attention": "fast"}, "trainer.attention='fast' is unknown: choose one of auto, dense, sdpa, folded, flex"),
        ({"batch_size": 0}, "trainer.batch_size=0"),
        ({"nonfinite": "ignore"}, "trainer.nonfinite='ignore'"),
        ({"clip": -1.0}, "trainer.clip=-1.0"),
        ({"keep_last": 0}, "trainer.keep_last=0"),
    ],
)
def test_impossible_trainer_settings_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        TrainerConfig(**{"max_steps": 10, **changes})


def test_an_unknown_logger_is_refused():
    with pytest.raises(ValueError, match=r"logger\.name='mlflow' is unknown: choose one of jsonl"):
        LoggerConfig(name="mlflow")


@pytest.mark.parametrize(("steps", "n_warmup"), [(600, 20), (5, 2)])
def test_a_run_keeps_the_number_that_null_stood_for(steps, n_warmup):
    """So that a run of an older version, which had the number, is the same run."""
    made = config(schedule={"warmup_steps": None}, trainer={"max_steps": steps})
    assert made.schedule.warmup_steps == n_warmup


def test_a_budget_that_cannot_be_is_told_of_by_check():
    made = config(schedule={"warmup_steps": None}, trainer={"max_steps": None, "max_tokens": 1})
    with pytest.raises(UserError, match="less than one step"):
        made.check()


def test_embeddings_that_are_of_no_use_are_remarked_on():
    model = tiny_model(vocab_size=300)
    assert spare_embeddings(300, model) is None and spare_embeddings(270, model) is None
    assert spare_embeddings(269, model).startswith("31 of the 300 embeddings stand for no token")
    assert "model.vocab_size=269 makes" in spare_embeddings(269, model)
