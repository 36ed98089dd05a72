"""Methods compared: what is made of their trials."""

import dataclasses
import io
import json
from pathlib import Path

import pytest
from learned_noise import save_pets, saved_weights
from random_tasks import SMALL_NETWORK
from typer.testing import CliRunner

from ksm_hw.cli import app
from ksm_hw.cli.console import PlainConsole
from ksm_hw.errors import UserError
from ksm_hw.masks.bundle import Bundle, load_bundle
from ksm_hw.masks.task_pack import bytes_at_rest
from ksm_hw.report.comparison import Summary, comparison_tables, write_comparison
from ksm_hw.report.deployed_methods import Deployed
from ksm_hw.report.terminal import print_table

SUMMARIES = [
    Summary(
        "ksm", "pets", "a card", (0.5, 0.75), (0.0, 0.25), 1e6, 7, 10, 5e8, 2e9,
        Deployed(0.003, 0.001, None, None, "a CPU, 2 threads", False),
    ),
    Summary("fine-tuning", "pets", "a card", (1.0, 1.0), (0.0, 0.0), 4e6, 5, 8, 6e8, 0),
]  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, bundle: Bundle) -> Path:
    saved_weights(bundle, tmp_path / "w.pt")
    for name in ("pets", "others"):
        save_pets(tmp_path / name)
    return tmp_path


def compare(place: Path, *more: str) -> dict[str, dict[str, object]]:
    options = ["--methods", "head,fine-tuning", "--tasks", f"{place / 'pets'},{place / 'others'}", "--seeds", "1"]
    options += ["--backbone", SMALL_NETWORK, "--weights", str(place / "w.pt"), "--image-size", "32", "--epochs", "1"]
    options += ["--mask-rate", "1e-3"]  # Of which a head alone has no use.
    result = CliRunner().invoke(app, ["compare", *options, "-o", str(place / "compared"), "--json", *more])
    if result.exception:
        raise result.exception
    return {f"{each['method']} {each['task']}": each for each in json.loads(result.stdout)}


@pytest.mark.slow  # Four processes that import torch.
def test_a_comparison_goes_on_and_counts_backbones(place: Path) -> None:
    first = compare(place)
    trials = {path.name: path.read_bytes() for path in (place / "compared" / "trials").iterdir()}
    assert set(trials) == {
        f"{method}-{task}-0.json" for method in ("head", "fine-tuning") for task in ("pets", "others")
    }
    (place / "compared" / "trials" / "head-pets-0.json").unlink()
    again = compare(place, "--jobs", "2")
    assert again["fine-tuning others"] == first["fine-tuning others"]
    folders = place / "compared" / "bundles"
    assert sorted(path.name for path in folders.iterdir()) == ["fine-tuning-0-others", "fine-tuning-0-pets", "head-0"]
    one = load_bundle(folders / "head-0")
    packs = sum(map(bytes_at_rest, one.packs.values()))
    backbone = sum(array.nbytes for array in one.tensors.values())
    assert first["head pets"]["added_bytes"] == packs / 2
    assert first["fine-tuning pets"]["added_bytes"] == (packs + backbone) / 2
    assert first["head pets"]["forgotten"] == [0.0] and first["head pets"]["memory_bytes"] > 1e8
    with pytest.raises(UserError, match="Give the same, or another -o"):
        compare(place, "--head-rate", "1e-3")


@pytest.mark.slow  # Two processes that import torch.
def test_granularities_and_bits_are_compared_as_methods_are(place: Path) -> None:
    options = ["--methods", "ksm", "--granularities", "channel", "--scale-bits", "8,4", "--seeds", "1", "--epochs", "1"]
    options += ["--backbone", SMALL_NETWORK, "--weights", str(place / "w.pt"), "--image-size", "32"]
    output = ["--tasks", str(place / "pets"), "-o", str(place / "swept"), "--json"]
    result = CliRunner().invoke(app, ["compare", *options, *output], catch_exceptions=False)
    found = [(each["granularity"], each["scale_bits"], each["added_bytes"]) for each in json.loads(result.stdout)]
    for granularity, bits, added in found:
        bundle = load_bundle(place / "swept" / "bundles" / f"ksm+{granularity}+{bits}-0")
        (pack,) = bundle.packs.values()
        assert pack.granularity == "channel" and bytes_at_rest(pack) == added
        assert {mask.scale_bits for mask in pack.masks.values()} == {bits}
    assert [bits for _, bits, _ in found] == [8, 4]
    assert all(len(each["curve"]) == 1 for each in json.loads(result.stdout))


def test_variants_of_a_method_are_told_apart() -> None:
    swept = [dataclasses.replace(SUMMARIES[0], granularity="channel", scale_bits=bits) for bits in (8, 4)]
    for table in comparison_tables(swept):
        assert [row[1] for row in table.rows] == [
            "KSM soft masks, by channel, 8 bits", "KSM soft masks, by channel, 4 bits",
        ]  # fmt: skip


def test_the_table_and_the_page_have_every_method(tmp_path: Path) -> None:
    reached, learned, deployed = comparison_tables(SUMMARIES)
    assert reached.rows == (
        ("pets", "KSM soft masks", "62.5% ± 17.7%", "12.5%", "1.000"),
        ("pets", "fine-tuning", "100.0% ± 0.0%", "0.0%", "4.000"),
    )
    assert learned.rows == (
        ("pets", "KSM soft masks", "7", "10", "500", "2000"), ("pets", "fine-tuning", "5", "8", "600", "0"),
    )  # fmt: skip
    assert "Learned on a card." in learned.note
    assert deployed.rows == (("pets", "KSM soft masks", "3.00", "1.00", "—", "—"),)
    assert deployed.note == "Medians, of the first seed's bundles, on a CPU, 2 threads."
    write_comparison(SUMMARIES, "2 seeds < 3", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 2 and page.count("KSM soft masks") == 5
    drawn = [dataclasses.replace(each, curve=((1.0, 0.25), (2.0, 0.5))) for each in SUMMARIES]
    write_comparison(drawn, "2 seeds < 3", tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert page.count("<svg") == 3 and "after each epoch" in page


def test_a_terminal_of_80_columns_shows_whole_words_and_numbers() -> None:
    times = Deployed(0.123, 0.0123, 0.00456, 0.0789, "an Intel(R) Xeon(R) Processor (cascadelake), 2 threads", True)
    swept = dataclasses.replace(
        SUMMARIES[0], task="fashion-mnist", seconds=10_380, cpu_seconds=11_587, memory_bytes=2.4e10, deployed=times
    )
    stream = io.StringIO()
    tables = comparison_tables([swept])
    for table in tables:
        print_table(PlainConsole(file=stream, width=80), table)
    lines = stream.getvalue().splitlines()
    for table in tables:
        assert any(all(cell in line for cell in table.rows[0]) for line in lines), stream.getvalue()
        assert all(word in stream.getvalue() for column in table.columns for word in column.split())
    assert "Rounds differ by more than 10%: KSM soft masks." in " ".join(stream.getvalue().split())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--methods", "ksm,magic"], "No method named 'magic'"),
        (["--rate", "ksm=fast"], "--rate ksm=fast is no rate"),
        (["--rate", "head=1e-3"], "head only learns no masks and no weights"),
        (["--granularities", "kernel,kernal"], "--granularities kernel,kernal: there is no 'kernal'"),
        (["--scale-bits", "2"], "--scale-bits 2: there is no '2'. Give some of 32, 8, 4"),
        (["--methods", "head", "--granularities", "kernel", "--tasks", "mnist"], "None of the methods head has masks"),
        (["--tasks", "nowhere"], "No folder and no data set named 'nowhere'"),
        (["--tasks", "mnist,mnist"], "--tasks has two tasks called 'mnist'"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_learned(options: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["compare", "-o", str(tmp_path / "compared"), *options])
    assert isinstance(result.exception, UserError) and message in str(result.exception)
    assert not list(tmp_path.iterdir())
