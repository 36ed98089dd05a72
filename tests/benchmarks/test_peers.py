"""The parts of benchmarks/peers.py that need no engine: ratios, means, noise, tables."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

from ksm_hw.models.backbones import default_preprocessing

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from peers import preparation
from peers.catalogue import (
    ENGINES_OF,
    ENVIRONMENTS,
    FURTHER_NETWORKS,
    IMAGE_SIZES,
    NETWORKS,
    PROJECT,
    RELAY,
    TITLES,
    Engine,
)
from peers.engines import photographs
from peers.failures import EngineError, last_words
from peers.latency import quieter_half
from peers.multitask_results import ARTIFACT, HELD, TaskCost
from peers.networks import make_bundle
from peers.noise import FOREIGN_LIMIT, SLOWER_LIMIT, Quiet, outliers
from peers.results import (
    AGREEMENT_LIMIT,
    ERROR_LIMIT,
    INT8_ERROR_LIMIT,
    Result,
    best_peer,
    geometric_mean,
    mean_ratios,
    ratios_to_best_peer,
    unlike_float32,
    wrong_outputs,
)
from peers.serve import judged
from peers.stored import read_results
from peers.tables import latency_table, machine_class, markdown, noise_line, overview, task_table

PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks" / "peers.py"
FACTS = {
    "command": "peers.py",
    "date": "2026-01-01",
    "image_size": 224,
    "cpu_flags": ["avx2", "sse"],
    "machine": {
        "cpu": "Some CPU",
        "architecture": "x86_64",
        "system": "Linux",
        "cores": 2,
        "memory_bytes": 2**34,
        "load": 0.0,
    },
}


def result(engine: str, milliseconds: float, network: str = "resnet18", threads: int = 2, **more: object) -> Result:
    rounds = ((milliseconds / 1e3,) * 3,) * 2
    fields = {"version": "1.0", "error_of_logits": 1e-6, "rounds": rounds} | more
    return Result(network, threads, engine, engine.title(), engine == "ours", **fields)  # type: ignore[arg-type]


def test_ratios_are_to_the_best_peer_and_never_to_our_own():
    cell = [result("ours", 8), result("one", 10), result("two", 20), result("three", 1, failure="no", rounds=())]
    best = best_peer(cell)
    assert best is not None and best.engine == "one"
    assert ratios_to_best_peer(cell) == pytest.approx({"ours": 0.8, "one": 1.0, "two": 2.0})
    assert ratios_to_best_peer([result("ours", 8)]) == {}


def test_means_take_each_network_alike_and_count_those_where_an_engine_failed():
    results = [
        result("ours", 20),
        result("one", 10),
        result("ours", 4, network="vgg16_bn"),
        result("one", 8, network="vgg16_bn"),
        result("two", 16, network="vgg16_bn"),
        result("ours", 99, threads=1),
    ]
    means = mean_ratios(results, threads=2)
    assert means["ours"] == (pytest.approx(1.0), 2)
    assert means["two"] == (pytest.approx(2.0), 1)
    assert geometric_mean([2, 8]) == pytest.approx(4)
    assert "2.00 (of 1)" in next(line for line in overview(results) if line.startswith("| Two"))


def test_noise_is_seen_in_other_processes_in_a_slow_machine_and_in_rounds_that_differ():
    assert not Quiet(FOREIGN_LIMIT, SLOWER_LIMIT).noisy
    assert Quiet(FOREIGN_LIMIT + 0.01, 1.0).noisy
    assert Quiet(0.0, SLOWER_LIMIT + 0.01).noisy
    assert outliers([10, 10.5, 12, 9.9, 8.5], limit=0.1) == [2, 4]
    assert outliers([], limit=0.1) == []
    assert not result("one", 10).noisy
    assert result("one", 10, rounds=((0.010,) * 3, (0.013,) * 3)).noisy
    apart = ((0.010,) * 3,) * 8
    assert not result("one", 10, rounds=(*apart, (0.020,) * 3)).noisy  # One of nine says nothing of the others.
    assert result("one", 10, rounds=(*apart, *((0.012,) * 3 for _ in range(4)))).noisy
    assert result("one", 10, disturbed=1).noisy


def test_the_quieter_half_of_the_rounds_counts_however_fast_the_engine_was():
    calm, busy, slowed = ([0.03], Quiet(0.0, 1.0)), ([0.01], Quiet(0.5, 1.0)), ([0.02], Quiet(0.0, 1.3))
    assert quieter_half([busy, slowed, calm]) == [calm, slowed]
    assert quieter_half([busy, calm]) == [calm]
    assert quieter_half([busy]) == [busy]


def test_the_page_names_failures_and_noise():
    results = [result("ours", 8, disturbed=1, repeated=4), result("one", 10), result("two", 1, failure="no | way\nout")]
    lines = latency_table(results)
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| Ours", "| One", "| Two"]
    assert "failed: no \\| way out" in lines[-1]
    assert "4 repeated, 1 of 2 rounds disturbed" in lines[2]
    assert noise_line(results).endswith("Measured again: 4. Noisy results: 1 of 2.")
    page = markdown(results, [], FACTS)
    assert "| Ours | 8.00~ | 0.80 |" in page
    assert "| One | **10.00** | 1.00 |" in page
    assert "| Two | failed | — |" in page
    assert "avx2" in page and "sse" not in page and page.startswith("## AVX2\n")


def test_machines_have_classes_by_their_widest_instructions():
    flags = {"sse", "avx2", "avx512f", "amx_tile"}
    assert machine_class(flags) == "AMX"
    assert machine_class(flags - {"amx_tile"}) == "AVX-512"
    assert machine_class({"avx2"}) == "AVX2" and machine_class({"asimd"}) == "NEON"
    assert machine_class(()) == "other"


def test_what_was_measured_elsewhere_is_shown_as_it_was_measured(tmp_path, monkeypatch):
    results = [
        result("ours", 8, rounds=((0.008, 0.009, 0.010), (0.008,)), disturbed=1, repeated=4),
        result("one", 10, network="vit_b_16"),
        result("two", 1, failure="no | way", rounds=()),
    ]
    (tmp_path / "peers-avx2.json").write_text(
        json.dumps({"facts": FACTS, "results": [one.summary() for one in results]})
    )
    stored, facts = read_results(tmp_path / "peers-avx2.json")
    assert markdown(stored, [], facts) == markdown(results, [], FACTS)
    assert [one.summary() for one in stored] == json.loads(json.dumps([one.summary() for one in results]))
    # A machine of another class writes files of its own, and a page of both.
    for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(threads, "1")  # The program sets them for its process.
    record_of = runpy.run_path(str(PROGRAM))["Record"]
    facts = FACTS | {"cpu_flags": ["avx512f"], "multitask": False, "precision": "float32"}
    record_of(tmp_path, facts, [result("one", 5)]).write()
    text = (tmp_path / "peers.md").read_text()
    assert text.index("## AVX-512") < text.index("## AVX2") and "| Two | failed |" in text
    assert {file.name for file in tmp_path.iterdir()} == {"peers-avx2.json", "peers-avx512.json", "peers.md"}
    # So does another precision.
    record_of(tmp_path, facts | {"precision": "int8"}, [result("one", 5, agreement=0.97)]).write()
    assert {file.name for file in tmp_path.glob("*int8*")} == {"peers_int8-avx512.json", "peers_int8.md"}
    page = (tmp_path / "peers_int8.md").read_text()
    assert page.startswith("# ksm-hw beside other engines in int8") and "224×224, int8." in page and "AVX2" not in page
    assert "judged on 100 crops of other photographs" in page and "judged" not in text
    assert (tmp_path / "peers.md").read_text() == text


def test_spread_is_that_of_the_quartiles():
    one = result("one", 1, rounds=((1.0, 2.0, 3.0), (4.0, 5.0)))
    assert one.median == 3.0
    assert one.interquartile == pytest.approx(2.0)
    summary = json.loads(json.dumps(one.summary()))
    assert summary["quartiles_seconds"] == [2.0, 4.0] and summary["inferences"] == 5 and summary["noisy"]
    assert result("one", 1, failure="no").summary()["failure"] == "no"


def test_wrong_outputs_are_a_failure():
    assert wrong_outputs(ERROR_LIMIT) is None
    assert "5.0e-01" in str(wrong_outputs(0.5))
    assert wrong_outputs(float("nan")) is not None


def test_int8_is_wrong_where_too_few_images_have_the_top_class_of_float32_or_logits_are_too_far_off():
    assert unlike_float32(AGREEMENT_LIMIT, 0.99) is None
    assert "40%" in str(unlike_float32(0.4, 0.1)) and "error is 1.00" in str(unlike_float32(0.9, INT8_ERROR_LIMIT))
    assert unlike_float32(float("nan"), 0.1) is not None and unlike_float32(0.9, float("nan")) is not None
    lines = latency_table([result("ours", 8, agreement=0.97, error_of_logits=0.08), result("two", 1, failure="no")])
    assert "float32's top class" in lines[0] and {line.count("|") for line in lines} == {8}
    assert "| 8.0e-02 | 97% |" in lines[2] and "| — | failed: no |" in lines[3]


def test_int8_is_judged_by_each_image():
    images = np.zeros((4, 1, 1, 1), np.float32)
    images[:, 0, 0, 0] = [1, 2, 3, 4]
    expected = np.array([[5, 0], [5, 1], [0, 5], [1, 5]], np.float32)
    assert judged(lambda image: expected[int(image.item()) - 1][None], images, expected) == {
        "agreement": 1.0,
        "error_of_logits": 0.0,
    }
    # The same logits for all images: however near, nothing is told from them.
    found = judged(lambda _image: expected.mean(0, keepdims=True), images, expected)
    assert found["error_of_logits"] == pytest.approx(1.0) and found["agreement"] == 0.5


def test_int8_is_judged_on_other_photographs_than_its_ranges_are_chosen_by():
    assert not set(photographs.CALIBRATED_ON) & set(photographs.JUDGED_ON)
    crops = photographs.crops(("chelsea", "flower"), default_preprocessing("mobilenet_v2", 32), count=4)
    assert crops.shape == (4, 3, 32, 32) and crops.dtype == np.float32
    assert len({crop.tobytes() for crop in crops}) == 4
    again = photographs.crops(("chelsea", "flower"), default_preprocessing("mobilenet_v2", 32), count=4)
    np.testing.assert_array_equal(crops, again)


def test_memory_of_a_task_is_the_growth_since_the_next_smaller_number():
    def cost(way: str, tasks: int, megabytes: int, **more: object) -> TaskCost:
        sizes = {"before_bytes": 10**7, "loaded_bytes": megabytes * 10**6} | more
        return TaskCost("resnet18", 2, "one", "One", way, tasks, **sizes)  # type: ignore[arg-type]

    costs = [
        cost(HELD, 1, 50),
        cost(ARTIFACT, 1, 60),
        cost(HELD, 2, 80),
        cost(HELD, 5, 230),
        cost(HELD, 9, 0, failure="x"),
    ]
    growth = [line.split(" | ")[5] for line in task_table(costs)[2:6]]
    assert growth == ["—", "—", "30.0", "50.0"]
    assert "failed: x" in task_table(costs)[6]


def test_the_reason_of_a_failure_is_the_last_line_that_names_an_error():
    assert last_words("start\nValueError: no such operator\n  at line 3\n") == "ValueError: no such operator"
    assert last_words("one\ntwo\n") == "two"
    assert last_words("") == "it wrote nothing"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "int8", "--tune", "600"], "--tune is for ksm-hw-tuned"),
        (["--engines", "openvino", "--tune", "600"], "--tune is for ksm-hw-tuned"),
        (["--engines", "ksm-hw-tuned"], "needs --tune TRIALS"),
        (["--precision", "int8", "--engines", "ncnn"], "none of ncnn is compared in int8"),
        (["--precision", "int8", "--multitask"], "compared in float32"),
    ],
)
def test_what_would_not_be_done_is_said(
    options: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "argv", ["peers.py", "-o", str(tmp_path), *options])
    with pytest.raises(SystemExit, match=message):
        runpy.run_path(str(PROGRAM), run_name="__main__")
    assert not any(tmp_path.iterdir())


def test_every_engine_has_a_file_and_an_environment_with_pinned_packages():
    folder = Path(__file__).resolve().parents[2] / "benchmarks" / "peers" / "engines"
    for engine in (engine for engines in ENGINES_OF.values() for engine in engines):
        for module, environment in ((engine.module, engine.environment), *engine.converters):
            assert (folder / f"{module}.py").exists()
            assert environment in (PROJECT, RELAY) or all("==" in package for package in ENVIRONMENTS[environment])


def test_why_a_network_was_not_converted_is_kept_for_a_run_of_what_was_prepared(tmp_path, monkeypatch):
    monkeypatch.setattr(preparation, "PEERS", tmp_path)
    engine, task = Engine("one", "One", "onnxruntime_engine", PROJECT, (("onnx_file", PROJECT),)), tmp_path / "net/task"
    task.mkdir(parents=True)
    with pytest.raises(EngineError, match="not prepared: build/peers has no net/onnx_file"):
        preparation.check_prepared(engine, task)
    for prepare in (preparation.prepare_engine, preparation.check_prepared):
        with pytest.raises(EngineError, match=r"No such file or directory.*network\.pt2"):
            prepare(engine, task)
    (task / "onnx_file.json").write_text("{}")
    preparation.check_prepared(engine, task)


def test_networks_of_other_sizes_and_with_another_head_are_made_as_well(monkeypatch):
    assert set(IMAGE_SIZES) <= {*TITLES} and not {*NETWORKS} & {*FURTHER_NETWORKS}
    assert all(str(size) in TITLES[network] for network, size in IMAGE_SIZES.items())
    monkeypatch.setitem(IMAGE_SIZES, "squeezenet1_1", 64)  # type: ignore[arg-type]
    (pack,) = make_bundle("squeezenet1_1", tasks=1, classes=10).packs.values()
    assert pack.preprocessing.image_size == 64 and pack.head_weight.shape == (10, 512, 1, 1)
