"""Every kernel against the dense definition, and that one against a loop."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gptstar.model.folded import FOLDED_LONGEST, fold, folded_widths
from gptstar.model.kernel_choice import KERNELS, check_kernel, pick_kernel
from gptstar.model.kernels import Case, View, visible
from gptstar.model.positions import SCHEMES, NoPosition
from gptstar.model.transformer import GPT
from support import tiny_model

DOCUMENTS = torch.tensor([[0] * 60 + [1] * 70 + [2] * 20, [0] * 149 + [1]])


def look(scheme, n_query=150, n_key=150, window=0, documents=None, dtype=torch.float64, device="cpu", **model) -> View:
    """What the last n_query of n_key tokens see; model: changes of one with 6 heads whose scores are scaled by 0.3."""
    config = tiny_model(**{"n_head": 6, "score_scale": 0.3, **model})
    if isinstance(scheme, str):
        scheme = SCHEMES[scheme](config).to(device, dtype)
        torch.manual_seed(1)
        for parameter in scheme.parameters():
            torch.nn.init.normal_(parameter)
    case = Case(config, scheme, window if window < n_key else 0, device, n_key, documents is not None)
    documents = None if documents is None else documents.to(device)
    return View(case, torch.arange(n_key - n_query, n_key, device=device), dtype, document_BT=documents)


def states(view: View, n_kv_head: int = 6, requires_grad: bool = True):
    torch.manual_seed(0)
    size = view.case.config.head_size
    options = {"dtype": view.dtype, "device": view.slot.device, "requires_grad": requires_grad}
    q = torch.randn(2, 6, len(view.slot), size, **options)
    return q, *(torch.randn(2, n_kv_head, view.case.n_key, size, **options) for _ in range(2))


def gradients(output, inputs):
    torch.manual_seed(2)
    seed = torch.randn(output.shape, dtype=torch.float64).to(output)
    return torch.autograd.grad(output, inputs, seed)


def assert_all_close(actual, expected, tolerance):
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kernel", ["dense", "sdpa"])
@pytest.mark.parametrize("d_head", [32, 64, 96, 128, 192])
@pytest.mark.parametrize("position", ["alibi", "relative", "none"])
@pytest.mark.parametrize(("n_query", "n_key", "window"), [(17, 17, 0), (17, 17, 5), (1, 9, 0), (1, 9, 4), (4, 9, 0)])
@pytest.mark.parametrize("n_kv_head", [6, 2, 1])
def test_dense_and_sdpa_equal_a_loop_in_float64_forward_and_backward(
    kernel, d_head, position, n_query, n_key, window, n_kv_head
):
    view = look(position, n_query, n_key, window, d_head=d_head)
    q, k, v = states(view, n_kv_head)
    bias = view.case.scheme.score_bias(view.slot, torch.arange(n_key), q.dtype)
    expected = attention_by_loop(q, k, v, bias, window, 0.3)
    actual = KERNELS[kernel](view)(q, k, v)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
    assert_all_close(gradients(actual, (q, k, v)), gradients(expected, (q, k, v)), 1e-9)


def attention_by_loop(q, k, v, bias, window, scale, softcap=0.0):
    """One query and head at a time, only the keys it may see."""
    heads = []
    offset, group = k.shape[2] - q.shape[2], q.shape[1] // k.shape[1]
    for h in range(q.shape[1]):
        rows = []
        for t in range(q.shape[2]):
            seen = slice(max(0, offset + t + 1 - window) if window else 0, offset + t + 1)
            scores = torch.einsum("bd,bsd->bs", q[:, h, t], k[:, h // group, seen]) * scale
            if softcap:
                scores = softcap * torch.tanh(scores / softcap)
            if bias is not None:
                scores = scores + bias[h, t, seen].detach()
            rows.append(torch.einsum("bs,bsd->bd", scores.softmax(-1), v[:, h // group, seen]))
        heads.append(torch.stack(rows, 1))
    return torch.stack(heads, 1)


def test_a_soft_cap_bounds_the_scores_before_the_bias():
    view = look("alibi", 9, 9, score_softcap=1.5)
    q, k, v = states(view)
    bias = view.case.scheme.score_bias(view.slot, view.slot, q.dtype)
    expected = attention_by_loop(q, k, v, bias, 0, 0.3, softcap=1.5)
    torch.testing.assert_close(KERNELS["dense"](view)(q, k, v), expected, rtol=1e-12, atol=1e-12)


def test_the_mask_aligns_queries_to_the_last_keys_and_windows_count_the_query():
    assert visible(torch.tensor([2, 3]), torch.arange(4), 0).tolist() == [[True, True, True, False], [True] * 4]
    assert visible(torch.arange(3), torch.arange(3), 2).tolist() == [
        [True, False, False],
        [True, True, False],
        [False, True, True],
    ]


def test_a_window_as_long_as_the_sequence_costs_no_mask():
    assert look("none", 7, 7, 8).dense_bias() is None
    assert look("none", 7, 8, 7).dense_bias() is not None


@pytest.mark.parametrize("d_head", [64, 128, 192])
@pytest.mark.parametrize("position", ["alibi", "alibi_learned", "none"])
@pytest.mark.parametrize("n_kv_head", [6, 2, 1])
def test_folded_equals_dense_in_float64_forward_and_backward(d_head, position, n_kv_head):
    view = look(position, d_head=d_head)
    learned = [*view.case.scheme.parameters()]
    inputs = (*states(view, n_kv_head), *learned)
    actual, expected = (KERNELS[name](view)(*inputs[:3]) for name in ("folded", "dense"))
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)
    assert_all_close(gradients(actual, inputs), gradients(expected, inputs), 1e-9)


FLEX_CASES = [
    *((position, {"d_head": d_head}) for position in ("alibi", "none") for d_head in (64, 128, 192)),
    ("alibi_learned", {}),
    *((position, {"window": 40}) for position in ("alibi", "none")),
    ("alibi", {"documents": DOCUMENTS}),
    ("alibi", {"score_softcap": 1.5}),
    ("alibi", {"window": 40, "documents": DOCUMENTS, "score_softcap": 1.5}),
]


@pytest.mark.parametrize(("position", "rest"), FLEX_CASES)
def test_flex_equals_dense_forward(position, rest):
    view = look(position, dtype=torch.float32, **rest)
    with torch.no_grad():
        for n_kv_head in (6, 2):
            q, k, v = states(view, n_kv_head, requires_grad=False)
            actual, expected = (KERNELS[name](view)(q, k, v) for name in ("flex", "dense"))
            torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


@given(st.floats(1e-4, 1e4), st.integers(1, FOLDED_LONGEST), st.floats(0, 1), st.sampled_from(["bfloat16", "float32"]))
@example(2**-0.5, 8192, 1.0, "bfloat16")
def test_a_folded_bias_is_linear_to_the_last_bit_with_a_slope_right_to_17(slope, n_token, share, dtype):
    query, key = fold(torch.tensor([slope], dtype=torch.float32), n_token)
    query, key = (x.to(getattr(torch, dtype)).double() for x in (query, key))
    used = query[0, 1] + query[0, 3]
    assert abs(used.item() - slope) <= 2**-17 * slope
    j = int(share * (n_token - 1))
    assert (query @ key[j]).item() == (used * (j - n_token // 2)).item()


@settings(max_examples=30)
@given(st.integers(1, 300), st.integers(1, 3), st.integers(0, 2**31))
def test_folding_changes_nothing_whatever_the_length(n_token, n_head, seed):
    view = look("alibi", n_token, n_token, n_head=n_head, d_head=5)
    torch.manual_seed(seed)
    q, k, v = torch.randn(3, 1, n_head, n_token, 5, dtype=torch.float64)
    actual, expected = (KERNELS[name](view)(q, k, v) for name in ("folded", "dense"))
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.01), (torch.float32, 1e-3)])
@pytest.mark.parametrize("n_token", [1024, 8192])
def test_a_folded_bias_far_from_the_middle_costs_no_more_than_rounding(dtype, tolerance, n_token):
    """Against float64 on the same rounded inputs; bf16 alone rounds outputs by up to 2^-9 of them."""
    view = look("alibi", n_token, n_token, dtype=dtype, n_head=3, d_head=16)
    q, k, v = torch.randn(3, 1, 3, n_token, 16, dtype=torch.float64).to(dtype)
    actual = KERNELS["folded"](view)(q, k, v).double()
    rows = torch.tensor([0, 1, 100, n_token // 2, n_token - 2, n_token - 1])
    exact = View(view.case, rows, torch.float64)
    scores = q[:, :, rows].double() @ k.double().transpose(-1, -2) * 0.3
    expected = (scores + exact.dense_bias()).softmax(-1) @ v.double()
    error = (actual[:, :, rows] - expected).norm() / expected.norm()
    assert error < tolerance


def test_widths_that_fused_kernels_want():
    assert [folded_widths(size, False) for size in (60, 64, 128, 192, 252)] == [(w, w) for w in (64, 72, 136, 200, 256)]
    assert folded_widths(128, True) == (192, 128) and folded_widths(124, True) == (128, 128)
    assert folded_widths(64, True) == (72, 72) and folded_widths(192, True) == (200, 200)


@pytest.mark.parametrize("cudnn", [False, True])
@pytest.mark.parametrize("d_head", [64, 120, 126, 128])
def test_padded_values_are_cut_again(monkeypatch, cudnn, d_head):
    monkeypatch.setattr("gptstar.model.folded.folded_widths", lambda size, _: folded_widths(size, cudnn))
    view = look("alibi", 20, 20, d_head=d_head)
    q, k, v = states(view)
    actual, expected = (KERNELS[name](view)(q, k, v) for name in ("folded", "dense"))
    torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-11)


def on_cuda(position="alibi", **changes) -> Case:
    fields = {field.name for field in dataclasses.fields(Case)}
    config = tiny_model(**{"d_head": 64, **{k: v for k, v in changes.items() if k not in fields}})
    case = Case(config, SCHEMES[position](config), 0, "cuda", 512)
    return dataclasses.replace(case, **{k: v for k, v in changes.items() if k in fields})


@pytest.mark.parametrize(
    ("case", "name"),
    [
        (on_cuda(), "folded"),
        (on_cuda("alibi_learned"), "sdpa"),
        (on_cuda("alibi_learned", documents=True), "sdpa"),
        (on_cuda("alibi_learned", gradients=False), "folded"),
        (on_cuda(gradients=False), "folded"),
        (on_cuda("rotary"), "sdpa"),
        (on_cuda("relative"), "sdpa"),
        (on_cuda("relative", documents=True), "sdpa"),
        (on_cuda("relative", score_softcap=5.0), "dense"),
        (on_cuda(documents=True), "flex"),
        (on_cuda("none", documents=True), "flex"),
        (on_cuda(window=128), "flex"),
        (on_cuda(score_softcap=5.0), "flex"),
        (on_cuda(window=128, gradients=False), "sdpa"),
        (on_cuda(window=128, gradients=False, compiled=True), "flex"),
        (on_cuda(d_head=8, documents=True), "sdpa"),
        (on_cuda(d_head=256), "sdpa"),
        (on_cuda(n_key=FOLDED_LONGEST + 1), "sdpa"),
        (on_cuda(whole=False), "sdpa"),
        (on_cuda(whole=False, score_softcap=5.0), "dense"),
        (on_cuda(device="cpu"), "sdpa"),
        (on_cuda(device="cpu", score_softcap=5.0), "dense"),
        (on_cuda(device="mps"), "sdpa"),
    ],
)
def test_auto(case, name):
    assert pick_kernel(case) == name
    assert KERNELS[name].obstacle(case) is None


@pytest.mark.parametrize(
    ("choice", "case", "reason"),
    [
        ("folded", on_cuda(documents=True), "with document masks.*auto or one of dense, sdpa, flex$"),
        ("folded", on_cuda("alibi_learned"), "to train the slopes.*auto or one of dense, sdpa, flex$"),
        ("folded", on_cuda(window=3), "with windows"),
        ("folded", on_cuda("relative"), "not linear.*auto or one of dense, sdpa$"),
        ("folded", on_cuda(score_softcap=1.0), "soft-cap.*auto or one of dense, flex$"),
        ("folded", on_cuda(d_head=253), "more than 252 channels"),
        ("folded", on_cuda(n_key=2**16 + 1), "more than 65536 tokens"),
        ("sdpa", on_cuda(score_softcap=1.0), "soft-cap"),
        ("flex", on_cuda(device="cpu"), "to train on a CPU"),
        ("flex", on_cuda(device="mps"), "on mps"),
        ("flex", on_cuda(d_head=8), "fewer than 16"),
        ("flex", on_cuda("relative"), "not linear"),
        ("flex_flash", on_cuda(device="cpu"), "on cpu"),
        ("flex_flash", on_cuda(), "flash-attn-4"),
    ],
)
def test_a_choice_that_cannot_be_used_is_refused_with_the_reason_and_what_can(monkeypatch, choice, case, reason):
    monkeypatch.setattr("gptstar.model.flex._flash_is_installed", lambda: False)
    with pytest.raises(ValueError, match=rf"attention kernel {choice} cannot be used .*{reason}"):
        pick_kernel(case, choice)


def test_flash_trains_no_slopes(monkeypatch):
    monkeypatch.setattr("gptstar.model.flex._flash_is_installed", lambda: True)
    assert KERNELS["flex_flash"].obstacle(on_cuda("alibi_learned")) is not None
    assert KERNELS["flex_flash"].obstacle(on_cuda("alibi_learned", gradients=False)) is None
    assert KERNELS["flex_flash"].obstacle(on_cuda()) is None


def test_a_choice_gives_way_where_a_cache_rules_it_out():
    assert pick_kernel(on_cuda(whole=False), "folded") == "sdpa"
    assert pick_kernel(on_cuda(whole=False), "dense") == "dense"


def test_a_run_is_checked_layer_by_layer_against_the_length_it_trains_on():
    config = tiny_model(windows=[0, 64], layer_positions=["alibi", "rotary"])
    check_kernel("folded", config, "cuda", 64, documents=False)
    with pytest.raises(ValueError, match="windows shorter"):
        check_kernel("folded", config, "cuda", 65, documents=False)


def test_how_a_scheme_biases_scores_is_seen_from_what_it_overrides():
    kinds = {name: scheme.bias_kind for name, scheme in SCHEMES.items()}
    none = dict.fromkeys(("none", "learned", "sinusoidal", "rotary"), "none")
    assert kinds == {**none, "alibi": "linear", "alibi_learned": "linear", "relative": "table"}

    class Odd(SCHEMES["alibi"]):
        def score_bias(self, slot, key_S, dtype):
            return NoPosition.score_bias(self, slot, key_S, dtype).square()

    assert Odd.bias_kind == "table"


MODELS = [{}, {"n_kv_head": 1}, {"layer_positions": ["alibi", "rotary"]}]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", ["sdpa", "folded"])
def test_a_model_trains_the_same_with_every_kernel(model, name, monkeypatch):
    expected = loss_and_gradients(model, "dense", monkeypatch)
    actual = loss_and_gradients(model, name, monkeypatch)
    assert_all_close(actual, expected, 1e-9)


def loss_and_gradients(model, name, monkeypatch, **options):
    torch.manual_seed(0)
    gpt = GPT(tiny_model(context=200, init_std=0.3, **model)).double()
    gpt.attention_kernel = name
    tokens = torch.randint(0, 300, (2, 150))
    with monkeypatch.context() as patch:
        if name == "folded":
            patch.delattr(View, "dense_bias")  # nothing may make one
        loss = gpt(tokens, tokens.roll(-1, 1), **options)
    return loss, *torch.autograd.grad(loss, list(gpt.parameters()))


@pytest.mark.parametrize("model", [{}, {"windows": [0, 40]}, {"score_softcap": 2.0}])
@pytest.mark.parametrize("documents", [None, DOCUMENTS])
def test_a_model_reads_the_same_with_flex_and_makes_no_dense_bias(model, documents, monkeypatch):
    torch.manual_seed(0)
    gpt = GPT(tiny_model(context=200, init_std=0.3, **model)).double()
    tokens = torch.randint(0, 300, (2, 150))
    with torch.no_grad():
        expected = gpt(tokens, document_BT=documents)
        gpt.attention_kernel = "flex"
        monkeypatch.delattr(View, "dense_bias")
        actual = gpt(tokens, document_BT=documents)
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


def test_a_model_with_a_chosen_kernel_generates_with_its_cache_as_ever():
    gpt = GPT(tiny_model(init_std=0.3)).double()
    gpt.attention_kernel = "folded"
    tokens = torch.randint(0, 300, (2, 13))
    cache = gpt.new_cache(2, 13)
    pieces = [gpt(piece, cache=cache) for piece in tokens.split([5, 1, 7], 1)]
    torch.testing.assert_close(torch.cat(pieces, 1), gpt(tokens), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "position"), [("folded", "alibi"), ("folded", "alibi_learned"), ("flex", "alibi")])
def test_a_compiled_model_is_one_graph_with_every_kernel_recomputed_or_not(name, position):
    torch._dynamo.reset()
    torch.manual_seed(0)
    gpt = GPT(tiny_model(init_std=0.3, n_kv_head=1, position=position)).bfloat16()
    gpt.position.requires_grad_(False)  # folded trains no slopes
    gpt.attention_kernel = name
    gpt.recomputed = 1
    tokens = torch.randint(0, 300, (2, 20))
    with torch.set_grad_enabled(name != "flex"):
        compiled = torch.compile(gpt, backend="aot_eager", dynamic=False, fullgraph=True)
        torch.testing.assert_close(compiled(tokens, tokens), gpt(tokens, tokens), rtol=1e-2, atol=0)


GPU_CASES = [
    *((name, {}) for name in KERNELS),
    *((name, {"position": "alibi_learned"}) for name in ("sdpa", "flex")),
    *(("flex", rest) for rest in ({"window": 40}, {"documents": DOCUMENTS}, {"score_softcap": 1.5})),
    ("flex_flash", {"documents": DOCUMENTS}),
]


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "rest"), GPU_CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("d_head", [64, 128, 192])
@pytest.mark.parametrize("compiled", [False, True])
def test_kernels_on_a_gpu_equal_dense_float64_forward_and_backward(name, rest, dtype, d_head, compiled):
    torch._dynamo.reset()
    rest = {"position": "alibi", **rest, "d_head": d_head, "score_scale": 0.0}
    view = look(rest.pop("position"), dtype=dtype, device="cuda", **rest)
    obstacle = KERNELS[name].obstacle(view.case)
    if name == "flex_flash" and (obstacle or dtype == torch.float32):
        pytest.skip(obstacle or "FlashAttention is for 16-bit numbers")

    def attend(q, k, v):
        return KERNELS[name](view)(q, k, v)

    inputs = states(view, n_kv_head=2)
    learned = [*view.case.scheme.parameters()]
    actual = (torch.compile(attend, dynamic=False, fullgraph=True) if compiled else attend)(*inputs)
    found = gradients(actual, (*inputs, *learned))
    exact = dataclasses.replace(view, dtype=torch.float64)
    copies = [x.detach().double().requires_grad_() for x in inputs]
    expected = KERNELS["dense"](exact)(*copies)
    wanted = gradients(expected, (*copies, *learned))
    tolerance = 0.02 if dtype == torch.bfloat16 else 0.005  # fp32 kernels may use TF32
    for a, b in zip((actual, *found), (expected, *wanted), strict=True):
        error = (a.double() - b.double()).norm() / b.double().norm()
        assert error < tolerance
