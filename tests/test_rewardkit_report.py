"""The report of a run folder: values on the page, nothing loaded, everything escaped, absence said in words."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from rewardkit.report import figures, heatmap, words, write_report
from rewardkit.report.contents import Curve, Estimate
from verifiers.errors import DataError, MissingFileError

EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>%{x}'


def curve(rule: str, *means: float, problems: int = 200) -> dict[str, Any]:
    points = [
        {"n": 2**k, "mean": mean, "low": mean - 0.05, "high": mean + 0.04, "problems": problems}
        for k, mean in enumerate(means)
    ]
    return {"rule": rule, "points": points}


def results() -> dict[str, Any]:
    return {
        "title": "Best of 4",
        "summary": ["The score beats the vote."],
        "facts": {"problems": 200, "temperature": 0.7, "parameters": 2871296},
        "curves": [
            curve("first", 0.4, 0.4, 0.4),
            curve("majority", 0.4, 0.45, 0.512),
            curve("best by PRM min", 0.4, 0.5, 0.613),
            curve("best by random", 0.4, 0.401, 0.399),
            curve("any (pass@n)", 0.4, 0.6, 0.8),
        ],
        "comparisons": [
            {"first": "best by PRM min", "second": "majority", "n": 4, "mean": 0.101, "low": 0.062,
             "high": 0.139, "problems": 200},
            {"first": "majority", "second": "first", "n": 4, "mean": 0.01, "low": -0.02, "high": 0.04,
             "problems": 200},
        ],
        "steps": {
            "auc_within": {"auc": 0.913, "low": 0.897, "high": 0.928, "pairs": 48211, "problems": 174},
            "auc_first_error": None,
            "auc_pooled": 0.957,
            "first_error_f1": {"f1": 0.741, "on_erroneous": 0.5, "on_correct": 0.8, "erroneous": 100,
                               "correct": 50, "threshold": 0.5},
            "ece": 0.041,
        },
        "costs": [
            {"part": "drawing", "prefill_tokens": 1000, "decoded_tokens": 20000, "scored_tokens": 0,
             "judged": 0, "seconds": 90.0, "flops": 2.5e13},
            {"part": "scoring", "prefill_tokens": 0, "decoded_tokens": 0, "scored_tokens": 22000,
             "judged": 800, "seconds": 150.0, "flops": 1.5e13},
        ],
        "gates": [
            {"name": "gain", "value": 10.1, "floor": 3.0, "held": True},
            {"name": "AUC", "value": 0.61, "floor": 0.7, "held": False},
        ],
    }  # fmt: skip


def sample(problem_id: str = "p-1", **changes: Any) -> dict[str, Any]:
    response = {
        "sample": 3,
        "role": "chosen by PRM",
        "steps": ["Two and two", "is 5.", "So 5."],
        "scores": [0.93, 0.07, 0.5],
        "truth": ["right", "wrong", "useless"],
        "extracted": "5",
        "correct": False,
        **changes,
    }
    rejected = {**response, "sample": 4, "role": "rejected", "correct": None, "extracted": None}
    return {"problem_id": problem_id, "prompt": "2 + 2?", "answer": "4", "responses": [rejected, response]}


def folder(path: Path, **files: Any) -> Path:
    """A run folder; `results` and `env` are objects, `metrics` and `samples` lists of rows, a text goes as is."""
    path.mkdir(exist_ok=True)
    (path / "config.yaml").write_text(files.pop("config", "command: search\nn: 4\n"))
    for name, value in files.items():
        if isinstance(value, list):
            (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in value))
        elif isinstance(value, str):
            (path / name.replace("_", ".")).write_text(value)
        else:
            (path / f"{name}.json").write_text(json.dumps(value))
    return path


class Page(HTMLParser):
    """Tags with attributes, the text people read, and the inline scripts and styles by themselves."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.scripts, self.styles, self._in = "", [], "", ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in = tag if tag in ("script", "style") else ""
        if tag == "script":
            self.scripts.append("")
        self.text += "" if tag in ("b", "i", "span") else "\n"

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in == "script":
            self.scripts[-1] += data
        elif self._in == "style":
            self.styles += data
        else:
            self.text += data

    def row(self, first: str) -> list[str]:
        """The non-empty cells of the table row that begins with a text."""
        lines = [line.strip() for line in self.text.split("\n") if line.strip()]
        return lines[lines.index(first) :][:8]


def page(run: Path) -> Page:
    return Page(write_report(run).read_text("utf-8"))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Page:
    metrics = [{"step": 10 * i, "loss": 2.0 / (i + 1), "grad_norm": 1.5, "phase": "prm"} for i in range(50)]
    return page(
        folder(
            tmp_path_factory.mktemp("full") / "run-7",
            results=results(),
            env={"python": "3.11", "versions": {"torch": "2.9.1"}, "revision": "4f1c2ab"},
            metrics=metrics,
            samples=[sample()],
        )
    )


def test_every_accuracy_stands_with_interval_and_count(full: Page) -> None:
    at = full.text.index("Every rule at its largest n")
    table = full.text[at : full.text.index("Every rule at every n")]
    cells = [line for line in table.split("\n") if line.strip()]
    row = cells[cells.index("best by PRM min") :][:6]
    meaning = "the response with the highest score (PRM min)"
    assert row == ["best by PRM min", meaning, "61.3 %", "56.3 – 65.3 %", "200", "4"]
    assert "39.9 %" in cells and "80.0 %" in cells, "controls stand in the table too"
    at = full.text.index("Every rule at every n")
    assert "50.0 %\n45.0 – 54.0 %" in full.text[at:], "n = 2 of best by PRM min"


def test_comparisons_are_in_points_with_a_reading(full: Page) -> None:
    row = full.row("best by PRM min − majority")
    assert row[1:6] == ["best by PRM min is better", "+10.1", "+6.2 to +13.9", "200", "4"]
    assert full.row("majority − first")[1] == "no difference shown: the interval holds 0"


def test_costs_add_up_beside_quality(full: Page) -> None:
    assert full.row("drawing")[:7] == ["drawing", "1,000", "20,000", "0", "0", "90.0 s", "2.50 × 10¹³"]
    total = full.row("all parts")[:7]
    assert total == ["all parts", "1,000", "20,000", "22,000", "800", "240 s (4 min)", "4.00 × 10¹³"]


def test_step_measures_gates_facts_and_environment(full: Page) -> None:
    assert full.row("AUC within a problem")[2:5] == ["0.913", "0.897 – 0.928", "48,211 pairs, 174 problems"]
    assert "AUC at the first error" not in full.text, "null is not measured, and no zero"
    # Wilson, 50 of 100: centre 0.5, half width 1.96 sqrt(.25/100 + 1.96^2/40000) / (1 + 1.96^2/100) = 0.0962
    assert full.row("… on responses with an error")[2:5] == ["50.0 %", "40.4 – 59.6 % (Wilson)", "100 responses"]
    assert "Quality gates: 1 of 2 held" in full.text and "✗ missed AUC: 0.61 (floor 0.7)" in full.text
    assert full.row("parameters")[1] == "2,871,296"
    assert full.row("versions.torch")[1] == "2.9.1"
    assert "command: search\nn: 4" in full.text


def test_steps_show_score_colour_and_truth(full: Page) -> None:
    colours = [attrs["style"] for tag, attrs in full.tags if tag == "li" and "style" in attrs]
    assert colours[:3] == [f"background:{heatmap.step_colour(score)}" for score in (0.93, 0.07, 0.5)]
    lines = re.sub(r"\n+", "|", full.text)
    assert "|1|Two and two0.93✓ right|2|is 5.0.07 lowest✗ wrong (first)|3|So 5.0.50○ useless|" in lines
    assert "lowest 0.07 · last 0.50 · product 0.03" in full.text  # 0.93 x 0.07 x 0.5 = 0.0326
    heads = re.findall(r"sample \d · answer .*", full.text)
    assert heads == ["sample 3 · answer 5 · ✗ incorrect", "sample 4 · answer none found · ? undecided"]


def test_nothing_is_loaded(full: Page) -> None:
    for tag, attrs in full.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "img", "video", "audio", "source")
        for name in ("src", "srcset", "href", "data", "action", "poster", "background"):
            value = attrs.get(name)
            assert value is None or value.startswith("#"), (tag, name, value)
        assert "url(" not in (attrs.get("style") or "")
        assert not [name for name in attrs if name.startswith("on")]
    assert "@import" not in full.styles and "url(" not in full.styles and "http" not in full.styles
    policy = next(attrs["content"] for tag, attrs in full.tags if "http-equiv" in attrs)
    assert policy is not None and policy.startswith("default-src 'none';") and "http" not in policy
    ours = full.scripts[-1]
    assert not re.search(r"https?:|fetch|XMLHttpRequest|import", ours)


def test_plotly_is_there_once_and_only_with_a_figure(full: Page, tmp_path: Path) -> None:
    assert sum(len(script) > 1_000_000 for script in full.scripts) == 1
    bare = write_report(folder(tmp_path / "bare"))
    assert bare.stat().st_size < 40_000


def test_figures_hold_the_values(full: Page) -> None:
    at = next(i for i, (_, attrs) in enumerate(full.tags) if attrs.get("id") == "data-accuracy")
    figure = json.loads(full.scripts[sum(tag == "script" for tag, _ in full.tags[:at])])
    traces = {trace["name"]: trace for trace in figure["data"]}
    assert figure["layout"]["xaxis"]["type"] == "log" and figure["layout"]["xaxis"]["tickvals"] == [1, 2, 4]
    assert traces["best by PRM min"]["y"] == [0.4, 0.5, 0.613]
    assert traces["best by PRM min"]["error_y"]["arrayminus"] == pytest.approx([0.05, 0.05, 0.05])
    for control in ("best by random", "any (pass@n)"):
        dash, colour = traces[control]["line"]["dash"], traces[control]["line"]["color"]
        assert dash != "solid" and len({colour[1:3], colour[3:5], colour[5:7]}) == 1, "dashed grey"
    assert sum(attrs.get("class") == "chart" for _, attrs in full.tags) == 3  # accuracy, loss, grad_norm


def test_many_rules_split_into_two_figures_with_one_scale() -> None:
    names = ["majority", *(f"{how} by PRM {score}" for how in ("best", "weighted") for score in "abc")]
    estimate = Estimate(mean=0.5, low=0.4, high=0.6, problems=10)
    curves = [Curve(rule=name, points=((1, estimate), (16, estimate), (20, estimate))) for name in names]
    charts = figures.accuracy_charts(curves)
    assert [chart.id for chart in charts] == ["accuracy-pick", "accuracy-vote"]
    layouts = [json.loads(chart.json)["layout"] for chart in charts]
    assert layouts[0]["yaxis"]["range"] == layouts[1]["yaxis"]["range"]
    assert layouts[0]["xaxis"]["tickvals"] == [1, 20], "16 stands too close to 20 to be written"
    colours = [[trace["line"]["color"] for trace in json.loads(chart.json)["data"]] for chart in charts]
    assert colours[0] == colours[1] and len(set(colours[0])) == 4, "one colour a score, in both"
    assert charts[0].caption == "10 problems a point"


def test_user_text_is_escaped_everywhere(tmp_path: Path) -> None:
    data = results()
    data.update(title=EVIL, summary=[EVIL], facts={EVIL: EVIL}, curves=[curve(EVIL, 0.5, 0.6)])
    data["comparisons"][0]["first"] = data["costs"][0]["part"] = data["gates"][0]["name"] = EVIL
    bad = sample(EVIL, role=EVIL, steps=[EVIL] * 3, extracted=EVIL)
    bad["prompt"] = bad["answer"] = EVIL
    read = page(
        folder(
            tmp_path / "run",
            config=EVIL,
            results=data,
            env={EVIL: EVIL},
            metrics=[{"step": 1, EVIL: 2.0, "phase": EVIL}, {"step": 2, EVIL: 2.0, "phase": "b"}],
            samples=[bad],
        )
    )
    assert not [tag for tag, attrs in read.tags if tag == "img" or "onerror" in attrs]
    assert read.text.count('<script>alert("x")</script>') >= 15, "shown as text"
    # plotly, two figures, ours: none was cut short by the text of the run
    assert len(read.scripts) == 4 and not [script for script in read.scripts if script.startswith("alert")]
    loaded = [json.loads(script) for script in read.scripts[1:3]]
    for trace in (trace for figure in loaded for trace in figure["data"]):
        assert ("<script" not in trace["name"] and "&lt;script" in trace["name"]) or trace["name"] == "b"
        assert "alert" not in trace["hovertemplate"]


def test_absence_is_said(tmp_path: Path) -> None:
    read = page(folder(tmp_path / "run", samples=[]))
    assert "This run folder has no results.json. So there is no accuracy to show." in read.text
    assert "This run folder has no metrics.jsonl. So there is no training curve." in read.text
    assert "samples.jsonl holds no rows. So there are no solutions to read." in read.text
    assert "This run folder has no env.json." in read.text
    assert "0.0 %" not in read.text


def test_an_empty_result_is_a_page(tmp_path: Path) -> None:
    read = page(folder(tmp_path / "run", results={}, samples=[{**sample(), "responses": []}]))
    assert "results.json has no such part. So there is no accuracy to show." in read.text
    assert "No responses were kept." in read.text
    assert "Run run" in read.text


def test_long_steps_fold_and_surplus_is_counted(tmp_path: Path) -> None:
    long = sample("long", steps=["x" * 8000, "y" * 30_000, "z"])
    many = sample("many", steps=["s"] * 75, scores=[0.25] * 75, truth=None)
    many["responses"] = [{**many["responses"][1], "sample": i, "role": f"role {i}"} for i in range(9)]
    read = page(folder(tmp_path / "run", samples=[long, many, *(sample(f"p{i}") for i in range(13))]))
    assert "x" * 700 + "\n" in read.text and "… show 7,300 more characters" in read.text
    assert "10,000 further characters are in samples.jsonl" in read.text  # 30,000 - 20,000
    assert "5 more responses are in samples.jsonl." in read.text  # 9 - 4
    assert "15 more steps are in samples.jsonl." in read.text  # 75 - 60
    assert "3 more problems are in samples.jsonl." in read.text  # 15 - 12
    shown = [attrs for _, attrs in read.tags if attrs.get("class") == "problem"]
    assert len(shown) == 12 and sum("open" in attrs for attrs in shown) == 3


def test_one_sample_chosen_twice_is_one_card(tmp_path: Path) -> None:
    row = sample()
    row["responses"].append({**row["responses"][1], "role": "chosen by majority"})
    read = page(folder(tmp_path / "run", samples=[row]))
    cards = [attrs["class"] for tag, attrs in read.tags if tag == "article"]
    assert cards == ["card chosen", "card rejected"]
    assert "chosen by PRM · chosen by majority" in read.text


def test_chat_prompts_and_unscored_steps(tmp_path: Path) -> None:
    row = sample(scores=[], truth=None)
    row["prompt"] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]
    read = page(folder(tmp_path / "run", samples=[row]))
    assert "system: Be brief.\n\nuser: 2 + 2?" in read.text
    assert read.text.count("not scored") == 2 * (3 + 0) + 2, "three steps and a summary in each of two cards"


def test_a_stopped_job_is_reported_without_its_unfinished_line(tmp_path: Path) -> None:
    run = folder(tmp_path / "run", metrics=[{"step": 1, "loss": 0.75}, {"step": 2, "loss": 0.5}, {"x": 1}])
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 3, "lo')
    read = page(run)
    assert "The last line of metrics.jsonl is unfinished (the job was stopped) and is left out." in read.text
    at = read.text.index("First, last, lowest")
    row = [line for line in read.text[at:].split("\n") if line][8:14]
    assert row == ["loss", "2", "0.75", "0.5", "0.5", "0.75"], "rows, first, last, lowest, highest"
    assert "1 rows of metrics.jsonl without a step are left out." in read.text


def test_long_training_is_thinned_to_its_last_row() -> None:
    series = figures.metric_series([{"step": i, "loss": i % 7} for i in range(100_001)])
    raw, mean = json.loads(figures.training_charts(series)[0].json)["data"]
    assert len(raw["x"]) <= figures.MOST_POINTS + 1 and raw["x"][-1] == 100_000
    assert mean["y"][-1] == pytest.approx(3.0, abs=0.01), "trailing mean of 0 .. 6"


@pytest.mark.parametrize(
    ("change", "words_in_error"),
    [
        ('{"title": ', ("results.json", "not valid JSON", "mend or remove it")),
        ("[1]", ("results.json", "must be an object; got [1]", "write the file again")),
        ('{"curves": [{"rule": "first", "points": [{"n": 1, "mean": "x"}]}]}',
         ("results.json: curves[0]: points[0]", "'mean' must be a number", '"x"')),
        ('{"curves": [{"rule": "first", "points": []}]}', ("curves[0]", "'points'", "at least one point")),
        ('{"gates": [{"name": "g", "value": 1, "floor": 0}]}', ("gates[0]", "'held' is missing")),
        ('{"steps": {"auc_within": {"auc": true}}}', ("steps: auc_within", "'auc' must be a number")),
    ],
)  # fmt: skip
def test_broken_results_name_file_field_and_remedy(
    tmp_path: Path, change: str, words_in_error: tuple[str, ...]
) -> None:
    run = folder(tmp_path / "run", results_json=change)
    with pytest.raises(DataError) as caught:
        write_report(run)
    for part in words_in_error:
        assert part in str(caught.value)
    assert not (run / "report.html").exists() and not list(run.glob(".report*"))


def test_broken_samples_name_the_line(tmp_path: Path) -> None:
    run = folder(tmp_path / "run", samples=[sample(), sample(scores=[0.5])])
    with pytest.raises(DataError, match=r"samples\.jsonl:2: responses\[0\]: .*'scores' .* each of the 3 steps"):
        write_report(run)


def test_missing_folder_and_missing_config(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"there is no run folder at .*nowhere; give"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(MissingFileError, match=r"has no config\.yaml, so it is no run folder; give"):
        write_report(tmp_path)


def test_equal_folders_give_equal_bytes_and_a_report_replaces_the_last(tmp_path: Path) -> None:
    run = folder(tmp_path / "run", results=results(), samples=[sample()])
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first
    assert sorted(path.name for path in run.iterdir()) == [
        "config.yaml", "report.html", "results.json", "samples.jsonl",
    ]  # fmt: skip


def test_step_colours_have_three_anchors_and_dark_text_stays_readable() -> None:
    assert heatmap.step_colour(0.0) == heatmap.step_colour(-3.0) == "#f2a057"
    assert heatmap.step_colour(0.5) == "#faf8f4"
    assert heatmap.step_colour(1.0) == heatmap.step_colour(7.0) == "#86bce6"

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark = luminance("#1b1b1b")
    assert all((luminance(heatmap.step_colour(i / 20)) + 0.05) / (dark + 0.05) > 7 for i in range(21)), "AAA"


def test_numbers_as_words() -> None:
    assert [words.number(value) for value in (0.0, 9.9, 0.884, 1234567, -12.5, 2.73e13, 4e-5)] == [
        "0", "9.9", "0.884", "1,234,567", "−12.5", "2.73 × 10¹³", "4.00 × 10⁻⁵",
    ]  # fmt: skip
    assert [words.score(value) for value in (0.973, 0.004, 1e-9, 0.0)] == ["0.97", "0.004", "1.00 × 10⁻⁹", "0.00"]
    assert [words.kind_of(rule) for rule in ("first", "best by random", "any (pass@n)", "majority", "best by x")] == [
        "first", "control", "control", "vote", "pick",
    ]  # fmt: skip


def test_the_facade_loads_no_plotly() -> None:
    code = "import sys, rewardkit.report; sys.exit(bool({'plotly', 'jinja2', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0
