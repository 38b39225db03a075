"""The book of gradients: each operator and layer has a page, its pieces say what is so, the notebook runs."""

from __future__ import annotations

import importlib
import inspect
import json
import re

import pytest
import torch

import customops
from customops import config
from docs.book import docstrings, edges, pages, samples
from docs.book.notation import NotAFormula, displayed, formula, prose
from docs.book.subjects import NOTEBOOK, ROOT, page_of, steps, subjects
from docs.book.tree import place_of, sources, stage

from .marks import formulas_only

pytestmark = formulas_only
EVERY = subjects()
BY_NAME = {(each.kind, each.name): each for each in EVERY}
by_subject = pytest.mark.parametrize("subject", EVERY, ids=lambda each: f"{each.kind}/{each.name}")
TEN = ("log", "exp", "relu", "sigmoid", "add", "sub", "mul", "pow", "sum", "mean")


def test_every_operator_and_layer_has_a_page():
    comparisons = {*customops.comparison.__all__}
    functions = [
        n for n in customops.__all__ if inspect.isfunction(getattr(customops, n)) or callable(getattr(customops, n))
    ]
    about = {"apply", "backend", "dry_run", "enabled", "fuse", "restore"}  # no operators: the reference has them
    for name in functions:
        value = getattr(customops, name)
        if not (name.endswith("_") or name in comparisons | about or isinstance(value, type)):
            assert page_of(value, EVERY).startswith("operators/")
    for name in customops.nn.functional.__all__:
        assert page_of(getattr(customops.nn.functional, name), EVERY)


@by_subject
def test_a_page_has_a_derivation_in_formulas(subject):
    text = pages.derivation(subject) + pages.with_formulas(pages.summary(subject.function))
    assert "$" in text or ":func:" in (inspect.getdoc(subject.function) or "")
    assert "```text" not in text, "a formula that the notation does not know"


@by_subject
def test_the_example_prints_gradients(subject):
    each = samples.sample(subject.name, subject.place, subject.function)
    printed = pages.printed(pages.example(each))
    assert all(f"d{name} tensor(" in printed for name in each.names)


@pytest.mark.parametrize("subject", [each for each in EVERY if each.operators], ids=lambda each: each.name)
def test_the_code_of_an_operator_is_that_of_the_source(subject):
    for code, file in (pages.torch_code(subject), pages.FORMULAS), (pages.triton_code(subject), pages.TRITON):
        text = file.read_text()
        assert all(part in text for part in code.split("\n\n\n"))


@pytest.mark.parametrize("subject", [each for each in EVERY if not each.operators], ids=lambda each: each.qualified)
def test_the_code_of_a_composition_is_that_of_the_source(subject):
    function = inspect.unwrap(subject.function)
    code, text = pages.torch_code(subject), inspect.getsource(inspect.getmodule(function))
    assert f"def {function.__name__}(" in code
    assert '"""' not in code.partition("\n\n\n")[0]
    assert all(line in text for line in code.split("\n"))


@pytest.mark.parametrize("name", TEN)
def test_the_ten_operators_of_the_notebook_have_its_steps(name):
    assert "$$" in steps(BY_NAME["operators", name])


FORMULAS = {
    "dx = g·z·(1 - z)": r"\mathrm{d}x = g \cdot z \cdot \left(1 - z\right)",
    "e^-x/u²": r"\frac{{e}^{-x}}{{u}^{2}}",
    "g / (2z)": r"\frac{g}{2 z}",
    "-g·z³/2": r"-\frac{g \cdot {z}^{3}}{2}",
    "Σ g/y": r"\sum \frac{g}{y}",
    "Σ z_i / Σ w_i": r"\frac{\sum z_{i}}{\sum w_{i}}",
    "|x_i|^p": r"{\left\vert x_{i}\right\vert }^{p}",
    "√(2/π)": r"\sqrt{\frac{2}{π}}",
    "x^(y-1)": r"{x}^{y - 1}",
    "1 - tanh²(x/c)": r"1 - \tanh^{2}\left(\frac{x}{c}\right)",
    "dx_i = g_j·[x_i = z_j] / n_j": r"\mathrm{d}x_{i} = \frac{g_{j} \cdot \left[x_{i} = z_{j}\right]}{n_{j}}",
}


@pytest.mark.parametrize("text", FORMULAS)
def test_the_notation_becomes_latex(text):
    assert formula(text) == FORMULAS[text]


def test_cases_become_cases():
    got = formula("dx = Σ g where x > y, g/2 where x = y, else 0")
    assert got.startswith(r"\mathrm{d}x = \sum \begin{cases} g & \text{where } x > y \\")
    assert r"\text{else}" in got


def test_formulas_on_one_line_are_several():
    assert len(list(displayed("dx = Σ g,   dy = Σ alpha·g"))) == 2
    assert len(list(displayed("dweight = Σ g·y   over rows"))) == 1


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("so dz/dx = e^-z = 1/x:", 1),
        ("With s and c for the two sums, s' = c and c' = s;", 4),
        ("a kernel and/or a float32/float64 tensor of 0-dim, e.g. this", 0),
        ("`x = 1` is code, and ``y = 2`` too", 0),
        ("x^0 is 1 whatever x, so dz/dx = 0 where y = 0", 4),
    ],
)
def test_formulas_are_found_in_prose(text, count):
    found: list[str] = []
    assert re.sub(r"\$\d", "", prose(text, lambda latex: found.append(latex) or "$")).count("$") == count
    assert len(found) == count


@pytest.mark.parametrize("text", ["1 +", "x ^", "(x", "|x", "x € y"])
def test_what_is_no_formula_is_refused(text):
    with pytest.raises(NotAFormula):
        formula(text)


def test_the_name_of_a_function_stands_apart_and_infinity_does_not():
    pytest.importorskip("latex2mathml")
    mathml = importlib.import_module("docs.book.mathml").mathml
    assert "</mi><mspace width=" in mathml(r"y \log x", display=False)
    assert "mspace" not in mathml(r"\log\left(x\right) \cdot \tanh^{2}\left(x\right)", display=False)
    assert "<mi>&#x0221E;</mi>" in mathml(r"0 \cdot \infty", display=False)


def test_docstrings_get_directives_and_roles():
    lines = docstrings.with_formulas(["Return |x| + 1.", "", "    dx = g·sgn x", "", "Args:", "    x: a tensor."])
    text = "\n".join(lines)
    assert ":math:`" in text
    assert ".. math:: " in text
    assert "Args:\n    x: a tensor." in text


def test_a_reference_below_its_derivation_has_it_no_more():
    lines = ["Return x.", "", "    dx = g", "", "Args:", "    x: a tensor."]
    assert docstrings.without_derivation(lines) == ["Return x.", "", "Args:", "    x: a tensor."]


def test_edges_show_where_a_function_differs_from_torch():
    """The kernels of sigmoid agree with torch at all; a sigmoid that is off by a thousandth where z is 1 or nan."""
    subject = BY_NAME["operators", "sigmoid"]
    each = samples.sample(subject.name, subject.place, subject.function)
    wrong = each._replace(function=lambda x: torch.sigmoid(x) * 1.001 - 1e-3)
    if config.is_interpreted() or config.find_triton() is None:
        pytest.skip("kernels are compiled for this, which Triton does not do here")
    right, found = edges.edges(each), edges.edges(wrong)
    assert right.count == len(right.cells) == 9
    assert {point for (point,), cell in found.cells.items() if cell.agrees} == {"∞", "nan", "1e30"}
    assert "differs" not in edges.table(right)
    assert edges.table(found).count("differs") == 6


def test_links_lead_to_pages_of_the_site(tmp_path):
    for file in sources():
        stage(file, tmp_path)
    generated = {f"{each.kind}/{each.name}.md" for each in EVERY}
    generated |= {"operators/index.md", "layers/index.md", "reference/index.md", "reference/modules.md"}
    for page in tmp_path.rglob("*.md"):
        prose_ = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for link in re.findall(r"\]\(([^)\s#]+)[^)\s]*\)", prose_):
            target = (page.parent / link).resolve()
            known = target.exists() or target.relative_to(tmp_path.resolve()).as_posix() in generated
            assert "://" in link or known, f"{page}: {link}"
    assert place_of(ROOT / "docs/fuse.md") == "guide/fuse.md"


def test_the_menu_has_every_page():
    lists = ROOT / "docs/book/index.md", ROOT / "docs/book/templates/reference_index.md.jinja"
    entries = {line.removeprefix("../") for file in lists for line in file.read_text().split("\n")}
    entries |= {f"{place_of(file).removesuffix('.md')}/*" for file in sources() if file.with_suffix("").is_dir()}
    places = {place_of(file).rpartition(".")[0] for file in sources()} - {"index"}
    assert {place for place in places if not {place, f"{place.rpartition('/')[0]}/*"} & entries} == set()


def test_the_notebook_is_committed_without_results():
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


def test_the_notebook_runs():
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3").execute(cwd=str(ROOT))
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert printed.count("the value is the operator's") == len(TEN)


def test_a_wrong_derivation_fails_in_the_notebook():
    """Its check compares with the operator: a gradient that is off by a thousandth raises."""
    names: dict = {}
    code = [
        "".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"
    ]
    exec(code[0], names)
    with pytest.raises(AssertionError):
        names["check"](customops.exp, torch.exp, lambda g, x, z: g * z * 1.001, torch.randn(3))
