"""Stock tasks on files of one's own."""

import json

import pytest

from gptstar.errors import UserError
from gptstar.evaluation import tasks
from gptstar.evaluation.tasks import _leaves, _manager, load_tasks
from support import write_tasks

TASKS = ["lambada_openai", "wikitext", "piqa", "hellaswag", "winogrande"]


@pytest.fixture
def data_dir(tmp_path):
    return write_tasks(tmp_path / "data", n_document=4)


def test_the_five_tasks_read_their_own_fields_with_stock_prompts_and_metrics(data_dir):
    loaded = load_tasks(TASKS, str(data_dir))
    assert [task.name for task in loaded] == TASKS
    tasks = {task.name: task.loaded["tasks"][task.name] for task in loaded}
    documents = {name: [json.loads(line) for line in (data_dir / f"{name}.jsonl").open()] for name in TASKS}
    for name, task in tasks.items():
        assert [{k: doc[k] for k in documents[name][0]} for doc in task.eval_docs] == documents[name]
        assert task.config.num_fewshot == 0 and not task.has_training_docs()
    piqa = documents["piqa"][0]
    assert tasks["piqa"].doc_to_text(piqa) == f"Question: {piqa['goal']}\nAnswer:"
    assert tasks["hellaswag"].eval_docs[0]["query"].startswith(documents["hellaswag"][0]["activity_label"].strip())
    assert {name: sorted(task.aggregation()) for name, task in tasks.items()} == {
        "lambada_openai": ["acc", "perplexity"],
        "wikitext": ["bits_per_byte", "byte_perplexity", "word_perplexity"],
        "piqa": ["acc", "acc_norm"],
        "hellaswag": ["acc", "acc_norm"],
        "winogrande": ["acc"],
    }
    assert list(loaded[2].files) == [str(data_dir / "piqa.jsonl")]


def test_examples_come_from_a_file_of_their_own(data_dir):
    with pytest.raises(UserError, match=r"num_fewshot=2 of task piqa needs .*piqa\.train\.jsonl"):
        load_tasks(["piqa"], str(data_dir), num_fewshot=2)
    lines = (data_dir / "piqa.jsonl").read_text().replace('"goal": "', '"goal": "EXAMPLE ')
    (data_dir / "piqa.train.jsonl").write_text(lines)
    (task,) = load_tasks(["piqa"], str(data_dir), num_fewshot=2)
    piqa = task.loaded["tasks"]["piqa"]
    piqa.build_all_requests(limit=1)
    assert piqa.instances[0].args[0].count("Question: EXAMPLE") == 2
    assert len(task.files) == 2


def test_a_task_that_always_has_examples_needs_them_too(data_dir):
    lines = "".join(json.dumps({"question": f"q{n}", "answer": f"#### {n}"}) + "\n" for n in range(8))
    (data_dir / "gsm8k.jsonl").write_text(lines)
    with pytest.raises(UserError, match=r"num_fewshot=5 of task gsm8k needs .*gsm8k\.train\.jsonl"):
        load_tasks(["gsm8k"], str(data_dir))
    (data_dir / "gsm8k.train.jsonl").write_text(lines.replace(': "q', ': "example'))
    for wanted, shots in ((None, 5), (1, 1), (0, 0)):
        (task,) = load_tasks(["gsm8k"], str(data_dir), num_fewshot=wanted)
        gsm8k = task.loaded["tasks"]["gsm8k"]
        gsm8k.build_all_requests(limit=1)
        assert gsm8k.instances[0].args[0].count("example") == shots


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: (d / "piqa.jsonl").write_text('{"goal": 1\n'), r"piqa\.jsonl, line 1: no valid JSON"),
        (lambda d: (d / "piqa.jsonl").write_text('{"sol1": "a", "sol2": "b", "label": 0}\n'), "lack a field .* 'goal'"),
        (lambda d: (d / "piqa.jsonl").unlink(), r"piqa\.jsonl does not exist: task piqa needs it"),
        (lambda d: [path.unlink() for path in d.iterdir()], "holds no .jsonl file"),
        (lambda d: [path.unlink() for path in d.iterdir()] and d.rmdir(), "is no folder"),
    ],
)
def test_data_that_does_not_fit_is_refused_in_one_line(data_dir, change, words):
    change(data_dir)
    with pytest.raises(UserError, match=words) as error:
        load_tasks(["piqa"], str(data_dir))
    assert "\n" not in str(error.value)


def test_a_missing_field_is_named_where_code_reads_it(data_dir):
    (data_dir / "hellaswag.jsonl").write_text('{"activity_label": "a", "ctx_b": "b", "endings": ["c"], "label": "0"}\n')
    with pytest.raises(UserError, match=r"lack a field that task hellaswag reads .*ctx_a"):
        load_tasks(["hellaswag"], str(data_dir))


def test_without_a_network_the_hub_is_named_as_what_is_missing():
    with pytest.raises(UserError, match=r"data of task piqa is not in the local cache .* with piqa\.jsonl"):
        load_tasks(["piqa"])


def test_an_unknown_task_offers_the_closest(data_dir):
    with pytest.raises(UserError, match=r"task 'helaswag' is unknown .* did you mean hellaswag, "):
        load_tasks(["helaswag"], str(data_dir))


@pytest.mark.slow  # the harness reads all of its definitions
def test_a_tag_and_a_group_of_groups_are_the_tasks_they_stand_for(tmp_path, monkeypatch):
    question = {"id": "1", "question": "What melts?", "choices": {"text": ["ice", "fire"], "label": ["A", "B"]}}
    arc = json.dumps({**question, "answerKey": "A"})
    subject = json.dumps(
        {"question": "What melts?", "choices": ["ice", "fire", "air", "law"], "answer": 0, "subject": "x"}
    )
    manager = _manager(["ai2_arc", "mmlu"])
    monkeypatch.setattr(tasks, "_manager", lambda names: manager)
    leaves = _leaves(manager, "mmlu")
    assert len(leaves) == len(set(leaves)) == 57
    for name in ("arc_easy", "arc_challenge", *leaves):
        (tmp_path / f"{name}.jsonl").write_text((arc if name.startswith("arc") else subject) + "\n")
    tag, group = load_tasks(["ai2_arc", "mmlu"], str(tmp_path))
    assert sorted(tag.loaded["tasks"]) == ["arc_challenge", "arc_easy"] and len(tag.files) == 2
    assert sorted(group.loaded["tasks"]) == sorted(leaves) and len(group.files) == 57
    assert tag.loaded["tasks"]["arc_easy"].doc_to_text(json.loads(arc)) == "Question: What melts?\nAnswer:"
    (tmp_path / "arc_easy.jsonl").unlink()
    with pytest.raises(UserError, match=r"arc_easy\.jsonl does not exist: task arc_easy needs it"):
        load_tasks(["ai2_arc"], str(tmp_path))
