import pytest

from gptstar.errors import UserError
from gptstar.lab.reading.csv_export import read_csv
from gptstar.lab.reading.runs import Validation


def write(tmp_path, text):
    path = tmp_path / "export.csv"
    path.write_text(text, encoding="utf-8-sig")  # as spreadsheets do
    return path


CHART = """"Step","gpt2-0 - validation_loss","gpt2-0 - validation_loss__MIN","gpt2-0 - validation_loss__MAX",\
"a - b-0 - validation_loss","gpt2-0 - tokens"
"100","4.5","4.4","4.6","","1000"
"200","4.25","4.0","5.0","4.0","2000"
"""


def test_a_chart_of_wandb(tmp_path):
    path = write(tmp_path, CHART)
    run, other = read_csv(path)
    assert (run.source, run.name, run.problem, run.config) == (f"{path}: gpt2-0", "gpt2-0", None, {})
    assert run.validations == [Validation(100, 1000, None, 4.5, None), Validation(200, 2000, None, 4.25, None)]
    assert (run.final_loss, run.final_bits_per_byte, run.held_out, run.seed) == (4.25, None, None, None)
    assert (other.name, other.final_loss) == ("a - b-0", 4.0)
    assert other.problem == "its tokens are not known: neither a column tokens nor a column tokens_per_step is there"


def test_a_chart_drawn_against_tokens(tmp_path):
    (run,) = read_csv(write(tmp_path, "tokens,x - val_loss\n1000,4.5\n2000,4.0\n"))
    assert [(check.tokens, check.loss) for check in run.validations] == [(1000, 4.5), (2000, 4.0)]
    assert run.problem is None


def test_a_configuration_by_name_gives_tokens(tmp_path):
    config = {"trainer": {"batch_size": 4, "max_steps": 200}, "model": {"context": 32}}
    (run, other) = read_csv(write(tmp_path, CHART), configs={"a - b-0": config})
    assert [check.tokens for check in other.validations] == [200 * 4 * 32]
    assert (other.problem, other.budget, other.config) == (None, 200 * 128, config)
    assert run.config == {}


LONG = """run,variant,seed,step,tokens,seconds,loss,validation_loss,bits_per_byte
r1,star,0,1,10,0.5,5.0,,
r1,star,0,2,20,1.5,4.0,4.5,2.5
r2,star,1,2,20,1.25,4.0,4.25,2.25
"""


def test_a_long_table(tmp_path):
    run, other = read_csv(write(tmp_path, LONG))
    assert (run.name, run.variant, run.seed, run.problem) == ("r1", "star", 0, None)
    assert (run.steps.tolist(), run.tokens.tolist(), run.losses.tolist()) == ([1, 2], [10, 20], [5.0, 4.0])
    assert run.seconds.tolist() == [0.5, 1.5]
    assert run.validations == [Validation(2, 20, 1.5, 4.5, 2.5)]
    assert (run.final_loss, run.final_bits_per_byte) == (4.5, 2.5)
    assert (other.seed, other.final_loss) == (1, 4.25)


def test_names_of_others_and_names_that_are_told(tmp_path):
    text = "Name,_step,tokens_seen,Val/Loss,ce\nx,1,10,4.0,3.0\n"
    (run,) = read_csv(write(tmp_path, text))
    assert (run.final_loss, run.losses.tolist()) == (4.0, [])
    (run,) = read_csv(write(tmp_path, text), columns={"loss": "ce", "validation_loss": "ce"})
    assert (run.final_loss, run.losses.tolist()) == (3.0, [3.0])


def test_columns_of_the_configuration(tmp_path):
    text = "run,step,validation_loss,trainer.batch_size,model.context,model.name,trainer.max_steps,trainer.seed\n"
    rows = "x,3,4.0,4,32,tiny,6,1\ny,6,3.5,4,32,tiny,6,2\n"
    run, other = read_csv(write(tmp_path, text + rows))
    assert (run.problem, run.seed) == ("stopped at step 3 of 6", 1)
    assert (other.problem, other.budget, other.seed, other.validations[0].tokens) == (None, 768, 2, 768)
    assert other.config["model"] == {"context": 32, "name": "tiny"}


def test_a_column_below_another_one(tmp_path):
    text = "run,step,tokens,validation_loss,model.a,model.a.b,model.c\nx,3,10,4.0,1,2,three\n"
    assert read_csv(write(tmp_path, text))[0].config == {"model": {"a": {"b": 2}, "c": "three"}}


def test_tokens_a_step_in_a_column(tmp_path):
    (run,) = read_csv(write(tmp_path, "run,step,tokens_per_step,val_loss\nx,0,8,9.0\nx,3,8,4.0\n"))
    assert (run.problem, [check.tokens for check in run.validations]) == (None, [0, 24])


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ("x,1,10,1.0,nan", "its final loss is not finite"),
        ("x,1,10,9.0,4.0\nx,2,20,1.0,4.0", "its seconds fall: they must be training time since the start"),
        ("x,1,10,9.0,", "it has no validation loss"),
    ],
)
def test_a_run_that_cannot_be_compared_says_why(tmp_path, rows, problem):
    (run,) = read_csv(write(tmp_path, f"run,step,tokens,seconds,validation_loss\n{rows}\n"))
    assert run.problem == problem


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["gpt2-0", "gpt2-1", "star-0"], [("gpt2", 0), ("gpt2", 1), (None, None)]),
        (["width-64", "width-128"], [(None, None), (None, None)]),  # no seeds
        (["a-seed7", "a_s8", "a seed=9"], [("a", 7), ("a", 8), ("a", 9)]),
        (["gpt2", "gpt_3"], [(None, None), (None, None)]),
    ],
)
def test_seeds_in_names(tmp_path, names, wanted):
    text = "run,step,tokens,validation_loss\n" + "".join(f"{name},1,10,4.0\n" for name in names)
    assert [(run.variant, run.seed) for run in read_csv(write(tmp_path, text))] == wanted


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", r"has the columns a, b: needed are either run, step and validation_loss .* as wandb exports"),
        ("run,step,loss\nx,1,2\n", r"has the columns run, step, loss: needed"),
        ("", r"has the columns \(none\): needed"),
        ("run,step,val_loss\nx,one,2\n", r"line 2: step='one' is no number: mend it"),
        ("run,step,val_loss\nx,1,2\nx,2,low\n", r"line 3: val_loss='low' is no number"),
        ("run,step,val_loss\nx,nan,2\n", r"line 2: step='nan' is no number"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_csv(write(tmp_path, text))


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="cannot be read"):
        read_csv(tmp_path / "no.csv")
