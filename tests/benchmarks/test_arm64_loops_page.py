"""The page of arm64's loops: written from its JSON alone, goals included."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ksm_hw.errors import UserError

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from arm64_loops.goals import goals
from arm64_loops.results import joined, read_results
from arm64_loops.tables import markdown

REPOSITORY = Path(__file__).resolve().parents[2]
LOOP = {"extents": [8, 2], "products": 16, "steps": 16, "machine": {"products": 16, "cycles": 9, "instructions": 20}}


def operator(name: str, share: float | None, transforms: dict[str, float] | None = None) -> dict[str, object]:
    return {
        "symbol": "fused",
        "name": name,
        "shapes": [[1, 8, 8, 4], [1, 4, 4, 16]],
        "schedule": "",
        "calls": 2,
        "share": share,
        "milliseconds": 1.5,
        "transforms": transforms,
        "loops": [LOOP] if share else [],
    }


def network(board: str, title: str, *operators: dict[str, object]) -> dict[str, object]:
    core = {"title": title, "table": "table", "products": 2, "gigahertz": 2.4, "count": 4}
    return {"network": "small", "board": board, "core": core, "milliseconds": 3.0, "operators": [*operators]}


def peer(engine: str, kind: str, share: float) -> dict[str, object]:
    return {"core": "Cortex-A76", "engine": engine, "kind": kind, "share": share}


WINOGRAD = operator("winograd conv2d + add", 0.96, {"milliseconds": 0.6, "share_of_operator": 0.67})
FOUND = {
    "command": "arm64_loops.py --peers",
    "precision": "float32",
    "rewriting": {"codes of 8 bits": 128, "no mask": 39, "a copy": 25},
    "uneven": [{"network": "small", "board": "rk3588", "milliseconds": [4, 3, 2, 1]}],
    "peers": [
        peer("LiteRT", "convolutions", 0.9),
        peer("ncnn", "convolutions", 0.99),
        peer("ncnn", "depthwise 3×3", 0.72),
    ],
    "networks": [
        network(
            "rpi5",
            "Cortex-A76",
            operator("conv2d 1×1", 0.93),
            WINOGRAD,
            operator("depthwise conv2d 3×3", 0.71),
            operator("depthwise conv2d 3×3 s2 + add", 0.5),
            operator("depthwise conv2d 5×5", 0.7),
            operator("conv2d 1×1 that nobody understood", None),
        ),
        network("rk3588", "Cortex-A76", operator("conv2d 1×1", 0.5)),
        network("rk3588", "Cortex-A55", operator("conv2d 1×1", 1.5), operator("matmul + add", 0.37)),
    ],
}


def rows(page: str, start: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith(start)]


def test_goals_say_what_is_met_and_by_how_many_it_is_missed() -> None:
    assert rows(goals(FOUND), "| Cortex") == [
        ["Cortex-A76", "convolutions, share of the peak", "50 to 60%", "99% (ncnn)", "≥ 92%", "93% to 96%", "yes"],
        [
            *("Cortex-A76", "depthwise 3×3, share of the peak", "31 to 54%", "72% (ncnn)"),
            *("≥ 70% and the best peer's", "71% to 71%, stride 2: 50% to 50%", "missed by 2 of 2"),
        ],
        [
            *("Cortex-A76", "depthwise 5×5, share of the peak", "31 to 54%", "0% (none)"),
            *("≥ 70% and the best peer's", "70% to 70%", "yes"),
        ],
        [
            *("Cortex-A76", "Winograd's convolutions with their transforms", "", ""),
            *("≥ 92%", "67% to 67%", "missed by 1 of 1"),
        ],
        [
            *("Cortex-A76", "rewriting a weight, cycles for 64 values", "258", "a copy 25"),
            *("≤ 40", "codes of 8 bits 128, no mask 39", "missed by 1 of 2"),
        ],
        ["Cortex-A55", "convolutions, share of one multiply-add a cycle", "", "", "≥ 80%", "150% to 150%", "yes"],
        [
            *("Cortex-A55", "dense layers, share of one multiply-add a cycle", "", ""),
            *("≥ 80%", "37% to 37%", "missed by 1 of 1"),
        ],
    ]


def test_goals_are_not_stated_without_other_engines_or_their_board() -> None:
    assert goals({**FOUND, "peers": []}) == ""
    assert goals({**FOUND, "networks": FOUND["networks"][1:]}) == ""


def test_the_same_core_on_two_boards_has_two_rows() -> None:
    page = markdown(FOUND)
    assert rows(page, "| rpi5 | Cortex-A76 | conv") == [
        ["rpi5", "Cortex-A76", "convolutions", "93% to 96%", "90%", "99%"]
    ]
    assert rows(page, "| rk3588 | Cortex-A76 | conv")[0][3] == "50% to 50%"


def test_transforms_are_shown_apart_and_operators_without_a_share_by_name() -> None:
    page = markdown(FOUND)
    (row,) = rows(page, "| 2 | winograd")
    assert row[3:] == ["96%, of all 67%", "16, 9.0 × 16", "1.500, transforms 0.600"]
    assert "no share counts: `conv2d 1×1 that nobody understood`." in page
    everywhere = copy.deepcopy(FOUND)
    everywhere["networks"][0]["operators"].pop()
    assert "no share counts: none." in markdown(everywhere)


def test_a_page_is_written_anew_from_its_json(tmp_path: Path) -> None:
    command = [sys.executable, REPOSITORY / "benchmarks" / "arm64_loops.py", "--page", tmp_path, "-o", tmp_path]
    content = json.dumps(FOUND, indent=1) + "\n"
    (tmp_path / "arm64_loops.json").write_text(content)
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "arm64_loops.md").read_text() == markdown(FOUND)
    assert (tmp_path / "arm64_loops.json").read_text() == content


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (None, "Cannot read {file}: No such file or directory. Run the command with -o first."),
        ("{", "{file} is damaged ("),
        ("[]", "{file} lacks command, precision, rewriting, uneven, peers, networks: this command did not write it."),
        ('{"command": ""}', "{file} lacks precision, rewriting, uneven, peers, networks"),
    ],
)
def test_a_page_of_what_no_run_wrote_is_refused(written: str | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "arm64_loops.json"
    if written is not None:
        file.write_text(written)
    with pytest.raises(UserError, match=re.escape(message.format(file=file))):
        read_results(file)


@pytest.mark.parametrize("benchmark", ["arm64_loops.py", "arm64_instructions.py"])
def test_bad_input_is_told_before_hours_of_work(benchmark: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = [sys.executable, REPOSITORY / "benchmarks" / benchmark, "-o", tmp_path / "file" / "folder"]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2 and f"Cannot write {tmp_path / 'file' / 'folder'}:" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_runs_in_parts_are_one() -> None:
    def of(name: str, milliseconds: float) -> dict[str, object]:
        return {**network("rpi5", "Cortex-A76"), "network": name, "milliseconds": milliseconds}

    empty = {"precision": "float32", "rewriting": {}, "uneven": [], "peers": []}
    first = {**empty, "command": "one", "rewriting": {"a copy": 25}, "peers": FOUND["peers"]}
    first["networks"] = [of("mobilenet_v2", 3), of("vgg16_bn", 4)]
    last = {**empty, "command": "two", "networks": [of("resnet50", 1), of("vgg16_bn", 2)]}
    both = joined(first, last)
    assert [(one["network"], one["milliseconds"]) for one in both["networks"]] == [
        *(("resnet50", 1), ("vgg16_bn", 2), ("mobilenet_v2", 3))
    ]
    assert both["rewriting"] == {"a copy": 25} and both["peers"] == FOUND["peers"]
    assert markdown(both).splitlines()[2:5] == ["`one`", "", "`two`"]


def test_the_page_of_the_docs_is_that_of_its_json() -> None:
    written = REPOSITORY / "docs" / "arm64_loops"
    found = json.loads(written.with_suffix(".json").read_text())
    assert written.with_suffix(".md").read_text() == markdown(found)
