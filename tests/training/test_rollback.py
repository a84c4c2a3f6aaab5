"""The record of the last rollback: what is damaged in it is said in one line."""

import pytest

from chameleon_jax.errors import WorkdirError
from chameleon_jax.training import rollback
from chameleon_jax.training.rollback import Rollback


def test_what_was_recorded_is_read_again(tmp_path):
    assert rollback.last(tmp_path) is None
    rollback.record(tmp_path, Rollback(step=4, skip_batches=3))
    assert rollback.last(tmp_path) == Rollback(step=4, skip_batches=3)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b'{"step": "4"}',
        b'{"step": 4, "skip_batches": "x"}',
        b'{"step": 4, "to": 5}',
    ],
)
def test_a_damaged_record_is_named(tmp_path, content):
    (tmp_path / rollback.FILE).write_bytes(content)
    with pytest.raises(WorkdirError, match=r"rollback.json is damaged \(.*\); delete it to forget the last rollback"):
        rollback.last(tmp_path)
