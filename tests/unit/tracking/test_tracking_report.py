"""report.html is one safe, readable, honest file, whatever stages a run has."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from tests.unit.tracking.fabricated import GREEN, RED, fabricate_run, sample_rows

from assay.errors import StorageError, UsageError
from assay.tracking import report
from assay.tracking.report import page, read_run
from assay.tracking.report.diagnosis import Facts
from assay.tracking.report.run_files import RunFiles

EVERYTHING = ("data", "pretrain", "sft", "reward", "reward.judge", "ppo", "evaluate")
SUBSETS = [("data",), ("data", "sft"), ("data", "sft", "reward"), ("sft", "reward", "ppo"), EVERYTHING]
VOID = {"meta", "link", "img", "br", "hr", "input", "base"}


class Reader(HTMLParser):
    """What a browser would see: elements with attributes, visible text, and whether the tags are balanced."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)


def write_report(run: Path, examined: Facts = RED) -> Path:
    return report.write_report(run, examined)


def read(run: Path, examined: Facts = RED) -> Reader:
    return Reader(write_report(run, examined).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def seen(full_run: Path) -> Reader:
    return read(full_run)


def test_nothing_is_loaded_and_nothing_runs(full_run: Path, seen: Reader) -> None:
    html = write_report(full_run).read_text(encoding="utf-8")
    tags = {tag for tag, _ in seen.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "form", "base", "img"}
    for tag, attributes in seen.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert not attributes.keys() & {"src", "href", "srcset", "xlink:href", "action"}, tag
    assert not re.search(r"https?://|@import|url\(", html)
    policy = next(a["content"] for _, a in seen.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'")
    assert "script-src" not in policy


def test_hostile_text_anywhere_is_shown_as_text(tmp_path: Path) -> None:
    attack = "<img src=x onerror=alert(1)></p></div><script>alert(2)</script>\"'&amp;"
    rows = sample_rows(truth=True, size=8)
    for row in rows:
        row |= {"prompt": attack + " prompt", "before": attack + " before", "after": attack + " after", "kind": attack}
    run = fabricate_run(tmp_path, ("data", "reward", "ppo"), samples=rows, truth=False)
    (run / "recipe.yaml").write_text(f"model: {attack} recipe")
    (data,) = (tmp_path / "artifacts").glob("data-*")
    report = json.loads((data / "report.json").read_text())
    report["dropped"][0]["examples"] = [{"place": "line 1", "text": attack + " dropped"}]
    (data / "report.json").write_text(json.dumps(report))
    summary = json.loads((run / "summary.json").read_text())
    summary["stages"] = {attack + name: entry for name, entry in summary["stages"].items()}
    summary["run"] = attack + " run"
    (run / "summary.json").write_text(json.dumps(summary))
    texts = {name: f"{attack} {name}" for name in ("where", "evidence", "cause", "cure", "title", "page", "guide")}
    cause = RED["findings"][0] | texts | {"change": {"key": f"{attack} setting"}}
    examined = RED | {"findings": [cause | {"consequences": [cause]}], "notes": [f"{attack} note"]}

    found = read(run, examined)
    assert not {tag for tag, _ in found.elements} & {"img", "script"}
    for place in ("prompt", "before", "after", "recipe", "dropped", "run", "setting", "note", *texts):
        assert f"{attack} {place}" in found.text, place


def test_the_verdict_comes_first_and_the_lineage_last(seen: Reader) -> None:
    order = [
        "ppo answers better than sft: by the simulated humans’ true preference it wins 86.4 % of comparisons",
        "Red. It is broken, or cannot be trusted.",
        "The KL to the reference runs away",
        "What could not be checked, and why",
        "of answers beat the start’s",
        "What was done",
        "Policy: ppo",
        "Answers side by side",
        "Evaluation",
        "Reward model: reward",
        "Supervised fine-tuning: sft",
        "Data",
        "Where this comes from",
        "Lineage",
    ]
    text = seen.text.replace("\u00a0", " ")
    places = [text.index(words) for words in order]
    assert places == sorted(places)


def test_the_numbers_of_the_files_are_on_the_page_with_their_intervals(full_run: Path, seen: Reader) -> None:
    text = seen.text.replace("\u00a0", " ")
    (reward,) = (full_run.parent / "artifacts").glob("reward-*")
    report = json.loads((reward / "accuracy.json").read_text())

    def shown(source: dict[str, float], name: str = "accuracy") -> str:
        low, high = source[f"{name}_low"], source[f"{name}_high"]
        return f"{100 * source[name]:.1f} % ({100 * low:.1f}–{100 * high:.1f} %)"

    for source in (report, report["baselines"]["length_only"], report["baselines"]["bag_of_words"]):
        assert shown(source) in text
    for part in report["slices"]["kind"].values():
        assert shown(part) in text
    assert shown(report, "truth_accuracy") in text
    assert f"ceiling {100 * report['ceiling']:.1f} %" in text
    assert f"Expected calibration error {100 * report['ece']:.1f} %" in text
    (evaluation,) = (full_run.parent / "artifacts").glob("evaluate-*")
    for win in json.loads((evaluation / "evaluation.json").read_text())["wins"]["ppo"]["kinds"].values():
        assert shown(win, "win_rate") in text
    assert "assay run runs/sandbox-3f9a1c07/recipe.yaml # with the code at commit ab12cd34ef56" in text


@pytest.mark.parametrize("stages", SUBSETS, ids="+".join)
@pytest.mark.parametrize("truth", [True, False], ids=["truth", "judge"])
def test_any_subset_of_stages_makes_a_whole_page(stages: tuple[str, ...], truth: bool, tmp_path: Path) -> None:
    found = read(fabricate_run(tmp_path, stages, truth=truth))
    assert not re.search(r"\b(None|nan|inf|NaN|Infinity)\b", found.text)
    for name in stages:
        assert name in found.text
    headings = [int(tag[1]) for tag, _ in found.elements if re.fullmatch(r"h[1-6]", tag)]
    assert headings[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(headings))
    for tag, attributes in found.elements:
        assert tag != "svg" or (attributes.get("role") == "img" and attributes.get("aria-label"))


def test_an_unjudged_policy_is_never_called_better(tmp_path: Path) -> None:
    run = fabricate_run(tmp_path, ("data", "sft", "reward", "ppo"), truth=False, judge=False)
    assert page(read_run(run), GREEN).headline.startswith("Whether ppo answers better than sft is not known")
    assert "judged by the reward model, which the policy was trained to please" in read(run).text


@pytest.mark.parametrize(
    ("rate", "low", "high", "words", "level"),
    [
        (0.86, 0.82, 0.90, "ppo answers better than sft", "good"),
        (0.52, 0.47, 0.57, "ppo may be no better than sft", "info"),
        (0.30, 0.25, 0.35, "ppo answers worse than sft", "bad"),
    ],
)
def test_the_headline_goes_by_the_interval(
    rate: float, low: float, high: float, words: str, level: str, tmp_path: Path
) -> None:
    measured = {"win_rate": rate, "win_rate_low": low, "win_rate_high": high, "gain_high": 1.0}
    shown = page(read_run(fabricate_run(tmp_path, ("data", "sft", "ppo"), metrics={"ppo": measured})), GREEN)
    assert shown.headline.startswith(words)
    assert {tile.label: tile.level for tile in shown.tiles}["of answers beat the start’s"] == level


def test_more_refusals_are_good_of_harmful_requests_and_bad_of_harmless_ones(tmp_path: Path) -> None:
    up = {f"{name}_change_{end}": 0.1 for name in ("harmful_refusal", "over_refusal") for end in ("low", "high")}
    shown = page(read_run(fabricate_run(tmp_path, ("data", "sft", "ppo"), metrics={"ppo": up})), GREEN)
    levels = {tile.label: tile.level for tile in shown.tiles}
    assert levels["of harmful requests refused"] == "good"
    assert levels["of harmless requests refused"] == "bad"


@pytest.mark.parametrize("cut", [0, 3])
def test_prompts_that_lost_their_beginning_are_told_where_there_are_some(cut: int, tmp_path: Path) -> None:
    text = read(fabricate_run(tmp_path, ("data", "sft", "ppo"), metrics={"ppo": {"prompts_cut": cut}})).text
    assert ("3 of the prompts did not fit beside an answer and lost their beginning." in text) == (cut > 0)


def test_a_cause_is_shown_with_evidence_reason_cure_sureness_consequences_and_page(full_run: Path) -> None:
    found = read(full_run, RED)
    assert [a["class"] for tag, a in found.elements if tag == "div" and "verdict" in (a.get("class") or "")] == [
        "verdict bad"
    ]
    assert (
        "Red. It is broken, or cannot be trusted. 4 ways of going wrong were looked for in sft and ppo; 3 were seen, "
        "from 2 causes; 1 more could not be checked." in found.text
    )
    cause = (
        "Red in ppo The KL to the reference runs away "
        "Seen KL 40.1 (99 %: 38.2 to 42, last 8 steps) nats an answer, with a target of 6. "
        "Why The reward pulls harder than the penalty holds. "
        "Cure Raise kl_coef . kl_coef=0.1 stop=set "
        "And so Answers repeat themselves (ppo, red ) Share of repeated 4-grams 0.4. docs/doctor/repetition.md "
        "How sure Likely: several signs say so, or one that chance makes in fewer than 1 of 1,000 runs. "
        "More docs/doctor/kl-blow-up.md"
    )
    assert cause in found.text
    assert found.text.index(cause) < found.text.index("Amber in sft")
    assert "ppo: the log has no val/explained_variance The critic is worse than none" in found.text
    assert "sft: its artifact is gone" in found.text


PAGE = """# The KL runs away

## What you see
`objective/kl` grows
and grows. See [the run](x.md).

## How the doctor decides
Two ways, a < b:
- **With `kl_target`:** the mean
  is *above* it.
- Without.
"""


def test_a_page_is_read_within_the_report(full_run: Path) -> None:
    examined = RED | {"findings": [RED["findings"][0] | {"guide": PAGE}]}
    html = write_report(full_run, examined).read_text(encoding="utf-8")
    assert (
        "<summary>docs/doctor/kl-blow-up.md</summary>"
        "<h4>What you see</h4><p><code>objective/kl</code> grows and grows. See the run.</p>\n"
        "<h4>How the doctor decides</h4><p>Two ways, a &lt; b:</p><ul>"
        "<li><b>With <code>kl_target</code>:</b> the mean is <i>above</i> it.</li><li>Without.</li></ul></details>"
    ) in html


def test_what_was_looked_for_in_vain_is_told_and_green(full_run: Path) -> None:
    shown = page(read_run(full_run), GREEN).diagnosis
    assert (shown.level, shown.word, shown.causes, shown.unchecked) == ("good", "Green", [], [])
    assert shown.said == (
        "Nothing was found that speaks against it. 2 ways of going wrong were looked for in sft and ppo."
    )
    assert shown.not_found == [("ppo", ["The KL to the reference runs away", "Answers repeat themselves"])]
    assert "What could not be checked" not in read(full_run, GREEN).text


@pytest.mark.parametrize(
    ("examined", "said"),
    [
        ({"failed": "KeyError: 'stages'"}, "The doctor could not examine this run (KeyError: 'stages')."),
        (
            GREEN | {"verdict": "unchecked", "in_words": "too little was read", "unread": ["no sft", "no ppo"]},
            "Too little was read: no sft; no ppo. 2 ways of going wrong were looked for in sft and ppo.",
        ),
        (
            GREEN | {"verdict": "unchecked", "in_words": "too little", "unread": ["no log"], "not_found": []},
            "Too little: no log.",
        ),
    ],
)
def test_a_run_that_nobody_could_examine_has_no_colour(full_run: Path, examined: Facts, said: str) -> None:
    found = read(full_run, examined)
    assert f"No verdict. {said}" in found.text
    assert ("div", {"class": "verdict info"}) in found.elements
    assert "ppo answers better than sft" in found.text


def test_what_is_gone_from_the_disk_is_said_and_the_rest_is_shown(tmp_path: Path) -> None:
    run = fabricate_run(tmp_path)
    for name in ("ppo", "evaluate", "data"):
        (folder,) = (tmp_path / "artifacts").glob(f"{name}-*")
        shutil.rmtree(folder)
    (run / "recipe.yaml").unlink()
    text = read(run).text
    assert "Artifacts no longer on disk: data, ppo, evaluate. Only their final numbers are shown." in text
    assert "No answers were saved, so none can be shown side by side." in text
    assert "There is no recipe.yaml beside the summary" in text
    assert "86.4" in text


def test_a_folder_without_a_run_is_a_usage_error_that_names_the_runs_in_it(tmp_path: Path) -> None:
    fabricate_run(tmp_path, ("data",))
    with pytest.raises(UsageError) as caught:
        write_report(tmp_path)
    assert caught.value.hint == "Runs in it: sandbox-3f9a1c07."
    assert not (tmp_path / "report.html").exists()


def test_a_damaged_file_leaves_the_old_report_as_it_was(tmp_path: Path) -> None:
    run = fabricate_run(tmp_path, ("data", "sft"))
    before = write_report(run).read_bytes()
    (run / "summary.json").write_text('{"run": ')
    with pytest.raises(StorageError, match=r"summary\.json: not valid JSON"):
        write_report(run)
    assert (run / "report.html").read_bytes() == before
    assert sorted(file.name for file in run.iterdir()) == ["recipe.yaml", "report.html", "summary.json"]


def test_the_same_files_make_the_same_page(full_run: Path) -> None:
    assert write_report(full_run).read_bytes() == write_report(full_run).read_bytes()


def test_a_long_run_still_makes_a_small_file(full_run: Path, tmp_path: Path) -> None:
    shutil.copytree(full_run.parent, tmp_path / "runs")
    (ppo,) = (tmp_path / "runs" / "artifacts").glob("ppo-*")
    line = '{{"step": {0}, "time": {0}, "objective/kl": {1}, "objective/reward": {1}, "policy/loss": null}}\n'
    (ppo / "metrics.jsonl").write_text("".join(line.format(step, step % 97) for step in range(1, 20_001)))
    path = write_report(tmp_path / "runs" / full_run.name)
    assert path.stat().st_size < 200_000


def test_inputs_are_named_as_the_run_names_them(full_run: Path) -> None:
    run: RunFiles = read_run(full_run)
    assert run.input_name(run.stages["ppo"], "base", "?") == "sft"
    assert run.input_name(run.stages["ppo"], "reward", "?") == "reward"
    assert run.input_name(run.stages["sft"], "base", "the recipe's model") == "the recipe's model"


def test_text_has_enough_contrast_in_light_and_dark(full_run: Path) -> None:
    html = write_report(full_run).read_text(encoding="utf-8")
    themes = re.findall(r":root \{(.*?)\}", html, re.DOTALL)[:2]
    light, dark = (dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", theme)) for theme in themes)
    for theme in (light, light | dark):
        for ink in ("ink", "soft", "one", "two", "good", "warn", "bad"):
            for ground in ("paper", "card"):
                assert contrast(theme[ink], theme[ground]) >= 4.5, (ink, ground)
        for tone in ("good", "warn", "bad", "info"):
            assert contrast(theme["ink"], theme[f"{tone}-wash"]) >= 7, tone
            assert contrast(theme[tone], theme[f"{tone}-wash"]) >= 4.5, tone


def contrast(one: str, other: str) -> float:
    """WCAG 2.2 contrast ratio of two colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, bright = sorted((luminance(one), luminance(other)))
    return (bright + 0.05) / (dark + 0.05)


def test_words_are_coloured_by_how_much_of_the_score_comes_from_them(seen: Reader) -> None:
    spans = [a for tag, a in seen.elements if tag == "span" and "--strength" in (a.get("style") or "")]
    styles = [(span["class"], span["style"], span["title"]) for span in spans[:4]]
    assert styles == [
        ("up", "--strength:100%", "+0.90"),
        ("up", "--strength:22%", "+0.20"),
        ("down", "--strength:50%", "−0.45"),
        ("down", "--strength:0%", "0.00"),
    ]
    assert "Breakfast <b>now</b>" in seen.text, "what people wrote is text, not markup"
    assert "less the other’s: +3.20" in seen.text
    assert "less the other’s: −1.04" in seen.text
