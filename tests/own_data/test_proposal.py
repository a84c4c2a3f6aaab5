"""Every form of data is recognised, read whole and turned into gin files that build; and what cannot be is told in one line."""

import csv
import dataclasses
import io
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from PIL import Image

from chameleon_jax import gin_utils
from chameleon_jax.configs import PretrainConfig, TokenizeConfig, TrainTokenizerConfig
from chameleon_jax.data.sources import estimate_records, source_of
from chameleon_jax.errors import DataError, WorkdirError
from chameleon_jax.own_data import earlier, gin_files, machine, proposal, sizes, survey
from chameleon_jax.own_data.machine import WIDTHS, Machine
from tests.own_data_forms import FORMS, records, write_csv, write_manifest, write_pairs, write_pictures, write_tars

CPU = Machine(platform="cpu", name="CPU", devices=1, memory=24 * 10**9, rates=(60e9,) * len(WIDTHS))
GPU = Machine(platform="gpu", name="GPU", devices=1, memory=80 * 10**9, rates=(2e12, 8e12, 3e13, 1e14, 2e14, 4e14))
CONFIGS = {
    gin_files.TOKENIZER: TrainTokenizerConfig,
    gin_files.DATA: TokenizeConfig,
    gin_files.RUN: PretrainConfig,
}


@pytest.fixture(scope="module")
def given():
    return records()


def looked_at(path, caption=None):
    return survey.survey(proposal.source_of_flags(str(path), "", caption))


def configs(found, folder, minutes=5.0, machine=CPU):
    """The configs that the written files build, and the sizes."""
    chosen = sizes.choose(found, machine, minutes)
    files = gin_files.make(found, chosen, folder)
    gin_files.write(folder, files, overwrite=False)
    return [gin_utils.load(config, [str(folder / name)]).config for name, config in CONFIGS.items()], chosen


@pytest.mark.parametrize("form", FORMS)
def test_each_form_is_recognised_read_whole_and_becomes_configs(form, given, tmp_path):
    make, kind = FORMS[form]
    path = make(tmp_path / "data", given)
    found = looked_at(path)
    assert (found.source.kind, found.pictures, found.documents, found.captioned) == (kind, 200, 200, 200)
    assert found.rejects == () and found.side == 16
    assert set(found.words) == ({8} if form == "csv" else {6})
    assert estimate_records(found.source) in (200, None)
    (tokenizer, data, run), chosen = configs(found, tmp_path / "run")
    assert tokenizer.sources == data.sources == (found.source,)
    assert tokenizer.vq.codes_per_image == 16 and run.train.steps == chosen.steps
    commands = dict(gin_files.commands(found, tmp_path / "run"))
    assert list(commands) == ["train_tokenizer", "tokenize", "pretrain", "generate", "serve"]


def test_more_time_and_a_faster_machine_make_larger_models_of_more_data(given, tmp_path):
    found = looked_at(write_csv(tmp_path / "data", given))
    small = sizes.choose(found, CPU, 5)
    many = dataclasses.replace(found, scale=500.0, sides=((256, 200),) * 200)
    larger, longer, quicker = (sizes.choose(many, *more) for more in ((CPU, 30), (CPU, 600), (GPU, 600)))
    assert small.parameters < larger.parameters < longer.parameters < quicker.parameters
    assert small.vq.resolution == 16 and larger.vq.resolution <= longer.vq.resolution <= quicker.vq.resolution == 128
    for chosen, minutes in ((small, 5), (larger, 30), (longer, 600), (quicker, 600)):
        assert sum(chosen.seconds.values()) < 60 * minutes * 1.2
        assert chosen.memory < 0.7 * CPU.memory


def test_the_text_alone_of_a_table_makes_a_run_of_text(tmp_path):
    (tmp_path / "t.csv").write_text("text\n" + "".join(f"a line of words number {i}\n" for i in range(50)))
    found = looked_at(tmp_path / "t.csv")
    (tokenizer, _, _), chosen = configs(found, tmp_path / "run")
    assert [row.name for row in tokenizer.vocab.modalities] == ["text"] and chosen.vq is None
    assert "--mode=text" in dict(gin_files.commands(found, tmp_path / "run"))["generate"]


def test_pictures_alone_get_the_words_that_they_are_told(given, tmp_path):
    for i, (data, _) in enumerate(given[:8]):
        (tmp_path / f"{i}.png").write_bytes(data)
    assert looked_at(tmp_path).caption == "a picture"
    assert looked_at(tmp_path, caption="a bar").caption == "a bar"
    with pytest.raises(DataError, match="--caption is for pictures without words"):
        proposal.source_of_flags(str(write_pairs(tmp_path / "pairs", given[:3])), "", "a bar")


def test_records_that_cannot_be_used_are_counted_with_their_reasons(given, tmp_path):
    folder = write_csv(tmp_path / "data", given)
    (folder / "images" / "0003.png").write_bytes(b"<html>")
    (folder / "images" / "0004.png").unlink()
    found = looked_at(folder)
    assert (found.read, found.documents, len(found.rejects)) == (200, 198, 2)
    said = "\n".join(survey.lines(found))
    assert "200 records, 2 of them cannot be used" in said and "image file is missing: 'images/0004.png'" in said
    (_, data, _), _ = configs(found, tmp_path / "run")
    assert data.max_reject_fraction == 0.02


def refused(path, reason):
    with pytest.raises(DataError, match=reason) as caught:
        looked_at(path)
    assert "\n" not in str(caught.value)


def test_what_is_no_data_is_told_in_one_line(given, tmp_path):
    (tmp_path / "empty").mkdir()
    for name, content in (
        ("a.png", given[0][0]),
        ("a.zip", b"x"),
        ("a.json", b"[]"),
        ("a.txt", b"x"),
        ("a.arrow", b"x"),
    ):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.py").write_text("x")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"x")
    refused(tmp_path / "no", "no: there is no such file or folder")
    refused("https://x.org/a.tar", "is a URL: download")
    refused(tmp_path / "empty", "is an empty folder")
    refused(tmp_path / "a.png", "is one picture: give the folder")
    refused(tmp_path / "*.png", r"names picture files: give the folder, .*" + tmp_path.name)
    refused(tmp_path / "a.zip", "is an archive that is not read: unpack it")
    refused(tmp_path / "a.json", "convert an array with  jq -c")
    refused(tmp_path / "a.txt", "is no file of records: give .jsonl")
    refused(tmp_path / "a.arrow", "part of a saved data set: give its folder")
    refused(tmp_path / "texts", "1 text file and no picture: put texts into a .jsonl")
    refused(tmp_path / "other", "holds no data that can be read: no manifest.jsonl")
    refused(tmp_path / "*.tar", "matches no file")
    refused(tmp_path / "broken", "no record can be used: a.png: not a JPEG, PNG, WEBP image")


def test_two_forms_in_one_folder_are_named_both(given, tmp_path):
    folder = write_tars(tmp_path / "data", given[:4])
    (folder / "a.csv").write_text("text\nx\n")
    refused(folder, r"holds two forms, .*2 webdataset \(00000.tar\).*: say which")
    (folder / "a.csv").unlink()
    (folder / "b.tgz").write_bytes(b"x")
    refused(folder, r"holds \.tar, \.tgz files: give one kind")
    manifest = write_manifest(tmp_path / "manifest", given[:4])  # what a manifest names is no form of its own
    assert source_of(manifest).kind == "folder"


def test_texts_beside_pictures_and_a_table_are_named_both(given, tmp_path):
    folder = write_pairs(tmp_path / "pairs", given[:4])
    (folder / "captions.csv").write_text("File_Name,Caption\n0000.png,one\n0001.png,two\n")
    refused(folder, r"1 csv \(captions.csv\) and 4 pictures with a text file beside: say --data='.*/\*.csv', or move")
    assert looked_at(folder / "captions.csv").captioned == 2  # names of columns in any case


def test_pictures_that_a_table_does_not_name_are_counted(given, tmp_path, capsys):
    folder = write_csv(tmp_path / "data", given[:12])
    (folder / "images" / "more.png").write_bytes(given[0][0])
    proposal.look(proposal.source_of_flags(str(folder), "", None))
    assert "  1 picture file of the folder, not named in it: not read" in capsys.readouterr().out
    (folder / "images" / "0001.txt").write_text("words")
    proposal.look(proposal.source_of_flags(str(folder / "captions.csv"), "", None))
    assert "  1 text file beside pictures: not read, a table gives the words" in capsys.readouterr().out


def test_a_picture_named_often_is_one_and_hidden_folders_hold_none(given, tmp_path, capsys):
    folder = write_csv(tmp_path / "set [1]", given[:3])
    table = folder / "captions.csv"
    table.write_text(table.read_text() + "".join(f"{row}\n" for row in table.read_text().splitlines()[1:2] * 8))
    for place in ("images", ".thumbs", "__MACOSX"):
        (folder / place).mkdir(exist_ok=True)
        (folder / place / "more.png").write_bytes(given[0][0])
    proposal.look(proposal.source_of_flags(str(folder), "", None))
    assert "  1 picture file of the folder, not named in it: not read" in capsys.readouterr().out


COLUMNS = {
    "a name without its ending": ("file_name,caption", "{stem},{words}", "field 'file_name' names no picture file: '0000'"),
    "columns the wrong way round": ("caption,file_name", "{name},{words}", "'file_name' names no picture file: 'a red"),
    "an unknown column of names": (
        "number,caption", "{stem},{words}", "names no picture, and 12 picture files .* columns found: number, caption; call"
    ),
    "an unknown column of words": (
        "image,desc", "{name},{words}", "no words: .* columns found: image, desc; call the one with the words 'caption'"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", COLUMNS)
def test_pictures_or_words_that_nobody_would_read_are_refused(case, given, tmp_path):
    folder = write_csv(tmp_path / "data", given[:12])
    header, row, told = COLUMNS[case]
    rows = [row.format(stem=f"{i:04d}", name=f"images/{i:04d}.png", words="a red heart") for i in range(12)]
    (folder / "captions.csv").write_text("\n".join([header, *rows, ""]))
    with pytest.raises(DataError, match=told):
        proposal.look(proposal.source_of_flags(str(folder), "", None))


def test_a_stray_picture_beside_folders_of_classes_is_a_reject(given, tmp_path):
    folder = write_pictures(tmp_path / "data", given[:12])
    (folder / "stray.png").write_bytes(given[0][0])
    found = looked_at(folder)
    assert (found.source.kind, found.documents) == ("classes", 12)
    assert found.reasons() == [(1, "picture lies in no folder of a class")]


def test_missing_captions_are_rejects(given, tmp_path):
    folder = write_pairs(tmp_path / "pairs", given[:10])
    (folder / "0003.txt").unlink()
    found = looked_at(folder)
    assert (found.pictures, len(found.rejects)) == (9, 1)
    assert found.reasons() == [(1, "no text beside the picture: '0003.txt' is missing")]


def test_edited_files_are_not_overwritten(given, tmp_path):
    found = looked_at(write_pairs(tmp_path / "pairs", given[:10]))
    configs(found, tmp_path / "run")
    configs(found, tmp_path / "run")  # the same again is no edit
    (tmp_path / "run" / gin_files.RUN).write_text("# mine\n")
    with pytest.raises(WorkdirError, match=r"run\.gin is there and says something else: it may have been edited"):
        configs(found, tmp_path / "run")
    assert (tmp_path / "run" / gin_files.RUN).read_text() == "# mine\n"


def proposed(found, folder, minutes, machine=CPU):
    return proposal.Proposal(found=found, machine=machine, sizes=sizes.choose(found, machine, minutes), folder=folder)


def test_files_that_nobody_edited_are_replaced_until_something_was_trained_with_them(given, tmp_path):
    found, folder = looked_at(write_pairs(tmp_path / "pairs", given[:10])), tmp_path / "run"
    assert proposal.write(proposed(found, folder, 5.0), overwrite=False, shown=1)
    slower = dataclasses.replace(CPU, devices=jax.local_device_count(), rates=(1e8,) * len(WIDTHS))
    assert proposal.write(proposed(found, folder, 5.0, slower), overwrite=False, shown=1)
    assert proposal.propose(dataclasses.replace(found, seconds=9.0), folder, 5.0) == proposed(
        found, folder, 5.0, slower
    )
    assert not proposal.write(proposed(found, folder, 5.0, slower), overwrite=False, shown=1)
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "config.json").write_text("{}")
    with pytest.raises(WorkdirError, match=r"would change, and .*tokenizer holds what was trained before"):
        proposal.write(proposed(found, folder, 1.0), overwrite=True, shown=1)
    assert not proposal.write(proposed(found, folder, 5.0, slower), overwrite=False, shown=1)


def test_a_busy_machine_is_measured_again_until_something_was_trained(given, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_SECONDS", 0.001)
    monkeypatch.setattr(machine, "_LOAD_SECONDS", 0.001)
    found, folder = looked_at(write_pairs(tmp_path / "pairs", given[:10])), tmp_path / "run"
    quiet = dataclasses.replace(CPU, devices=jax.local_device_count(), rates=(1e7,) * len(WIDTHS))
    busy = dataclasses.replace(quiet, load=2.0)

    def taken(overwrite=False):
        return proposal.measured(found, folder, overwrite=overwrite)[0]

    folder.mkdir()
    earlier.keep(folder, found, quiet, {})
    assert taken() == quiet and taken(overwrite=True).rates > quiet.rates
    earlier.keep(folder, found, busy, {})
    assert taken().rates > busy.rates
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "config.json").write_text("{}")
    assert taken() == taken(overwrite=True) == busy


def test_a_workdir_in_the_folder_of_the_data_is_refused(given, tmp_path):
    folder = write_pairs(tmp_path / "pairs", given[:3])
    for place in (folder, folder / "runs" / "one"):
        with pytest.raises(WorkdirError, match="lies in the folder of the data"):
            proposal.require_new(place, str(folder))
    proposal.require_new(tmp_path / "pairs_run", str(folder))
    proposal.require_new(folder / "run", str(folder / "t.jsonl"))


def test_what_the_data_or_the_time_do_not_allow_is_said(given, tmp_path, capsys):
    source = proposal.source_of_flags(str(write_pairs(tmp_path / "pairs", given[:3])), "", None)
    found = proposal.look(source)
    assert "too few to learn from" in capsys.readouterr().out
    found = dataclasses.replace(found, sides=((48, 48),) * 3, scale=1e5)
    said = "\n".join(proposal.lines(proposed(found, tmp_path, 1.0)))
    assert "that is more than --minutes=1:" in said and "(they would allow 32x32; --minutes=1 does not)" in said
    said = "\n".join(proposal.lines(proposed(found, tmp_path, 6000.0)))
    assert "more than" not in said and "would allow" not in said


def test_a_busy_machine_takes_longer_to_start_and_compile(given, tmp_path):
    found = looked_at(write_csv(tmp_path / "data", given))
    busy = dataclasses.replace(CPU, load=2.0)
    free, slowed = (sizes.choose(found, here, 30).seconds["tokenize"] for here in (CPU, busy))
    assert slowed - free == pytest.approx(sizes.STARTING["tokenize"], abs=2.0)  # the codec may be of another size
    assert any(
        "busy with other work, times are 2 times" in line
        for line in proposal.lines(proposed(found, tmp_path, 5.0, busy))
    )
    assert machine.measure().load >= 1


def test_one_is_told_in_the_singular(given, tmp_path):
    folder = write_csv(tmp_path / "data", given[:1])
    (folder / "more.png").write_bytes(given[0][0])
    found = looked_at(folder)
    assert survey.lines(dataclasses.replace(found, words=(1,), vocabulary=1))[:2] == [
        "1 record, 0 of them cannot be used",
        "1 picture, 16x16 pixels",
    ]
    assert survey.lines(found)[2].startswith("1 text, 8 words; 8 different words, as")
    assert survey.lines(dataclasses.replace(found, captioned=0))[3] == "1 document with words or pictures alone"


def test_reasons_that_are_not_told_are_counted(given, tmp_path):
    folder = write_pairs(tmp_path / "pairs", given[:10])
    rows = ['{"text": 1}', "[]", "x", '{"a": 1}', '{"text": " "}', '{"texts": ["a"]}', '{"text": "a"}']
    (folder / "t.jsonl").write_text("\n".join(rows) + "\n")
    said = "\n".join(survey.lines(looked_at(folder / "t.jsonl")))
    assert said.count(" x ") == 4 and "and 2 more reasons, see records.html" in said


def command(*flags):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.new", *flags], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_the_command_writes_a_page_and_says_what_to_type(given, tmp_path):
    folder = tmp_path / "data"
    write_csv(folder, given[:40])
    (tmp_path / "run").mkdir()
    earlier.keep(tmp_path / "run", looked_at(folder), CPU, {})  # a busy machine would be measured again the second time
    code, said = command(f"--data={folder}", f"--workdir={tmp_path / 'run'}", "--minutes=2")
    assert code == 0, said
    assert "40 pictures, all 16x16 pixels" in said and said.count("python -m experiments.") == 5
    page = (tmp_path / "run" / proposal.PAGE).read_text()
    assert page.count("<img") == 24 and "a red bar on the left, somewhat noisy" in page and "http" not in page
    texts = [(tmp_path / "run" / name).read_text() for name in CONFIGS]
    again = command(f"--data={folder}", f"--workdir={tmp_path / 'run'}", "--minutes=2")
    assert again[0] == 0 and "\nkept: the gin files in" in again[1] and again[1].startswith(said.rstrip())
    assert texts == [(tmp_path / "run" / name).read_text() for name in CONFIGS]
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "vocab.json").write_text("{}")
    code, said = command(f"--data={folder}", f"--workdir={tmp_path / 'bundle'}")
    assert code == 2 and "bundle is a tokenizer" in said and said.count("\n") == 1


@pytest.mark.parametrize("flags, told", [
    (["--data=x", "--workdir=y", "--minutes=0"], "--minutes must be a positive number, got 0"),
    (["--data=x", "--workdir=y", "--minutes=nan"], "--minutes must be a positive number"),
    (["--workdir=y"], "--data is required"),
    (["--data=/no/such", "--workdir=y"], "/no/such: there is no such file or folder"),
])  # fmt: skip
def test_wrong_flags_are_told_in_one_line(flags, told, tmp_path):
    code, said = command(*flags)
    assert code == 2 and told in said and said.count("\n") == 1


def test_large_pictures_are_read_by_their_headers_after_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(survey, "DECODED", 2)
    with open(tmp_path / "t.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "text"])
        rows.writerows([f"{i}.jpg", "words"] for i in range(4))
    for i in range(4):
        file = io.BytesIO()
        Image.new("RGB", (300 + i, 200)).save(file, "JPEG")
        (tmp_path / f"{i}.jpg").write_bytes(file.getvalue()[: 700 if i == 3 else None])
    found = looked_at(tmp_path / "t.csv")
    assert found.sides == ((300, 200), (301, 200), (302, 200), (303, 200))  # that the last is torn, tokenising says
    assert "300 to 303 wide, 200 to 200 high, short side 200 in the median" in "\n".join(survey.lines(found))


def test_names_and_words_of_the_data_are_neither_gin_nor_commands_to_a_terminal(given, tmp_path):
    path = write_pairs(tmp_path / "data\nimport this", given[:40])
    (path / "x\nimport this\n\x1b[2J.png").write_bytes(given[0][0])
    (path / "y.png").write_bytes(given[0][0])
    (path / "y.txt").write_text("a \x1b[2Jbar")
    (path / "readme.txt").write_text("words")
    found = dataclasses.replace(looked_at(path), caption="a \x1b[2Jbar")
    files = gin_files.make(found, sizes.choose(found, CPU, 5.0), tmp_path / "run")
    assert not [line for text in files.values() for line in text.splitlines() if line.startswith("import")]
    assert any("cannot be used: no text beside the picture" in text for text in files.values())
    (tokenizer, data, _), _ = configs(found, tmp_path / "run")
    assert tokenizer.sources == data.sources == (found.source,)
    said = [*survey.lines(found), *(command for _, command in gin_files.commands(found, Path("run")))]
    assert all(line.isprintable() for line in said)
