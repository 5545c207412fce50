import pytest
import torch

from gptstar.device import autocast, dtype_name, pick_device, pick_precision
from gptstar.errors import UserError


def test_auto_is_what_the_machine_has():
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert pick_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:99", "gpu", "tpu"])
def test_a_device_that_is_not_there_is_named(name):
    with pytest.raises(UserError, match=f"device={name} cannot be used here"):
        pick_device(name)


def test_precision_on_a_cpu_is_fp32_unless_told():
    assert pick_precision("auto", torch.device("cpu")) == "fp32"
    assert pick_precision("bf16", torch.device("cpu")) == "bf16"


def test_a_precision_is_named_as_settings_name_it():
    names = [dtype_name(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64)]
    assert names == ["fp32", "bf16", "fp16", "float64"]


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_autocast_computes_matmuls_in_the_precision(precision, dtype):
    with autocast(precision, torch.device("cpu")):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
