import pytest

from small_values import CLUSTERS, save_suite


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    return save_suite(tmp_path_factory.mktemp("suite"), CLUSTERS)
