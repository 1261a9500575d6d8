import json
import re

import pytest

from ppr_core.cli.main import main
from ppr_core.config import digest
from ppr_core.errors import ConfigError, DataError
from ppr_core.lab.places import ROOT
from ppr_core.reactivation.cells import Cell, Setting
from ppr_core.reactivation.summary import Figures, combine
from ppr_core.reactivation.verdicts import Limits, QueryResult, verdict
from ppr_core.reporting import leaderboard, submissions, tracks
from ppr_core.reporting.leaderboard import sentence, write
from ppr_core.reporting.submissions import Examined, Submission
from tests.benchmarks import leaderboard as benchmark

COUNTS = (1, 2, 5, 10, 20, 50)


def figures(p_asr=(80.0, 84.0, 82.0), clean=(3.0, 2.0, 4.0), ep=(3.0, 2.0, 4.0), **more):
    above = [own - other for own, other in zip(p_asr, clean, strict=True)]
    above_ep = [own - other for own, other in zip(p_asr, ep, strict=True)]
    values = {
        "o_asr": 3.0,
        "c_acc": 88.0,
        "worst_arm": "strength",
        "worst": Setting(poisons=5, epochs=20, optimizer="adam"),
        "p_asr": list(p_asr),
        "clean_p_asr": list(clean),
        "ep_p_asr": list(ep),
        "wake_count": 1.5,
        "clean_wake_count": 44.0,
        "counts": list(zip(COUNTS, (30.0, 91.0, 95.0, 97.0, 98.0, 99.0), strict=True)),
        "clean_counts": list(zip(COUNTS, (2.0, 3.0, 4.0, 9.0, 20.0, 55.0), strict=True)),
        "paper_p_asr": 95.0,
        "queries": [QueryResult(eps=8 / 255, p_asr=70.0, clean=9.0)],
        "verdict": verdict(3.0, above, above_ep, limits=Limits()),
        **more,
    }
    return Figures(**values)


ASLEEP = {
    "p_asr": (2.0, 3.0, 1.0),
    "counts": [(count, 2.0) for count in COUNTS],
    "wake_count": None,
    "queries": [],
}


def submission(defense="mine", attack="blended", track="judge_demo", runs=None, **more):
    runs = runs or [figures()]
    cell = Cell(
        arm="count", setting=Setting(poisons=2, epochs=5), p_asr=91.0, c_acc=87.0, admissible=False
    )
    return Submission(
        defense=defense,
        attack=attack,
        track=track,
        settings_digest="ab" * 32,
        battery="cd" * 32,
        victim_c_acc=90.0,
        c_acc=88.0,
        seconds=12.0,
        runs=[Examined(seed=i, figures=one, cells=[cell]) for i, one in enumerate(runs)],
        verdict=combine(runs, Limits()),
        **{**submissions.environment(), **more},
    )


def test_a_submission_comes_back_as_it_was(tmp_path):
    first = submission(runs=[figures(), figures(o_asr=4.0)])
    path = submissions.save(first, tmp_path)
    assert submissions.read(path) == first
    assert json.loads(path.read_text())["schema_version"] == 1
    assert first.seeds == [0, 1]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema_version": 2}, "schema_version"),
        ({"runs": []}, "runs"),
        ({"surprise": 1}, "surprise"),
        ({"seconds": "12"}, "seconds"),
    ],
)
def test_a_file_of_another_layout_is_one_clear_error(tmp_path, change, says):
    path = submissions.save(submission(), tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=rf"expected a submission of schema 1 .*{says}"):
        submissions.read(path)


def test_what_is_no_json_is_one_clear_error(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(DataError, match="x.json"):
        write(tmp_path, tmp_path / "page.html")


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(DataError, match="expected submissions"):
        write(tmp_path, tmp_path / "page.html")


def test_a_name_cannot_leave_the_folder(tmp_path):
    path = submissions.save(submission(defense="../../x"), tmp_path)
    assert path.parent == tmp_path and path.is_file()


def test_the_sentence_of_what_wakes():
    said = sentence(submission("MyDefense"))
    assert said == (
        "MyDefense: **superficial** on blended: 2 poisoned samples bring ASR from 3 to 91 %; "
        "the clean model needs 44"
    )
    alone = figures(wake_count=0.0)
    assert "clean samples alone bring ASR from 3 to 50 % or more" in sentence(
        submission(runs=[alone])
    )
    never = figures(clean_wake_count=None)
    assert sentence(submission(runs=[never])).endswith("the clean model needs > 50")


def test_the_sentence_where_no_count_wakes_names_the_worst_case():
    quiet = figures(counts=ASLEEP["counts"], wake_count=None)
    assert sentence(submission(runs=[quiet])) == (
        "mine: **superficial** on blended: its worst case (5 poisons, adam x1, 20 epochs) brings "
        "ASR from 3 to 82 %, the clean model's to 3 %"
    )


def test_the_sentences_of_the_other_verdicts():
    assert "**holds**" in sentence(submission(runs=[figures(**ASLEEP)]))
    gated = verdict(3.0, [1, 2, 3], [], limits=Limits()).replace(word="no verdict", reason="Why.")
    said = sentence(submission(runs=[figures(gates=["Why."], verdict=gated)]))
    assert said == "mine: **no verdict** on blended: Why"


def test_seeds_are_the_unit_of_a_verdict_over_several():
    high, low = figures(), figures(**ASLEEP)
    said = combine([high, high, low], Limits())
    assert said.above_clean.count == 3 and said.word == "open"
    assert said.above_clean.mean == pytest.approx((79 + 79 - 1) / 3)
    assert combine([high, high], Limits()).word == "superficial"
    gated = low.replace(gates=["The victim is broken."])
    said = combine([high, high, gated], Limits())
    assert said.word == "no verdict" and said.reason == f"at 1 of 3 seeds: {gated.gates[0]}"
    awake = [high.replace(o_asr=o_asr) for o_asr in (30.0, 40.0, high.o_asr)]
    said = combine(awake, Limits())
    assert (said.word, said.reason[:31]) == ("not purified", "at 2 of 3 seeds: its ASR is 40 ")


def test_the_page_has_a_row_a_submission_and_needs_nothing_beside_itself(tmp_path):
    for one in (
        submission("mine", paper="https://example.org/paper"),
        submission("theirs", attack="badnet", runs=[figures(**ASLEEP)], oracle=True),
        submission("<b>bold</b>", track="judge_cifar10", code="javascript:alert(1)"),
    ):
        submissions.save(one, tmp_path / "in")
    page = write(tmp_path / "in", tmp_path / "out" / "board.html").read_text()
    assert len(re.findall(r'<tbody class="one[ \w]*" data-track=', page)) == 3
    assert "<option>badnet</option>" in page and "<option>judge_cifar10</option>" in page
    assert "theirs (oracle)" in page and "&gt; 50" in page
    assert '<a href="https://example.org/paper"' in page
    assert "<b>bold" not in page and "javascript:" not in page, "a name or a link runs code"
    assert not re.search(r'(src|href)="(?!https://example)', page), "it loads something"
    assert 'class="grey"' in page, "an inadmissible cell is not marked"
    assert "stroke: var(--red)" in page, "the curve is missing"


def test_what_is_not_purified_has_dashes(tmp_path):
    none = {"worst_arm": "", "worst": None, "paper_p_asr": None, "wake_count": None, "counts": []}
    awake = figures(
        (), (), (), **none, o_asr=60.0, queries=[], verdict=verdict(60.0, [], [], limits=Limits())
    )
    one = submission(runs=[awake])
    assert sentence(one).startswith("mine: **not purified** on blended: its ASR is 60 %")
    row = leaderboard.row(one)
    assert (row["wake"], row["wake_key"], row["worst"]) == ("–", None, None)
    assert row["clean_wake"] == "44"
    submissions.save(one, tmp_path)
    assert ">mine</button>" in write(tmp_path, tmp_path / "board.html").read_text()


def test_within_an_attack_what_holds_comes_first(tmp_path):
    for one in (submission("a"), submission("b", runs=[figures(**ASLEEP)])):
        submissions.save(one, tmp_path)
    page = write(tmp_path, tmp_path / "board.html").read_text()
    assert page.index('"false">b</button>') < page.index('"false">a</button>')
    numbers = leaderboard.row(submission("a"))
    assert (numbers["wake"], numbers["clean_wake"], numbers["cost"]) == ("2", "44", 2.0)
    assert numbers["gain"] == pytest.approx(61) and numbers["worst"] == pytest.approx(82)


def test_what_is_kept_reads_and_the_folder_says_what_is_there():
    folder = ROOT / "notebooks" / "results" / "leaderboard"
    kept = [(path, submissions.read(path)) for path in sorted(folder.glob("*.json"))]
    words = (folder / "README.md").read_text()
    assert all(path.name == one.file for path, one in kept)
    tables = leaderboard.tables(leaderboard.ranked(folder))
    assert sum(table.count("\n") - 1 for table in tables.values()) == len(kept)
    assert [track for track, table in tables.items() if table not in words] == []
    standings = [standing for _, standing in leaderboard.admitted(folder)]
    assert ("older" in standings) == ("an older battery" in words), "it says what is not of today"


def test_the_rows_of_the_demo_s_track_are_of_the_settings_that_it_has_today():
    rows = [one for one in benchmark.rows() if one.track == "judge_demo"]
    assert rows and [one.defense for one in rows if not benchmark.is_current(one)] == []
    other = rows[0].replace(settings_digest="0" * 64)
    assert not benchmark.is_current(other)


def plain(name):
    """A defense's name as it is registered and as people write it, in the same letters."""
    return re.sub(r"\W|_", "", name).lower()


def test_the_readme_says_of_each_row_that_is_kept_what_it_found():
    table = "| | holds |" + (ROOT / "README.md").read_text().partition("| | holds |")[2]
    heads, _, *lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.partition("\n\n")[0].splitlines()
    ]
    found = set()
    for track, *cells in lines:
        for word, cell in zip(heads[1:], cells, strict=True):
            for name in filter(None, re.sub(r"\(.*?\)", "", cell).split(",")):
                found.add((track.partition(", ")[::2], plain(name), word))
    tracks_of = {"judge_demo": "the demo", "judge_cifar10": "CIFAR-10"}
    attacks = {"badnet": "BadNet", "blended": "Blended"}
    folder = ROOT / "notebooks" / "results" / "leaderboard"
    assert found == {
        (
            (tracks_of[one.track], attacks[one.attack]),
            plain(one.defense),
            one.verdict.word,
        )
        for one in map(submissions.read, folder.glob("*.json"))
    }


def standing_row(attack="blended", **more):
    """A submission that names the settings of the demo track, whose cells say what it says."""
    shared = tracks.conditions(tracks.shipped("judge_demo"), attack)
    one = submission(**more).replace(conditions=shared, battery=digest(shared["battery"]))
    run = one.runs[0]
    setting = run.figures.worst
    cells = [Cell(arm="start", setting=Setting(epochs=0), p_asr=run.figures.o_asr, c_acc=88.0)]
    for draw, p_asr in enumerate(run.figures.p_asr):
        made = setting.replace(draw=3 + draw)
        cells.append(Cell(arm="fresh", setting=made, p_asr=p_asr, c_acc=87.0, admissible=True))
    cells.append(
        Cell(arm="count", setting=Setting(poisons=1), p_asr=60.0, c_acc=87.0, admissible=True)
    )
    figures = run.figures.replace(wake_count=1.0)
    return one.replace(runs=[run.replace(cells=cells, figures=figures)])


def test_rows_of_the_track_are_ranked_before_those_of_an_older_battery(tmp_path):
    own = standing_row(defense="today")
    older = own.conditions | {"battery": {**own.conditions["battery"], "version": 1}}
    found = [
        own,
        submission("yesterday", runs=[figures(**ASLEEP)]),
        own.replace(defense="before", conditions=older, battery=digest(older["battery"])),
        submission("theirs", track="mine"),
    ]
    for one in found:
        submissions.save(one, tmp_path)
    standings = {one.defense: how for one, how in leaderboard.admitted(tmp_path)}
    assert standings.pop("today") == "row" and standings.pop("theirs") == "own track"
    assert standings == {"yesterday": "older", "before": "older"}
    page = write(tmp_path, tmp_path / "page.html").read_text()
    assert page.index('"false">today</button>') < page.index('"false">yesterday</button>')
    assert "2 rows (grey, last) were computed with an older version" in page
    assert page.count("not ranked (older battery: ") == 2
    assert "mine (no standard track)" in page


def edited(path, one, *keys, value):
    """Write a submission with one value changed by hand."""
    values = json.loads(one.model_dump_json())
    place = values
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = value
    path.write_text(json.dumps(values))


FIGURES, BATTERY = ("runs", 0, "figures"), ("conditions", "battery", "settings")


@pytest.mark.parametrize(
    ("keys", "value", "says"),
    [
        (("verdict", "word"), "holds", "expected the verdict that its runs lead to"),
        ((*FIGURES, "verdict", "word"), "holds", "seed 0: superficial"),
        (("verdict", "above_clean", "mean"), 3.0, "expected the verdict that its runs lead to"),
        ((*FIGURES, "p_asr"), [84.0, 80.0, 82.0], "seed 0: p_asr [80.0, 84.0, 82.0]"),
        ((*FIGURES, "o_asr"), 1.0, "o_asr"),
        ((*FIGURES, "wake_count"), 40.0, "wake_count"),
        (("runs", 0, "cells"), [], "cells"),
        ((*BATTERY, "gates", "settings", "awake"), 101.0, "expected the digest of the battery"),
        (("conditions", "reserve"), 3, "reserve is 3 (the track has 1250)"),
        (("attack",), "badnet", "expected an attack of the track judge_demo (blended)"),
        (("c_acc",), 4000.0, "c_acc"),
        ((*FIGURES, "o_asr"), -5.0, "o_asr"),
        ((*FIGURES, "p_asr", 0), float("nan"), "p_asr.0"),
        ((*FIGURES, "clean_counts"), [[0, 1.0], [5, 2.0]], "clean_counts"),
        ((*FIGURES, "clean_counts"), [[5, 1.0], [-3, 2.0]], "clean_counts"),
        ((*FIGURES, "clean_p_asr"), [1.0], "expected as many draws"),
    ],
)
def test_a_submission_that_contradicts_itself_or_its_track_is_refused(
    tmp_path, capsys, keys, value, says
):
    edited(tmp_path / "a.json", standing_row(), *keys, value=value)
    assert main(["leaderboard", "--folder", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert says in error and "a.json" in error and len(error.splitlines()) == 1


def test_other_thresholds_than_the_track_s_are_refused(tmp_path):
    own = standing_row().conditions
    battery = json.loads(json.dumps(own["battery"]))
    battery["settings"]["gates"]["settings"]["awake"] = 101.0
    one = standing_row().replace(conditions={**own, "battery": battery}, battery=digest(battery))
    submissions.save(one, tmp_path)
    with pytest.raises(DataError, match=r"battery.gates.awake is 101.0 \(the track has 20.0\)"):
        write(tmp_path, tmp_path / "page.html")


def test_two_files_of_one_row_or_two_runs_of_one_seed_are_refused(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.json").write_text(submission().model_dump_json())
    with pytest.raises(DataError, match=r"b.json: expected one file a row, got a.json"):
        write(tmp_path, tmp_path / "page.html")
    with pytest.raises(ConfigError, match="expected distinct seeds"):
        submission().replace(runs=submission().runs * 2)


def test_a_page_that_cannot_be_written_is_one_line(tmp_path, capsys):
    submissions.save(submission(), tmp_path / "in")
    (tmp_path / "text").touch()
    for target in (tmp_path, tmp_path / "text" / "page.html"):
        command = ["leaderboard", "--folder", str(tmp_path / "in"), "--out", str(target)]
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "expected a file to write the page to" in error and len(error.splitlines()) == 1
    command = ["leaderboard", "--folder", str(tmp_path / "in"), "--format", "markdown"]
    assert main(command) == 0
    line = capsys.readouterr().out.splitlines()[4]
    assert "| superficial (older) | 3.0 | 95.0 | 82.0 |" in line
    assert main([*command, "--out", str(tmp_path / "page.html")]) == 2
    assert "expected --out with the page alone" in capsys.readouterr().err
    (tmp_path / "in" / "z.json").mkdir()
    assert main(["leaderboard", "--folder", str(tmp_path / "in")]) == 2
    assert "z.json, got: Is a directory" in capsys.readouterr().err


def test_wake_counts_where_few_counts_are_admissible():
    few = figures(counts=[(1, 2.0), (5, 30.0)], wake_count=None)
    many = figures(counts=ASLEEP["counts"], wake_count=None)
    assert leaderboard.wake_text([few], "wake_count", "counts") == "> 5"
    assert leaderboard.wake_text([few, many], "wake_count", "counts") == "> 5"
    assert "its worst case" in sentence(submission(runs=[few, many])), "unequal counts"
