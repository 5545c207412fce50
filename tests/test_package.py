import subprocess
import sys

import pytest

import gptstar


def test_importing_the_package_does_not_import_torch():
    code = "import sys, gptstar; print('torch' in sys.modules, sorted(gptstar.__all__))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = [
        "GPT",
        "ModelConfig",
        "SamplingSettings",
        "export",
        "generate",
        "generate_detailed",
        "generate_stream",
        "load",
    ]
    assert done.stdout.strip() == f"False {names}"


def test_every_public_name_is_there_and_others_are_not():
    for name in gptstar.__all__:
        assert getattr(gptstar, name).__doc__ and name in dir(gptstar)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = gptstar.nothing
