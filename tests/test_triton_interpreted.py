"""The GPU kernels against their definitions on the CPU, by Triton's interpreter; see made_interpreted.py."""

import pytest
from made_interpreted import INTERPRETED_FILES, run_interpreted

assert INTERPRETED_FILES, "no tests/triton_*.py"


@pytest.mark.parametrize("file", INTERPRETED_FILES)
def test_kernels_interpreted(file):
    assert run_interpreted(file) > 1


def test_a_kernel_test_that_is_skipped_fails(tmp_path):
    file = tmp_path / "triton_nothing.py"
    file.write_text("import pytest\ndef test_run(): ...\n@pytest.mark.skip\ndef test_skipped(): ...\n")
    with pytest.raises(AssertionError, match="1 passed, 1 skipped"):
        run_interpreted(str(file))
