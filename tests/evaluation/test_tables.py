"""Tables of figures in their four forms."""

from icve.evaluation.summary import summarise
from icve.evaluation.tables import Table, summary_tables

TABLE = Table(["figure", "mean"], [["a_b & c", "1.5"], ["<b>|50%", "-"]])


def test_columns_are_aligned_for_a_terminal():
    assert TABLE.text().split("\n") == ["figure   mean", "a_b & c   1.5", "<b>|50%     -"]


def test_signs_that_mean_something_are_escaped():
    assert TABLE.markdown().split("\n")[2:4] == ["| a_b & c | 1.5 |", "| <b>\\|50% | - |"]
    assert r"a\_b \& c & 1.5 \\" in TABLE.latex()
    assert r"<b>|50\% & - \\" in TABLE.latex()
    assert TABLE.latex().startswith("\\begin{tabular}{lr}\n\\toprule\n")
    assert "<th>&lt;b&gt;|50%</th>" in TABLE.html()


def test_every_mean_stands_beside_the_edits_that_it_is_of():
    about = {"id": "", "instruction": "", "edited": None, "error": None}
    rows = [
        about | {"source": name, "edit_type": kind, "x": value, "x.weight": weight}
        for name, kind, value, weight in [("a", "add", 1.0, 1.0), ("b", "add", 3.0, 3.0), ("c", "remove", None, 0.0)]
    ]
    whole, kinds = summary_tables(summarise(rows, lambda name: "lower"))
    assert whole.rows == [["x", "lower", "2", "1 to 3", "2 of 3", "2.5"]]
    assert kinds.headings == ["figure", "add (of 2)", "remove (of 1)"]
    assert kinds.rows == [["x", "2 (2)", "-"]]
