"""The quick part of the fault suite; `python -m tests.faults` is the whole."""

from tests.faults.study import faults, numbers, start, write


def test_two_starts_of_one_study_on_an_empty_store_share_the_work(tmp_path, monkeypatch):
    monkeypatch.setenv("PPR_STORE", "")  # `faults` sets it
    file, store = write(tmp_path), tmp_path / "mlruns"
    begun = [start(file, store) for _ in range(2)]
    ended = [one.communicate(timeout=300) for one in begun]
    assert [one.returncode for one in begun] == [0, 0], ended
    tables = {tuple(numbers(out)) for out, _ in ended}
    assert len(tables) == 1
    assert len(tables.pop()) == 4
    assert faults(store) == []
