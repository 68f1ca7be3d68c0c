from odebench.data.root import data_root


def test_the_root_is_the_setting_then_the_variable_then_the_cache(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ODEBENCH_DATA", str(tmp_path / "a"))
    assert data_root(str(tmp_path / "b")) == tmp_path / "b"
    assert data_root("~/b") == tmp_path / "b"
    assert data_root(None) == tmp_path / "a"
    monkeypatch.setenv("ODEBENCH_DATA", "")
    assert data_root(None) == tmp_path / ".cache" / "odebench"
