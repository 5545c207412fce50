import pytest

from gptstar.training.metrics import MetricsLog, read_metrics


class Recorder:
    def __init__(self) -> None:
        self.calls: list[tuple[int, dict]] = []

    def log(self, values, step):
        self.calls.append((step, dict(values)))

    def close(self):
        self.calls.append((-1, {}))


def test_lines_reach_the_file_and_the_tracker(tmp_path):
    recorder = Recorder()
    log = MetricsLog(tmp_path, 0, recorder)
    log.write([{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}])
    log.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}]
    assert recorder.calls == [(1, {"step": 1, "loss": 2.0}), (2, {"step": 2}), (-1, {})]


@pytest.mark.parametrize("torn", ['{"step": 4, "lo', "", '{"step": 4}'])
def test_a_continued_run_drops_what_it_will_write_again_and_a_torn_line(tmp_path, torn):
    lines = [
        '{"step": 1}',
        '{"step": 2}',
        '{"step": 2, "validation_loss": 1.0}',
        '{"step": 2, "final_loss": 1}',
        '{"step": 3}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n" + torn)
    log = MetricsLog(tmp_path, 2, None)
    log.write([{"step": 3, "new": True}])
    log.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [
        {"step": 1},
        {"step": 2},
        {"step": 2, "validation_loss": 1.0},
        {"step": 3, "new": True},
    ]


def test_a_run_without_metrics_has_none(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []
