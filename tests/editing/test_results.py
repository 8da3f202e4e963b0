import json

import pytest

from icve.editing.results import ResultLog


def test_the_last_line_of_an_id_is_valid_and_tidying_leaves_one(tmp_path):
    log = ResultLog(tmp_path)
    assert log.read() == {}
    for status in ("failed", "ok"):
        log.add({"id": "a", "status": status})
    log.add({"id": "b", "status": "ok"})
    log.add({"id": "a", "status": "ok", "again": True})
    assert log.read()["a"] == {"id": "a", "status": "ok", "again": True}
    log.tidy()
    assert [json.loads(line)["id"] for line in log.path.read_text().splitlines()] == ["b", "a"]


def test_a_line_cut_short_by_a_kill_costs_only_itself(tmp_path):
    log = ResultLog(tmp_path)
    log.add({"id": "a", "status": "ok"})
    with log.path.open("a") as file:
        file.write('{"id": "b", "sta')
    log.add({"id": "c", "status": "ok"})
    assert list(log.read()) == ["a", "c"]


@pytest.mark.parametrize("name", ["a\u2028b", "a\u0085b", "a\nb", "caf\udce9", "\ud83d", "中"])
def test_results_of_every_name_are_found_again(tmp_path, name):
    log = ResultLog(tmp_path)
    log.add({"id": name, "status": "ok", "instruction": name})
    log.add({"id": "other", "status": "ok"})
    assert log.read()[name]["instruction"] == name
    log.tidy()
    assert list(log.read()) == [name, "other"]


def test_processes_share_a_file(tmp_path):
    import threading

    def write(name):
        for number in range(20):
            ResultLog(tmp_path).add({"id": f"{name}{number}"})
            ResultLog(tmp_path).tidy()

    threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(ResultLog(tmp_path).read()) == 40
