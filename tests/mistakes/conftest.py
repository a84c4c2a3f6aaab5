import pytest

from tests.mistakes import world


@pytest.fixture(scope="session")
def places(tmp_path_factory):
    return world.make(tmp_path_factory.mktemp("world"))
