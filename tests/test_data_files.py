"""Other people's files: right numbers, or a line that names file, place and nearest name."""

import io
import warnings
import zipfile

import numpy as np
import pytest

from jax_lrreg.cli.data import load

HEADER = ("a", "b", "c", "price")
TABLE = np.random.default_rng(0).normal(size=(60, 4)).round(3)
TABLE[:, 3] += 2


def lines(separator=",", write=str, end="\n", names=HEADER):
    """The table as text."""
    rows = [names, *([write(value) for value in row] for row in TABLE)]
    return "".join(separator.join(row) + end for row in rows)


def german(value):
    """1.234,50"""
    return f"{value:,.3f}".translate(str.maketrans(",.", ".,"))


PLAIN = lines()
HEAD, *BODY = PLAIN.splitlines()
COMMA = lines(";", lambda value: str(value).replace(".", ","))


def numbered(first, count):
    """The table with a column at the left."""
    return "\n".join([f"{first},{HEAD}", *(f"{count(i)},{row}" for i, row in enumerate(BODY))])


READ = {
    "commas": PLAIN,
    "semicolons": lines(";"),
    "tabs": lines("\t"),
    "bars": lines("|"),
    "spaces": lines("   "),
    "decimal commas": COMMA,
    "decimal commas, tabs": lines("\t", lambda value: str(value).replace(".", ",")),
    "decimal commas, quoted": lines(",", lambda value: f'"{value}"'.replace(".", ",")),
    "sep=": "sep=;\n" + lines(";"),
    "sep=, CRLF": '"sep=;"\r\n' + lines(";", end="\r\n"),
    "byte order mark": "\ufeff" + PLAIN,
    "utf-16": PLAIN.encode("utf-16"),
    "utf-16-le without a mark": PLAIN.encode("utf-16-le"),
    "utf-16-be without a mark": PLAIN.encode("utf-16-be"),
    "utf-32": PLAIN.encode("utf-32"),
    "latin-1": PLAIN.replace("b", "größe").encode("latin-1"),
    "spaces around": PLAIN.replace(",", " , "),
    "quotes": lines(",", lambda value: f'"{value}"', names=[f'"{name}"' for name in HEADER]),
    "CRLF": lines(end="\r\n"),
    "CR": lines(end="\r"),
    "no end of the last line": PLAIN.rstrip(),
    "empty lines": "\n\n" + PLAIN.replace("\n", "\n\n") + "\n",
    "lines of empty cells": PLAIN + ",,,\n,,,\n",
    "comments": '# by "me\n#\n' + HEAD + "\n# half way, \"really\n" + "\n".join(BODY),
    "savetxt": "# " + PLAIN,
    "header behind a mark": "#" + PLAIN,
    "trailing separators": PLAIN.replace("\n", ",\n"),
    "trailing separators below the header": HEAD + "\n" + ",\n".join(BODY) + ",\n",
    "trailing separator in the header": HEAD + ",\n" + "\n".join(BODY),
    "a name of two lines": '"a\nlong","b",c,price\n' + "\n".join(BODY),
    "pandas' index": numbered("", lambda i: i),
    "pandas' index, twice": numbered("Unnamed: 0", lambda i: i),
    "identifiers": numbered("Id", lambda i: i + 7),
    "R's names of rows": numbered('""', lambda i: f'"car {i}"'),
    "exponents": lines(",", lambda value: f"{value:+.5e}"),
    "decimal commas, exponents": lines(";", lambda value: f"{value:.5e}".replace(".", ",")),
}  # fmt: skip


def loaded(tmp_path, content, name="table.csv", target="price", ignored=(), task=None):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load(str(path), target, list(ignored), task, 0)


def same(found, x, y):
    """Whether the data set is `x` and `y`, standardised by its training rows."""
    order = np.random.default_rng(0).permutation(len(y))
    held = len(y) // 5
    train, test = order[held:], order[:held]
    for pair, rows in ((found.train, train), (found.test, test)):
        for ours, values in zip(pair, (x, y), strict=True):
            expected = (values[rows] - values[train].mean(0)) / values[train].std(0)
            np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
            assert ours.dtype == np.float32


@pytest.mark.parametrize("name", READ)
def test_the_same_table_is_read_however_it_is_written(name, tmp_path):
    same(loaded(tmp_path, READ[name]), TABLE[:, :3], TABLE[:, 3])


@pytest.mark.parametrize(
    "write",
    [
        german,
        "{:,.3f}".format,
        lambda value: f"{value:,.3f}".replace(",", "'"),
        lambda value: f"{value:,.3f}".replace(",", "\u00a0"),
    ],
)
def test_thousands_are_separated_by_what_a_country_likes(write, tmp_path):
    text = lines(";", lambda value: write(value * 1e6))
    same(loaded(tmp_path, text), TABLE[:, :3], TABLE[:, 3])


@pytest.mark.parametrize("suffix", [".csv", ".CSV", ".tsv", ".txt", ".dat"])
def test_the_ending_of_a_table_does_not_matter(suffix, tmp_path):
    same(loaded(tmp_path, COMMA, f"table{suffix}"), TABLE[:, :3], TABLE[:, 3])


def test_columns_are_left_out_by_name_and_what_was_decided_is_told(tmp_path):
    found = loaded(
        tmp_path, numbered("city", lambda i: "Paris") + "\n,,,,\n", ignored=["city", "a"]
    )
    same(found, TABLE[:, 1:3], TABLE[:, 3])
    told = ", ".join(loaded(tmp_path, numbered("", str) + "\n# end\n").notes)
    left = "comments left out: 1, column 1 left out: it numbers the rows"
    assert told == f"utf-8 text, separated by commas, {left}"
    assert "decimal commas" in loaded(tmp_path, COMMA).notes


REFUSED = {
    "empty": ("", "table.csv is empty"),
    "spaces alone": ("\n  \n", "table.csv is empty"),
    "comments alone": ("# a\n# b\n", "no lines but empty ones and comments"),
    "header alone": (HEAD, "rows below its header"),
    "one column": ("price\n" + "1\n" * 20, "two columns or more"),
    "no header": ("\n".join(BODY), "table.csv has no header: its first line is '0.126"),
    "few rows": (HEAD + "\n1,2,3,4\n", "at least 10 examples, .*table.csv has 1$"),
    "target mistyped": (PLAIN.replace("price", "Price", 1),
        "columns a, b, c, Price of .*got 'price'; did you mean 'Price'"),
    "target doubled": (PLAIN.replace("c,", "price,", 1),
        "line 1 names 'price' 2 times, for columns 3, 4"),
    "input doubled": ("# x\n\n" + PLAIN.replace("b,", "a,", 1),
        "line 3 names 'a' 2 times, for columns 1, 2"),
    "word": (PLAIN + "\n1,2,x3,4\n", "line 63, column 'c' must be a number, got 'x3'; --ignore c"),
    "words": (numbered("my city", lambda i: "Rome"),
        "line 2, column 'my city' .* 'Rome', and so 59 cells below; --ignore 'my city'"),
    "several columns": (
        numbered("city", lambda i: "Rome").replace(",", ",f").replace("fprice", "price", 1),
        "--ignore city --ignore fa"),
    "dates": (numbered("day", lambda i: f"2024-01-{i % 28 + 1:02}"),
        "column 'day' must be a number, got '2024-01-01'"),
    "truth": (numbered("ok", lambda i: ["true", "False"][i % 2]),
        "column 'ok' must be a number, got 'true'"),
    "infinite": (PLAIN + "1,inf,3,4\n", "line 62, column 'b' must be a number, got 'inf'"),
    "too large": (PLAIN + "1,1e999,3,4\n", "line 62, column 'b' must be a number, got '1e999'"),
    "Python's digits": (PLAIN + "1,1_000,3,4\n", "got '1_000'"),
    "percent": (PLAIN + "1,5%,3,4\n", "got '5%'"),
    "dollars": (PLAIN + "1,$5,3,4\n", "got '[$]5'"),
    "telephone": (PLAIN + "1,030 123 456,3,4\n", "got '030 123 456'"),
    "word in the target": (PLAIN + "1,2,3,cheap\n",
        "line 62, column 'price' .*got 'cheap'; --task classes"),
    "comma ambiguous": ("a;price\n" + "".join(f"1,{i};{i}\n" for i in range(100, 130)),
        "line 2: '1,100' may be 1.100 or 1100"),
    "commas of two kinds": (COMMA + '"1,234.5";2;3;4\n', "line .* may be .* what its commas mean"),
    "comma and points": (lines(";") + "3,14;2;3;4\n", "line 62: '3,14' may be 3.14 or 314"),
    "too few cells": (PLAIN + "\n1,2,3\n",
        "line 63 must have 4 values, as many as the header in line 1 has names, got 3"),
    "too many cells": (PLAIN + "1,2,3,4,5\n", "line 62 must have 4 values.*got 5"),
    "open quote": (PLAIN + '1,2,"3,4\n' + PLAIN, "line 62 cannot be read .*is a quote left open"),
    "huge number": (PLAIN + "1,2," + "9" * 200_000 + ",4\n", "line 62 cannot be read"),
    "huge word": (PLAIN + "1,2," + "x" * 100_000 + ",4\n",
        r"line 62, column 'c' .* got 'x{57}\.\.\.'"),
    "no name": (numbered("", lambda i: i * i), "column 1 has no name in the header"),
    "Excel": (b"PK\x03\x04" + b"x" * 99, "must be text, but is a zip archive, as of Excel"),
    "gzip": (b"\x1f\x8b\x08" + b"x" * 99, "compressed by gzip"),
    "zero bytes": (PLAIN + "1,2,\0,4\n", "bytes that are zero"),
    "half a character": (b"\xff\xfea", "is not whole"),
    "constant target": ("a,price\n" + "".join(f"{i},0.1\n" for i in range(20)),
        "the target is the same in all rows"),
    "dates as target": ("a,price\n" + "".join(f"{i},2024-01-{i:02}\n" for i in range(1, 29)),
        "2 to 14 different values to be classes, it has 28, such as '2024-01-01'"),
    "web page": ("<!DOCTYPE html>\n<html><body>Not found</body></html>\n",
        "--target must be one of the columns <!DOCTYPE, html>"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_in_a_line_that_names_the_place(name, tmp_path):
    content, words = REFUSED[name]
    with pytest.raises(ValueError, match=words) as error:
        loaded(tmp_path, content)
    assert len(str(error.value)) < 500 + len(str(tmp_path))


@pytest.mark.parametrize(
    "cell", ["", "NA", "N/A", "nan", "NaN", "?", "-", "--", ".", "null", "NULL", "#N/A", "<NA>"]
)
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_missing_cells_are_refused_with_their_count_and_place(cell, separator, tmp_path):
    more = f"1,{cell},3,4\n1,2,3,{cell}\n".replace(",", separator)
    with pytest.raises(
        ValueError,
        match=r"lacks 2 cells, the first in line 62, column 'b' \(1 in 'price', 1 in 'b'",
    ):
        loaded(tmp_path, lines(separator) + more)


def test_a_table_of_thousands_of_columns_says_the_nearest_name_only(tmp_path):
    text = "\n".join([",".join(f"column {i}" for i in range(5000)), *[",".join("1" * 5000)] * 12])
    with pytest.raises(ValueError, match="got 'colum 4711'; did you mean 'column 4711'") as error:
        loaded(tmp_path, text, target="colum 4711")
    assert len(str(error.value)) < 500 + len(str(tmp_path))


def test_words_are_classes_and_a_few_whole_numbers_unless_it_is_said(tmp_path):
    def of(labels, **options):
        text = "a,b,price\n" + "".join(
            f"{i},{i % 7},{labels[i % len(labels)]}\n" for i in range(60)
        )
        return loaded(tmp_path, text, **options)

    words = of(["good", "bad"])
    assert words.labels == ["bad", "good"]
    assert words.task == "2 classes (guessed; --task regression for the other)"
    assert words.train[1].dtype == np.int32
    assert of([3, 10, 2]).labels == ["2", "3", "10"]
    assert of([3, 10, 2], task="classes").task == "3 classes"
    assert of([3, 10, 2], task="regression").task == "regression"
    assert of([3, "ten", 2], task="classes").labels == ["2", "3", "ten"]
    assert of([0.5, 1.5, 2.5]).labels == []
    assert of([0.5, 1.5], task="classes").labels == ["0.5", "1.5"]
    with pytest.raises(ValueError, match="`--task` must be classes for a target of words"):
        of(["good", "bad"], task="regression")
    with pytest.raises(ValueError, match="2 to 30 different values to be classes, it has 60"):
        of(list(range(60)), task="classes")


@pytest.mark.parametrize("factor", [1.0, 1e-21, 1e-200, 1e200, 1e290])
@pytest.mark.parametrize("shift", [0.0, 1e8, -1e10])
def test_a_target_is_standardised_before_it_is_rounded(factor, shift, tmp_path):
    def of(scaled):
        np.savez(tmp_path / "a.npz", x=TABLE[:, :3], y=scaled)
        return load(str(tmp_path / "a.npz"), None, [], None, 0)

    expected, found = of(TABLE[:, 3]), of((TABLE[:, 3] + shift) * factor)
    for ours, theirs in zip(
        (*found.train, *found.test), (*expected.train, *expected.test), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    spread = expected.target[1] * factor
    np.testing.assert_allclose(found.target[1], spread, rtol=1e-5)


def test_inputs_that_do_not_vary_become_zeros(tmp_path):
    x = np.hstack([TABLE[:, :3], np.full((60, 2), 0.1), np.full((60, 1), 1e300)])
    np.savez(tmp_path / "a.npz", x=x, y=TABLE[:, 3])
    found = load(str(tmp_path / "a.npz"), None, [], None, 0)
    assert not found.train[0][:, 3:].any()
    assert not found.test[0][:, 3:].any()
    train, test = ((x[:, :3], y) for x, y in (found.train, found.test))
    same(found._replace(train=train, test=test), TABLE[:, :3], TABLE[:, 3])


def archived(tmp_path, save=np.savez, target=None, **arrays):
    path = tmp_path / "a.npz"
    save(path, **arrays)
    return load(str(path), target, [], None, 0)


X, Y = TABLE[:, :3], TABLE[:, 3]


@pytest.mark.parametrize(
    "dtype", ["f2", "f4", "f8", "f16", ">f8", "i1", "i2", "i4", "i8", "u1", "u8", ">i4", "?"]
)
def test_arrays_of_every_kind_of_real_number_are_read(dtype, tmp_path):
    x = (
        (X * 50).astype("i8").clip(0, 100).astype(dtype)
        if dtype[-2:][0] in "iu?"
        else X.astype(dtype)
    )
    found = archived(tmp_path, x=np.asfortranarray(x), y=Y, save=np.savez_compressed)
    same(found, x.astype(np.float64), Y)


def test_shapes_of_arrays(tmp_path):
    same(archived(tmp_path, x=X, y=Y[:, None]), X, Y)
    same(archived(tmp_path, x=X[:, 0], y=Y), X[:, :1], Y)
    images = np.random.default_rng(1).normal(size=(60, 4, 5))
    found = archived(tmp_path, images=images, price=Y, target="price")
    same(found, images.reshape(60, 20), Y)
    assert "`images` flattened from (60, 4, 5)" in found.notes


ARRAYS = {
    "y longer": ({"x": X, "y": np.r_[Y, Y]}, "`x` must have as many examples as `y` .*60, 3.*120"),
    "y shorter": ({"x": X, "y": Y[:-1]}, "`x` must have as many examples as `y`"),
    "y of two columns": ({"x": X, "y": X[:, :2]},
        r"`y` must have the shape \(n,\) or \(n, 1\), got \(60, 2\)$"),
    "y of one row": ({"x": X, "y": Y[None]}, r"got \(1, 60\)$"),
    "y a number": ({"x": X, "y": 3.0}, r"got \(\)"),
    "one-hot": ({"x": X, "y": np.eye(3)[np.arange(60) % 3]}, r"give y.argmax\(1\)"),
    "x a number": ({"x": 1.0, "y": Y}, "`x` must have as many examples"),
    "complex x": ({"x": X + 1j, "y": Y}, "`x` must hold real numbers, but holds complex numbers"),
    "complex y": ({"x": X, "y": Y + 0j}, "`y` must hold real numbers, but holds complex"),
    "text": ({"x": X, "y": np.array(["a", "b"] * 30)},
        "`y` must hold real numbers, but holds text"),
    "bytes": ({"x": X, "y": np.array([b"a", b"b"] * 30)}, "but holds bytes"),
    "dates": ({"x": X, "y": np.arange(60).astype("M8[D]")}, "`y` .* holds dates"),
    "durations": ({"x": np.arange(60).astype("m8[s]"), "y": Y}, "`x` .* holds durations"),
    "records": ({"x": np.zeros(60, [("a", "f4")]), "y": Y}, "`x` .* holds records"),
    "objects": ({"x": np.array([{}] * 60), "y": Y}, "`x` .* holds Python objects"),
    "missing": ({"x": np.where(X > 1, np.nan, X), "y": Y},
        r"`x` has \d+ numbers that are missing or infinite, the first is x\[\d+, \d\]"),
    "infinite": ({"x": X, "y": np.where(Y > 3, np.inf, Y)}, r"`y` has .*the first is y\[\d+\]"),
    "no target": ({"x": X, "Y": Y},
        "--target must be one of the arrays x, Y of .*got 'y'; did you mean 'Y'"),
    "no inputs": ({"y": Y}, "must hold the inputs as `x`.*it has none"),
    "which inputs": ({"u": X, "v": X, "y": Y},
        "must hold the inputs as `x`, or one array beside `y`: it has u, v"),
    "no examples": ({"x": X[:0], "y": Y[:0]}, "at least 10 examples"),
    "no columns": ({"x": X[:, :0], "y": Y}, "inputs"),
}  # fmt: skip


@pytest.mark.parametrize("name", ARRAYS)
def test_other_arrays_are_refused_by_their_name(name, tmp_path):
    arrays, words = ARRAYS[name]
    with pytest.raises(ValueError, match=words) as error:
        archived(tmp_path, **arrays)
    assert "\n" not in str(error.value)
    assert "a.npz" in str(error.value)


def member(shape="(60, 3)", descr="'<f8'", data=None, fortran="False"):
    """An array as NumPy writes it, with a header of one's own."""
    header = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}"
    text = header.ljust(117) + "\n"
    return (
        b"\x93NUMPY\x01\x00"
        + len(text).to_bytes(2, "little")
        + text.encode()
        + (X.tobytes() if data is None else data)
    )


def zipped(*members, compression=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return bytearray(file.getvalue())


def with_y(x, **options):
    return zipped(("x.npy", x), ("y.npy", member("(60,)", data=Y.tobytes())), **options)


def broken():
    stored = with_y(member(), compression=zipfile.ZIP_STORED)
    crc = bytearray(stored)
    crc[200] ^= 1
    locked = bytearray(stored)
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        locked[locked.index(mark) + place] |= 1
    method = bytearray(stored)
    method[method.index(b"PK\x01\x02") + 10] = 99
    garbled = with_y(member(data=np.random.default_rng(0).bytes(1440)))
    garbled[180:600] = b"\xff" * 420
    return {
        "bad CRC": (crc, "x.npy|x"),
        "encrypted": (locked, "encrypted"),
        "unknown compression": (method, "compression"),
        "garbled": (garbled, "cannot be read"),
        "cut off": (stored[:-40], "a whole file as numpy.savez makes it"),
        "half": (stored[: len(stored) // 2], "a whole file as numpy.savez makes it"),
        "no zip": (b"not a zip" * 9, "a whole file as numpy.savez makes it"),
        "empty": (b"", "a whole file as numpy.savez makes it"),
        "8 TB": (with_y(member("(1000000000000,)")), r"`x` must have at most \d+ numbers"),
        "shape below zero": (with_y(member("(-60, -3)")), "`x`"),
        "fewer bytes": (with_y(member("(60, 4)")), "fewer bytes"),
        "more bytes": (with_y(member("(60, 2)")), "more bytes"),
        "no array": (with_y(b"hello"), "`x` is no NumPy array"),
        "no header": (with_y(b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 16), "`x` is no NumPy array"),
        "another version": (with_y(b"\x93NUMPY\x09\x00" + member()[8:]), "`x` is no NumPy array"),
        "code": (with_y(member("__import__('os').abort()")), "`x` is no NumPy array"),
        "Python 2": (with_y(member("(60L, 3L)")), "no NumPy array|"),
        "bomb": (with_y(member(f"({2**28},)", "'|i1'", bytes(2**28))),
            r"`x` must have at most \d+ numbers"),
        "empty zip": (zipped(), "--target must be one of the arrays"),
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(broken()))
@pytest.mark.sampled(5)
def test_an_archive_that_is_broken_or_meant_to_harm_is_refused_in_one_line(name, tmp_path):
    content, words = broken()[name]
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(ValueError, match=words) as error:
        load(str(tmp_path / "a.npz"), None, [], None, 0)
    assert "\n" not in str(error.value)
    assert "a.npz" in str(error.value)


def test_bundled_data_has_its_own_target(tmp_path):
    for options, words in (
        (("diabetes", "bmi", []), "`--target` must be left out for diabetes"),
        (("digits", None, ["a"]), "`--ignore` must be left out for digits"),
    ):
        with pytest.raises(ValueError, match=words):
            load(*options, None, 0)
    assert len(load("digits", None, [], None, 0).labels) == 10
    assert load("diabetes", None, [], None, 0).task == "regression"
    assert load("digits", None, [], "regression", 0).labels == []


def test_what_is_no_file_says_so_and_the_nearest_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "iris.csv").write_text(PLAIN)
    (tmp_path / "folder.csv").mkdir()
    for name, words in (
        ("iris.cvs.csv", "there is no file 'iris.cvs.csv'; did you mean 'iris.csv'"),
        ("digit",
            "--data must be one of digits, diabetes, breast_cancer, or a file .*did you "
            "mean 'digits'"),
        ("deep/down.npz", "there is no file 'deep/down.npz'"),
        ("folder.csv", "must be a file"),
        ("/dev/null", "must be a file"),
    ):  # fmt: skip
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            load(name, "price", [], None, 0)


@pytest.mark.parametrize("name", ["a.csv", "a.npz"])
def test_what_there_is_no_right_to_read_says_so(name, tmp_path, monkeypatch):
    (tmp_path / name).touch()

    def refused(path, *mode):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.open", refused)  # root, as in containers, may read all
    with pytest.raises(ValueError, match=f"--data: '.*{name}' cannot be read: Permission denied"):
        load(str(tmp_path / name), "y", (), None, 0)


def test_no_name_is_no_folder():
    with pytest.raises(ValueError, match="`--data` must be the name of a data set or a file"):
        load("", "y", (), None, 0)
