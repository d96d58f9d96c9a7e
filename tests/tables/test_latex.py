"""The LaTeX of a table: rows of equal length, numbers that siunitx reads, escaped words; compiled where TeX is."""

import copy
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tables_files import DATA, draft, finish

from scoreline.commands import report
from scoreline.tables.latex import latex_page
from scoreline.tables.render import Line, Page, Text

NUMBER = re.compile(r"(\\bfseries )?-?\d+(\.\d+)?(\(\d+\))?(\{\\rlap\{.*\}\})?")

GOLDEN = r"""% \usepackage{booktabs, etoolbox, siunitx}
\begin{table}
\centering\small\setlength{\tabcolsep}{4pt}
\caption{Toy\_table \& more. WHAT A \& B (2023), arXiv:2204.13902, Table 2.}
\label{tab:toy}
\smallskip
\robustify\bfseries
\sisetup{detect-weight=true, mode=text, group-separator={}, table-align-text-post=false}
\begin{tabular}{l S[table-format=2.2(2)] S[table-format=2.3(2)]}
\toprule
 & \multicolumn{2}{c}{NFE} \\
\cmidrule(lr){2-3}
FID $\downarrow$ & {5} & {10} \\
\midrule
DDIM & \bfseries 25.00(25) & 11.00(25) \\
\quad\textit{published} & 26.90 & 11.14(2){\rlap{\textsuperscript{$\dagger$}}} \\
\addlinespace[2pt]Heun & {--\rlap{\textsuperscript{a}}} & \bfseries 9.00(25){\rlap{\textsuperscript{b}}} \\
\quad\textit{published} &  & 9.125{\rlap{\textsuperscript{$\ddagger$}}} \\
\bottomrule
\end{tabular}

\medskip
\begin{minipage}{\linewidth}\footnotesize
A note. In parentheses the standard error of the figure over images, in units of the last digits. """.replace(
    "WHAT", "FID (lower is better) by NFE: 100 images of m against cifar10-train in features of e."
)


def table(root: Path, data: dict[str, Any] = DATA, budget: str = "paper") -> str:
    """The LaTeX of a finished table, whose Heun takes nine evaluations."""
    for k, cell in enumerate((made := draft(root, data, budget)).cells):
        changes = {"nfe": 9, "network_calls": 9} if cell.row == "Heun" else {}
        finish(root, cell, [25.0, 11.0, 9.0][k * 3 // len(made.cells)], **changes)
    report.main([str(root)])
    return (root / "table.tex").read_text()


def body(text: str) -> list[list[str]]:
    """The fields of the rows of a table."""
    rows = text.partition(r"\midrule")[2].partition(r"\bottomrule")[0].strip().split("\n")
    return [row.removeprefix(r"\addlinespace[2pt]").removesuffix(r" \\").split(" & ") for row in rows]


def test_golden(tmp_path: Path) -> None:
    text = table(tmp_path)
    assert text.startswith(GOLDEN)
    below = text.removeprefix(GOLDEN)
    assert "Bold: the best of a column and all within two standard errors of the difference from it. " in below
    assert "Features: e; reference: cifar10-train:0123. Published: Table 2; Other, Table 1; from memory." in below
    assert below.endswith(
        "\\textsuperscript{a}Needs an even NFE. \\textsuperscript{b}9 evaluations.\n\\end{minipage}\n\\end{table}\n"
    )


def test_rows_have_a_field_for_each_column_and_numbers_for_siunitx(tmp_path: Path) -> None:
    text = table(tmp_path)
    assert text.count(" S[") == 2
    for _, *fields in body(text):
        assert len(fields) == 2
        assert all(NUMBER.fullmatch(field) or field.startswith("{--") or not field for field in fields)


def test_several_ranges_are_named_in_words(tmp_path: Path) -> None:
    text = table(tmp_path, budget="small")
    assert "mean over 2 seed ranges of 10 images each of m" in text
    assert r"budget=small: n = 2 $\times$ 10, not the paper's." in text
    assert "Seeds 0--9 and 10--19, checkpoint m (abababab)." in text
    assert "difference from it, paired by seed range." in text


def test_the_words_of_a_protocol(tmp_path: Path) -> None:
    """What concerns other metrics is left out, and the jackknife where the error is that over ranges."""
    protocol = {"extractor": "cnn:12", "resize": "none", "neighbours": 3, "jackknife_groups": 20, "some_key": 7}
    for budget, errors in (("paper", "; errors by a jackknife over 20 groups of images"), ("small", "")):
        root = tmp_path / budget
        for cell in draft(root, budget=budget).cells:
            finish(root, cell, 10.0 + int(cell.seeds[0]), protocol=protocol)
        report.main([str(root)])
        assert f"Features: cnn:12; not resized{errors}; some key: 7." in (root / "table.tex").read_text()


def test_words_are_escaped(tmp_path: Path) -> None:
    data = copy.deepcopy(DATA)
    data["rows"][0]["name"] = r"50% of a_b & #1 {x} ~ ^ < > | $ \end"
    name = table(tmp_path, data).partition("\\midrule\n")[2].partition(" & 2")[0].partition(r" & \bfseries")[0]
    assert name == (
        r"50\% of a\_b \& \#1 \{x\} \textasciitilde{} \textasciicircum{} \textless{} \textgreater{} \textbar{} \$ "
        r"\textbackslash{}end"
    )


def test_columns_of_words_and_of_odd_numbers() -> None:
    """A column is one of numbers only if all of its fields are; inf, nan and 1e-07 are words."""
    fields = [["12", "adam", "-0.5", "1e-07"], ["7", "-", "1.25", "nan"], ["-", "3", "", "2"]]
    page = Page(
        ["trial", "n", "name", "x", "y"], [Line(str(k), [*map(Text, it)]) for k, it in enumerate(fields)], [], []
    )
    text = latex_page("my_study", "A study", page)
    assert r"\begin{tabular}{l S[table-format=2.0]l S[table-format=-1.2]l}" in text
    assert r"\label{tab:my-study}" in text
    assert body(text)[1] == ["1", "7", "{--}", "1.25", "{nan}"]


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        *(("0.182", "0.016", "0.182(16)"), ("25.5", "1.5", "25.5(15)"), ("1234", "56", "1234(56)")),
        *(("11.1", "0.02", "11.10(2)"), ("2.5", "0", "2.5"), ("2.5", "nan", "2.5"), ("-1.50", "0.25", "-1.50(25)")),
    ],
)
def test_errors_are_in_units_of_the_last_digits(value: str, error: str, shown: str) -> None:
    text = latex_page("t", "T", Page(["a", "b"], [Line("x", [Text(value, error)])], [], []))
    assert body(text) == [["x", shown]]


@pytest.mark.parametrize(("columns", "size"), [(6, r"\small"), (7, r"\footnotesize")])
def test_a_wide_table_has_smaller_type(columns: int, size: str) -> None:
    """20 letters of a name and 6 figures of 9 with spaces make 86."""
    page = Page(["t"] * (columns + 1), [Line("n" * 20, [Text("0.123", "0.012")] * columns)], [], [])
    assert rf"\centering{size}\set" in latex_page("t", "T", page)


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex")
def test_it_compiles_without_a_warning(tmp_path: Path) -> None:
    """Also with the older siunitx where that is there; bold numbers, notes and marks do not stick out."""
    data = copy.deepcopy(DATA)
    data["rows"][0]["name"] = r"50% of a_b & #1 {x} ~ ^ < > | $ \end"
    head = r"\documentclass{article}\usepackage{booktabs, etoolbox}\usepackage{siunitx}%s\begin{document}"
    text = table(tmp_path / "t", data)
    for version in ("", "[=v2]"):
        if subprocess.run(["kpsewhich", f"siunitx{'-v2' if version else ''}.sty"], capture_output=True).returncode:
            continue
        (tmp_path / "t.tex").write_text(head % version + text + r"\end{document}")
        command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
        run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", timeout=120)
        assert run.returncode == 0, run.stdout[-2000:]
        assert not [line for line in run.stdout.splitlines() if "Overfull" in line or line.startswith("!")]
