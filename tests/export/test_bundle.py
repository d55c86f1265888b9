"""Bundles: written whole or not at all, and checked in full when opened."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat

import numpy as np
import pytest

from bertrt.errors import (
    BertrtError,
    InvalidTypeError,
    MissingFileError,
    ModelFormatError,
    OutputExistsError,
    WriteError,
)
from bertrt.models.bundle import Bundle, file_digest, writing
from bertrt.models.golden import GoldenCase, read_golden, write_golden
from bertrt.models.manifest import FORMAT_VERSION, GOLDEN, MANIFEST, PLAN

MANIFEST_FIELDS = {
    "task": "classification",
    "labels": ["no", "yes"],
    "architecture": {"vocab_size": 60, "max_length": 40, "layers": 1},
    "outputs": ["logits"],
    "tokenizer": {"kind": "gluonnlp", "file": "vocab.json", "lower": True, "max_length": 20},
    "pooling": None,
    "settings": {"pair": None},
    "origin": {"framework": "test"},
}


def golden_case(rows=2, length=3):
    return GoldenCase(
        {
            "token_ids": np.arange(rows * length).reshape(rows, length),
            "token_types": np.zeros((rows, length), np.int64),
            "valid_length": np.arange(rows),
        },
        {"logits": np.full((rows, 2), 0.5, np.float32)},
    )


@pytest.fixture
def bundle(tmp_path):
    """The path of a bundle whose plan is no real plan; opening does not look into it."""
    path = tmp_path / "bundle"
    with writing(path) as draft:
        (draft.directory / PLAN).write_text("{}")
        (draft.directory / "vocab.json").write_text("{}")
        (draft.directory / "model-0000.params").write_bytes(bytes(range(256)) * 9000)
        write_golden(draft.directory / GOLDEN, [golden_case(), golden_case(4, 7)])
        draft.seal(MANIFEST_FIELDS)
    return path


def edit(path, **fields):
    manifest = json.loads((path / MANIFEST).read_text())
    manifest.update(fields)
    (path / MANIFEST).write_text(json.dumps(manifest))


def test_opens_with_what_was_written(bundle):
    opened = Bundle.open(bundle)
    assert opened.directory == bundle
    assert {name: opened.manifest[name] for name in MANIFEST_FIELDS} == MANIFEST_FIELDS
    assert opened.manifest["format_version"] == FORMAT_VERSION
    assert set(opened.manifest["files"]) == {PLAN, "vocab.json", "model-0000.params", GOLDEN}
    assert opened.file("vocab.json") == bundle / "vocab.json"
    assert opened.file("model.onnx") is None


def test_leaves_nothing_beside_the_bundle_and_is_readable_for_all(bundle):
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(bundle.stat().st_mode) == 0o777 & ~mask


def test_digest_is_sha256_across_blocks(tmp_path):
    content = np.random.default_rng(0).bytes((1 << 20) * 2 + 17)
    (tmp_path / "file").write_bytes(content)
    assert file_digest(tmp_path / "file") == hashlib.sha256(content).hexdigest()
    (tmp_path / "file").write_bytes(b"")
    assert file_digest(tmp_path / "file") == hashlib.sha256(b"").hexdigest()


@pytest.mark.parametrize("name", [PLAN, "vocab.json", "model-0000.params", GOLDEN])
def test_a_flipped_bit_is_found_in_every_file(bundle, name):
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 0x10
    (bundle / name).write_bytes(content)
    with pytest.raises(ModelFormatError, match=f"{name} is damaged: its sha256"):
        Bundle.open(bundle)


def test_weights_are_checked_beside_the_block(bundle):
    """What a person may see of a damaged file is that it is damaged."""
    with Bundle.opening(bundle) as opened:
        assert opened.directory == bundle
    with pytest.raises(KeyError), Bundle.opening(bundle):
        raise KeyError("the block's own")
    path = bundle / "model-0000.params"
    path.write_bytes(path.read_bytes()[::-1])
    done = []
    with pytest.raises(ModelFormatError, match="is damaged"), Bundle.opening(bundle):
        done.append("all")
    assert done
    with pytest.raises(ModelFormatError, match="is damaged"), Bundle.opening(bundle):
        raise KeyError("the block's own")
    # The others are whole before the block begins.
    (bundle / "vocab.json").write_text("[]")
    with pytest.raises(ModelFormatError, match=r"vocab\.json is damaged"), Bundle.opening(bundle):
        raise AssertionError("the block has begun")


@pytest.mark.parametrize("name", [PLAN, "vocab.json", "model-0000.params", GOLDEN])
def test_truncated_and_missing_files(bundle, name):
    content = (bundle / name).read_bytes()
    (bundle / name).write_bytes(content[:-1])
    with pytest.raises(ModelFormatError, match=rf"{name} has {len(content) - 1} bytes.*truncated"):
        Bundle.open(bundle)
    (bundle / name).unlink()
    with pytest.raises(MissingFileError, match=f"{name} is missing"):
        Bundle.open(bundle)


def test_a_flipped_bit_is_found_anywhere_in_the_manifest(bundle):
    content = (bundle / MANIFEST).read_bytes()
    for position in range(len(content) - 1):  # the last byte is the end of the line
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 7
        (bundle / MANIFEST).write_bytes(damaged)
        with pytest.raises((ModelFormatError, MissingFileError)):
            Bundle.open(bundle)


def test_a_file_that_is_not_listed(bundle):
    (bundle / "stranger").write_text("")
    with pytest.raises(ModelFormatError, match="does not list: stranger"):
        Bundle.open(bundle)


def test_hidden_files_belong_to_the_system(bundle):
    (bundle / ".DS_Store").write_text("")
    (bundle / ".nfs0001").mkdir()
    Bundle.open(bundle)


@pytest.mark.parametrize(("tty", "shown"), [(True, True), (False, False)])
def test_a_person_sees_how_far_a_long_check_is(bundle, monkeypatch, tty, shown):
    terminal = io.StringIO()
    terminal.isatty = lambda: tty
    monkeypatch.setattr("bertrt.host.progress._DELAY", 0.0)
    monkeypatch.setattr("sys.stderr", terminal)
    Bundle.open(bundle)
    assert ("check" in terminal.getvalue()) == shown


def test_not_a_bundle(tmp_path):
    with pytest.raises(MissingFileError, match="no such directory"):
        Bundle.open(tmp_path / "nowhere")
    with pytest.raises(MissingFileError, match="is no bundle"):
        Bundle.open(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelFormatError, match="is a file"):
        Bundle.open(tmp_path / "file")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"[1, 2]", b"null"])
def test_a_manifest_that_is_no_manifest(bundle, content):
    (bundle / MANIFEST).write_bytes(content)
    with pytest.raises(ModelFormatError, match=MANIFEST):
        Bundle.open(bundle)


def test_a_newer_format(bundle):
    edit(bundle, format_version=FORMAT_VERSION + 1)
    with pytest.raises(ModelFormatError, match="install a newer bertrt"):
        Bundle.open(bundle)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("format_version", "1"),
        ("format_version", True),
        ("format_version", 0),
        ("format_version", None),
        ("task", "tagging-of-trees"),
        ("task", ["classification"]),
        ("task", "regression"),  # which has no labels
        ("task", "embedding"),
        ("labels", None),
        ("labels", []),
        ("labels", ["a", 1]),
        ("labels", "ab"),
        ("architecture", None),
        ("architecture", {"vocab_size": 60}),
        ("architecture", {"vocab_size": 60, "max_length": "40"}),
        ("outputs", []),
        ("outputs", ["logits", "logits"]),
        ("outputs", ["elsewhere"]),
        ("outputs", [["logits"]]),
        ("tokenizer", "vocab.json"),
        ("tokenizer", {"kind": "gluonnlp", "file": "vocab.json", "lower": True}),
        ("tokenizer", {**MANIFEST_FIELDS["tokenizer"], "kind": "bpe"}),
        ("tokenizer", {**MANIFEST_FIELDS["tokenizer"], "file": "other.json"}),
        ("tokenizer", {**MANIFEST_FIELDS["tokenizer"], "lower": "yes"}),
        ("tokenizer", {**MANIFEST_FIELDS["tokenizer"], "max_length": 2}),
        ("tokenizer", {**MANIFEST_FIELDS["tokenizer"], "max_length": 41}),
        ("pooling", {"mode": "mean", "normalize": True}),  # which is for embeddings
        ("origin", []),
        ("files", []),
        ("files", {}),
        ("files", {"plan.json": 3}),
        ("files", {"plan.json": {"sha256": "00", "size": 1}}),
        ("files", {"plan.json": {"sha256": "0" * 64, "size": -1}}),
        ("files", {"plan.json": {"sha256": "0" * 64, "size": 1.5}}),
    ],
)
def test_wrong_fields(bundle, field, value):
    edit(bundle, **{field: value})
    with pytest.raises(ModelFormatError, match=MANIFEST):
        Bundle.open(bundle)


@pytest.mark.parametrize("field", [*MANIFEST_FIELDS, "format_version", "files", "manifest_sha256"])
def test_missing_fields(bundle, field):
    manifest = json.loads((bundle / MANIFEST).read_text())
    del manifest[field]
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ModelFormatError, match=field):
        Bundle.open(bundle)


@pytest.mark.parametrize(
    "name", ["../secret", "/etc/hostname", "a/b", "..", ".", "", "c:x", "a\\b", "x\0", MANIFEST]
)
def test_file_names_that_leave_the_directory(bundle, name):
    (bundle.parent / "secret").write_text("x")
    files = json.loads((bundle / MANIFEST).read_text())["files"]
    files[name] = {"sha256": hashlib.sha256(b"x").hexdigest(), "size": 1}
    edit(bundle, files=files)
    with pytest.raises(ModelFormatError, match="cannot be a file of the bundle"):
        Bundle.open(bundle)


def test_a_link_that_leaves_the_directory(bundle):
    outside = bundle.parent / "outside"
    (bundle / "vocab.json").rename(outside)
    (bundle / "vocab.json").symlink_to(outside)
    with pytest.raises(ModelFormatError, match="leads out of the bundle"):
        Bundle.open(bundle)


def test_a_bundle_behind_a_link_opens(bundle):
    link = bundle.parent / "link"
    link.symlink_to(bundle)
    assert Bundle.open(link).file(PLAN) == link / PLAN


def test_a_plan_may_only_name_files_of_the_bundle(tmp_path):
    weight = {"file": "../elsewhere", "offset": 0, "dtype": "float32", "shape": [1]}
    with writing(tmp_path / "bundle") as draft:
        (draft.directory / PLAN).write_text(json.dumps({"weights": {"w": weight}}))
        draft.seal({**MANIFEST_FIELDS, "tokenizer": None})
    with pytest.raises(ModelFormatError, match=r"'w' lies in '\.\./elsewhere'"):
        Bundle.open(tmp_path / "bundle").plan()


def test_a_broken_plan_is_named(bundle):
    with pytest.raises(ModelFormatError, match=f"{re.escape(str(bundle / PLAN))}: "):
        Bundle.open(bundle).plan()


def test_existing_places_are_left_alone(tmp_path):
    for name in ("file", "directory"):
        path = tmp_path / name
        path.write_text("mine") if name == "file" else path.mkdir()
        with pytest.raises(OutputExistsError), writing(path):
            raise AssertionError("the block must not run")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputExistsError), writing(tmp_path / "dangling"):
        raise AssertionError("the block must not run")
    assert (tmp_path / "file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dangling", "directory", "file"]


def test_an_output_that_cannot_be_a_path():
    with pytest.raises(InvalidTypeError, match="output directory is a NoneType"), writing(None):
        raise AssertionError("the block must not run")


def test_the_parent_has_to_exist(tmp_path):
    with pytest.raises(MissingFileError, match="nowhere"), writing(tmp_path / "nowhere" / "bundle"):
        raise AssertionError("the block must not run")


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_nothing(tmp_path, error):
    with pytest.raises(error), writing(tmp_path / "bundle") as draft:
        (draft.directory / PLAN).write_text("{}")
        assert not (tmp_path / "bundle").exists()
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_failing_rename_leaves_nothing_and_no_bundle(tmp_path, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", full)
    with (
        pytest.raises(WriteError, match="bundle cannot be written: No space"),
        writing(tmp_path / "bundle") as draft,
    ):
        (draft.directory / PLAN).write_text("{}")
        draft.seal({**MANIFEST_FIELDS, "tokenizer": None})
    assert list(tmp_path.iterdir()) == []


def test_somebody_else_was_first(tmp_path):
    target = tmp_path / "bundle"
    with pytest.raises(OutputExistsError, match="untouched"), writing(target) as draft:
        (draft.directory / PLAN).write_text("{}")
        draft.seal({**MANIFEST_FIELDS, "tokenizer": None})
        target.mkdir()
        (target / "theirs").write_text("")
    assert [path.name for path in target.iterdir()] == ["theirs"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_sealed_draft_opens_before_it_has_its_name(tmp_path):
    with writing(tmp_path / "bundle") as draft:
        (draft.directory / PLAN).write_text("{}")
        draft.seal({**MANIFEST_FIELDS, "tokenizer": None})
        assert Bundle.open(draft.directory).manifest["task"] == "classification"


def test_a_wrong_manifest_is_not_written(tmp_path):
    with pytest.raises(ModelFormatError, match="labels"), writing(tmp_path / "bundle") as draft:
        (draft.directory / PLAN).write_text("{}")
        draft.seal({**MANIFEST_FIELDS, "labels": None})
    assert list(tmp_path.iterdir()) == []


def test_golden_round_trip(tmp_path):
    cases = [golden_case(), golden_case(4, 7)]
    write_golden(tmp_path / "golden.npz", cases)
    for case, read in zip(cases, read_golden(tmp_path / "golden.npz"), strict=True):
        for part in ("inputs", "outputs"):
            written, found = getattr(case, part), getattr(read, part)
            assert written.keys() == found.keys()
            for name in written:
                np.testing.assert_array_equal(written[name], found[name])


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"0/inputs/token_ids": np.zeros((2, 3), np.int64)},
        {"elsewhere": np.zeros(3)},
        {"1/outputs/logits": np.zeros((2, 2), np.float32)},
        {"0/outputs/logits": np.array([{}], dtype=object)},
    ],
)
def test_golden_files_that_are_none(tmp_path, arrays):
    np.savez(tmp_path / "golden.npz", **arrays)
    with pytest.raises(ModelFormatError, match=r"golden\.npz"):
        read_golden(tmp_path / "golden.npz")


@pytest.mark.parametrize("cut", [0, 3, 50, 500])
def test_a_truncated_golden_file(tmp_path, cut):
    write_golden(tmp_path / "golden.npz", [golden_case()])
    content = (tmp_path / "golden.npz").read_bytes()
    (tmp_path / "golden.npz").write_bytes(content[:cut])
    with pytest.raises(BertrtError, match=r"golden\.npz"):
        read_golden(tmp_path / "golden.npz")


def test_golden_shapes_are_checked(tmp_path):
    case = golden_case()
    for part, name, array in (
        ("inputs", "valid_length", np.zeros(3, np.int64)),
        ("inputs", "token_types", np.zeros((2, 3), np.float32)),
        ("inputs", "masked_positions", np.zeros((3, 1), np.int64)),
        ("outputs", "logits", np.zeros((3, 2), np.float32)),
        ("outputs", "logits", np.zeros((2, 2), np.float64)),
    ):
        wrong = GoldenCase(dict(case.inputs), dict(case.outputs))
        getattr(wrong, part)[name] = array
        write_golden(tmp_path / "golden.npz", [wrong])
        with pytest.raises(ModelFormatError, match=name):
            read_golden(tmp_path / "golden.npz")
