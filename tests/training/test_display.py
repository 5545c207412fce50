import io

from rich.console import Console

from gptstar.training.display import Display


def shown(tmp_path, terminal: bool, steps: list[float], total: int = 10) -> str:
    out = io.StringIO()
    display = Display(Console(file=out, force_terminal=terminal, width=120), tmp_path / "train.log")
    with display.running(0, total):
        display.note("a [note]")
        for number, seconds in enumerate(steps, 1):
            display.step(number, 2.5, seconds, 1000 / seconds, 0.5 / seconds)
    display.close()
    return out.getvalue()


def test_plain_lines_have_step_loss_speed_mfu_and_time_left(tmp_path):
    lines = shown(tmp_path, False, [1.0]).splitlines()
    assert lines == ["a [note]", "step 1/10  loss 2.500  1,000 tokens/s  MFU 50%  ETA 0:00:09"]
    assert (tmp_path / "train.log").read_text().endswith("a [note]\n")


def test_the_first_slow_step_is_forgotten(tmp_path):
    last = shown(tmp_path, False, [60.0, 1.0, 1.0, 1.0], total=4).splitlines()[-1]
    assert "1,000 tokens/s  MFU 50%  ETA 0:00:00" in last


def test_a_terminal_gets_one_live_line(tmp_path):
    text = shown(tmp_path, True, [1.0, 1.0])
    assert "step 2/10" in text and "a [note]" in text and "\x1b[" in text
