import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptstar.training.warmup import BatchRamp, LengthRamp


@st.composite
def batch_ramps(draw):
    increment, first, n_more = draw(st.integers(1, 64)), draw(st.integers(1, 8)), draw(st.integers(0, 12))
    steps = draw(st.just(0) | st.integers(n_more, 200))
    return BatchRamp(first * increment, (first + n_more) * increment, increment, steps)


@given(batch_ramps())
def test_the_position_is_the_sum_of_the_sizes(ramp):
    sizes = [ramp.size(step) for step in range(ramp.steps + 20)]
    for step, before in enumerate(itertools.accumulate(sizes, initial=0)):
        assert ramp.position(step) == before
    assert ramp.position(10**12) == ramp.position(ramp.steps) + (10**12 - ramp.steps) * ramp.last


@given(batch_ramps(), st.integers(0, 10**5))
def test_so_many_sequences_pay_for_so_many_steps(ramp, n_sequence):
    steps = ramp.steps_for(n_sequence)
    assert ramp.position(steps) <= n_sequence < ramp.position(steps + 1)


@given(batch_ramps())
def test_sizes_rise_by_equal_stages(ramp):
    sizes = [ramp.size(step) for step in range(ramp.steps + 2)]
    assert sizes == sorted(sizes) and all(size % ramp.increment == 0 for size in sizes)
    assert sizes[-2] == ramp.last and sizes[0] == (ramp.first if ramp.steps else ramp.last)
    if ramp.steps and ramp.first < ramp.last:
        during = [sum(1 for _ in group) for _, group in itertools.groupby(sizes[: ramp.steps])]
        assert len(during) == (ramp.last - ramp.first) // ramp.increment and max(during) - min(during) <= 1


def test_stages_say_when_each_size_begins():
    assert BatchRamp(32, 128, 32, 9).stages == [(0, 32), (3, 64), (6, 96), (9, 128)]
    assert BatchRamp(32, 128, 32, 0).stages == [(0, 128)]


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 300))
def test_lengths_rise_to_the_full_one_and_divide_it(first, factor, steps):
    n_stage = len(LengthRamp(first, first * factor, 10**6).stages) - 1
    ramp = LengthRamp(first, first * factor, 0 if steps < n_stage else steps)
    lengths = [ramp.length(step) for step in range(ramp.steps + 2)]
    assert lengths == sorted(lengths) and all(ramp.last % n == 0 for n in lengths)
    assert lengths[-2] == ramp.last and lengths[0] == (ramp.first if ramp.steps else ramp.last)
    begins = [begin for begin, _ in ramp.stages]
    assert all(ramp.length(begin) == value for begin, value in ramp.stages)
    if ramp.steps and n_stage:
        during = [b - a for a, b in itertools.pairwise(begins)]
        assert sum(during) == ramp.steps and max(during) - min(during) <= 1
        assert all(b >= 2 * a for (_, a), (_, b) in itertools.pairwise(ramp.stages))


def test_lengths_double_where_they_can():
    assert LengthRamp(64, 512, 30).stages == [(0, 64), (10, 128), (20, 256), (30, 512)]
    assert [n for _, n in LengthRamp(128, 640, 30).stages] == [128, 320, 640]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((0, 64, 32, 10), "trainer.batch_warmup.first=0 must be at least 1"),
        ((32, 64, 0, 10), "trainer.batch_warmup.increment=0"),
        ((32, 64, 32, -1), "trainer.batch_warmup.steps=-1"),
        ((128, 64, 32, 10), "first=128 must not be larger than the batch it leads to"),
        ((48, 64, 32, 10), "increment=32 must divide the first batch size"),
        ((32, 80, 32, 10), "increment=32 must divide the last batch size"),
        ((32, 128, 32, 2), "steps=2 is too short for 3 stages"),
    ],
)
def test_batch_ramps_that_cannot_be_are_named(values, words):
    with pytest.raises(ValueError, match=words):
        BatchRamp(*values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((0, 512, 10), "trainer.length_warmup.first=0 must divide"),
        ((100, 512, 10), "first=100 must divide the sequence length of 512"),
        ((64, 512, -1), "trainer.length_warmup.steps=-1"),
        ((64, 512, 2), "steps=2 is too short for 3 stages"),
    ],
)
def test_length_ramps_that_cannot_be_are_named(values, words):
    with pytest.raises(ValueError, match=words):
        LengthRamp(*values)
