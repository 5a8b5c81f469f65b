import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """The folder that packed files are unpacked into."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("SHOULDERS_CACHE", str(folder))
    return folder
