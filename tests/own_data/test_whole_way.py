"""From a table of pictures to a served one by the commands that are printed, in real processes."""

import pytest

from benchmarks.own_data import whole_way


@pytest.mark.slow
def test_the_printed_commands_run_as_they_stand(tmp_path):
    found = whole_way("csv", tmp_path / "csv", minutes=0.1, count=48)
    assert found["given"] == found["counted"] == found["tokenised"] == 48
    assert found["drawn"] == found["served"]
    assert found["served"] in ("8x8", "16x16")  # a faster machine affords the larger
