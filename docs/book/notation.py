"""The notation of the docstrings, ``dx = g·z·(1 - z)``, as LaTeX.

A formula is what an engineer writes in a docstring: ``·`` multiplies, ``/`` divides all that is multiplied before it,
``^`` and ``²`` raise, ``√``, ``Σ``, ``Π`` and ``∫`` stand before what they apply to, ``|x|`` is an absolute value,
``x_i`` an element. Words that are no names of a formula, as ``where``, are words in it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

GREEK = {"alpha", "beta", "delta"}
FUNCTIONS = {"log", "sin", "cos", "tanh", "max", "min", "exp"}  # those that LaTeX has a name for
NAMED = {"sgn", "sign", "erf", "silu", "gelu", "sigmoid", "relu", "relu6", "hardsigmoid"}
VARIABLES = {"low", "high", "eps", "cap", "cos_a", "weight", "weight_i", "bias_i", "bias", "gate", "threshold", "nan"}
VARIABLES |= {"inf", "min_val", "max_val", "ga", "gb", "da", "db", "dl_c", "dx1_i", "dx2_i", "x1", "x2", "n1", "n2"}
DIFFERENTIALS = {"dlow", "dhigh", "dweight", "dbias", "dgate"}
WORDS = {"do"}  # that would be differentials
NOT_ALONE = {"a", "A", "I"} | FUNCTIONS | NAMED | VARIABLES | GREEK  # in prose these may be words
POWERS = {"²": "2", "³": "3", "⁴": "4"}
RELATIONS = {"=": "=", "<": "<", ">": ">", "<=": r"\le ", ">=": r"\ge ", "→": r"\to ", "∈": r"\in "}
ELSE = r"\text{else}"
SUMS = {"Σ": r"\sum ", "Π": r"\prod ", "∫": r"\int "}
TOKEN = re.compile(
    r"(?P<space>\s*)(?:(?P<number>\d+(?:\.\d+)?(?:\.\.\.)?(?:e-?\d+)?)|(?P<name>[^\W\d_²³⁴ΣΠ]+\d*(?:_(?:[^\W\d_²³⁴ΣΠ]+|\d+))*'*)"
    r"|(?P<sign><=|>=|\.\.\.|[-+±·/^=<>→∈()\[\]|,;:√ΣΠ∫²³⁴.{}_'&]))"
)


class NotAFormula(ValueError):
    """The text holds what is no part of the notation."""


class Token(NamedTuple):
    """A number, a name or a sign."""

    kind: str  # number, name or sign
    text: str
    spaced: bool  # whether white space stands before it


def tokens(text: str) -> list[Token]:
    """Return the tokens of a formula."""
    found, at = [], 0
    text = text.rstrip()
    while at < len(text):
        match = TOKEN.match(text, at)
        if not match:
            raise NotAFormula(f"formula: expected the notation of the docstrings, got {text[at:]!r} in {text!r}")
        kind = match.lastgroup or ""
        found.append(Token(kind, match[kind], bool(match["space"])))
        at = match.end()
    return found


class Parser:
    """A formula that is read from left to right; each method returns the LaTeX of what it reads."""

    def __init__(self, text: str):
        self.tokens = tokens(text)
        self.at = 0
        self.text = text

    def peek(self, ahead: int = 0) -> Token:
        """Return the next token, or one without text at the end."""
        i = self.at + ahead
        return self.tokens[i] if i < len(self.tokens) else Token("end", "", True)

    def take(self, text: str = "") -> Token:
        """Return the next token and go past it; it has to be ``text``, if that is said."""
        token = self.peek()
        if text and token.text != text:
            raise NotAFormula(f"formula: expected {text!r} before {token.text!r} in {self.text!r}")
        self.at += 1
        return token

    def statement(self, until: str = "") -> str:
        """Return expressions, with the relations, words and commas between them, up to a sign or the end."""
        parts = []
        while self.peek().kind != "end" and self.peek().text != (until or None):
            token = self.peek()
            if token.text in RELATIONS:
                parts.append(f" {RELATIONS[self.take().text]} ")
            elif token.text in (",", ";", ":", ".", "..."):
                parts.append({"...": r"\ldots ", ".": "."}.get(self.take().text, token.text + r"\; "))
            elif token.kind == "name" and not is_variable(token.text):
                parts.append(self.words())
            else:
                parts.append(self.sum())
        return "".join(parts)

    def words(self) -> str:
        """Return the words that follow, as text."""
        found = [self.take().text]
        while self.peek().kind == "name" and not is_variable(self.peek().text):
            found.append(self.take().text)
        return rf"\;\text{{{' '.join(found)}}}\; "

    def sum(self) -> str:
        """Return terms with a sign between them."""
        parts = [self.term()]
        while self.peek().text in ("+", "-", "±"):
            parts.append({"±": r" \pm "}.get(self.peek().text, f" {self.peek().text} "))
            self.take()
            parts.append(self.term())
        return "".join(parts)

    def term(self, bound: bool = False) -> str:
        """Return a product; what is divided is all of it so far, but a ``/`` between spaces ends a ``bound`` one."""
        if self.peek().text in ("-", "±"):
            sign = self.take().text
            return {"±": r"\pm "}.get(sign, sign) + self.term(bound)
        product, is_single = self.factor(), True
        while True:
            token = self.peek()
            if token.text == "·":
                self.take()
                sign = self.take("-").text if self.peek().text == "-" else ""
                product, is_single = rf"{product} \cdot {sign}{self.factor()}", False
            elif token.text == "/" and not (bound and token.spaced):
                self.take()
                product, is_single = rf"\frac{{{bare(product)}}}{{{bare(self.juxtaposed())}}}", True
            elif self.is_juxtaposed() and is_single:
                product = f"{product} {self.juxtaposed()}"
            else:
                return product

    def is_juxtaposed(self) -> bool:
        """Return whether the next token stands at the one before it without a space, and multiplies it."""
        token = self.peek()
        before = self.tokens[self.at - 1]
        starts = token.kind in ("name", "number") or token.text in ("(", "√", "[")
        return starts and not token.spaced and (before.kind == "number" or before.text in (")", *POWERS))

    def juxtaposed(self) -> str:
        """Return a factor, and those that stand at it without a space, as in ``2z``."""
        sign = self.take().text if self.peek().text == "-" else ""
        product = self.factor()
        while self.is_juxtaposed():
            product = f"{product} {self.factor()}"
        return sign + product

    def factor(self) -> str:
        """Return an atom with its powers."""
        base = self.atom()
        while True:
            if self.peek().text in POWERS:
                base = f"{{{base}}}^{{{POWERS[self.take().text]}}}"
            elif self.peek().text == "^":
                self.take()
                base = f"{{{base}}}^{{{self.exponent()}}}"
            elif self.peek().text == "'":
                self.take()
                base += "'"
            else:
                return base

    def exponent(self) -> str:
        """Return what stands above: an atom, negative or not, with its own powers."""
        sign = self.take().text if self.peek().text == "-" else ""
        return sign + bare(self.factor())

    def atom(self) -> str:
        """Return a number, a variable, a function of something, or what brackets hold."""
        token = self.take()
        if token.kind == "number":
            return token.text.replace("...", r"\ldots ")
        if token.kind == "name":
            if is_differential(token.text) and self.peek().text == "/" and is_differential(self.peek(1).text):
                self.take("/")
                return rf"\frac{{{variable(token.text)}}}{{{variable(self.take().text)}}}"
            return self.function(token.text) if is_function(token.text) else variable(token.text)
        if token.text in SUMS:
            return self.summed(token.text)
        return rf"\sqrt{{{bare(self.atom())}}}" if token.text == "√" else self.bracketed(token.text)

    def bracketed(self, left: str) -> str:
        """Return what brackets or bars hold, with these, where the left one was taken."""
        if left in ("(", "["):
            return self.inside(left, {"(": ")", "[": "]"}[left])
        if left == "|":
            inner = self.sum()
            self.take("|")
            return rf"\left\vert {inner}\right\vert "  # a sign would end the cell of a table
        raise NotAFormula(f"formula: expected a number or a name, got {left!r} in {self.text!r}")

    def inside(self, left: str, right: str) -> str:
        """Return what stands up to the bracket that closes, with both brackets."""
        text = self.statement(until=right)
        self.take(right)
        return rf"\left{left}{text}\right{right}"

    def summed(self, sign: str) -> str:
        """Return a sum, product or integral, of what is multiplied after it."""
        head = SUMS[sign]
        if self.peek().text == "_":
            self.take()
            head = rf"{head.rstrip()}_{{{self.take().text}}} "
        body = self.term(bound=True)
        if sign == "∫" and self.peek().text.startswith("d"):
            body += rf"\,{variable(self.take().text)}"
        return head + body

    def function(self, name: str) -> str:
        """Return a function of what follows in brackets, or of one factor."""
        primes = name[len(name.rstrip("'")) :]
        plain = name.rstrip("'")
        head, _, index = plain.partition("_")
        text = (rf"\{head}" if head in FUNCTIONS else rf"\operatorname{{{head}}}") + (f"_{{{index}}}" if index else "")
        text += primes
        if self.peek().text in POWERS:
            text += f"^{{{POWERS[self.take().text]}}}"
        if self.peek().text == "(" and not self.peek().spaced:
            return text + self.factor()
        if self.peek().kind in ("name", "number") or self.peek().text in ("|", "√", *SUMS):
            return f"{text} {self.factor()}"
        return text


def is_differential(name: str) -> bool:
    """Return whether a name is that of a differential, as dx."""
    return name[:1] == "d" and len(name) == 2 and name not in WORDS


def is_function(name: str) -> bool:
    """Return whether a name is one of a function."""
    return name.rstrip("'").partition("_")[0] in FUNCTIONS | NAMED and name not in VARIABLES


def is_variable(name: str) -> bool:
    """Return whether a name belongs to a formula, and is no word."""
    plain = name.rstrip("'")
    head = plain.partition("_")[0]
    short = len(head) == 1 or is_differential(head)
    return short or plain in VARIABLES | DIFFERENTIALS | GREEK or is_function(name)


def variable(name: str) -> str:
    """Return a variable: Greek by its sign, one of several letters upright, an index below."""
    plain, primes = name.rstrip("'"), name[len(name.rstrip("'")) :]
    if plain in ("inf", "nan", "min_val", "max_val"):
        return {"inf": r"\infty ", "nan": r"\mathrm{nan}"}.get(plain, rf"\mathrm{{{plain.replace('_val', '')}}}")
    head, _, index = plain.partition("_")
    letter, number = re.fullmatch(r"([^\d]+)(\d*)", head).groups()  # type: ignore[union-attr]
    if letter in GREEK:
        text = rf"\{letter} "
    elif len(letter) == 1:
        text = letter
    elif letter[0] == "d" and (len(letter) == 2 or letter in DIFFERENTIALS):
        text = rf"\mathrm{{d}}{variable(letter[1:])}"
    else:
        text = rf"\mathrm{{{letter}}}"
    below = number + (f",{index}" if number and index else index)
    return text + (f"_{{{below}}}" if below else "") + primes


def bare(text: str) -> str:
    """Return LaTeX without the round brackets around all of it, which a fraction or a root needs no more."""
    if not (text.startswith(r"\left(") and text.endswith(r"\right)")):
        return text
    depth = 0
    for match in re.finditer(r"\\left.|\\right.", text):
        depth += 1 if match[0].startswith(r"\left") else -1
        if depth == 0:
            return text[len(r"\left(") : -len(r"\right)")] if match.end() == len(text) else text
    return text


def formula(text: str) -> str:
    """Return one formula as LaTeX: with ``where`` on its right side one of several cases."""
    left, equals, right = text.partition(" = ")
    pieces = re.split(r", (?![^(\[]*[)\]])", right)
    if equals and len(pieces) > 1 and " where " in right and " where " not in left:
        head = "Σ" if pieces[0].startswith("Σ ") else ""
        rows = sorted((_case(piece.removeprefix("Σ ")) for piece in pieces), key=lambda row: row[1] == ELSE)
        cases = r" \\ ".join(f"{value} & {condition}" for value, condition in rows)
        return rf"{Parser(left).statement()} = {SUMS.get(head, '')}\begin{{cases}} {cases} \end{{cases}}"
    return Parser(text).statement()


def _case(piece: str) -> tuple[str, str]:
    value, where, condition = piece.removeprefix("else ").partition(" where ")
    shown = rf"\text{{where }} {Parser(condition).statement()}" if where else ELSE
    return Parser(value).statement(), shown


def displayed(block: str) -> Iterator[str]:
    """Yield the formulas of an indented block as LaTeX: wide spaces and ends of lines stand between them."""
    pending = ""
    for line in block.split("\n"):
        for piece in re.split(r"[,;]?\s{3,}", line.strip()):
            text = formula(piece.rstrip(",;:."))
            if "=" not in piece and pending:
                pending += rf"\quad {text}"
            else:
                if pending:
                    yield pending
                pending = text
    if pending:
        yield pending


CODE = re.compile(r"(:[\w:]+:`[^`]*`|``.*?``|`[^`]*`|\$[^$]*\$|\[[^\]]*\]\([^)]*\))", re.DOTALL)


def prose(text: str, wrap: Callable[[str], str]) -> str:
    """Return a paragraph in which ``wrap`` was applied to each formula, as LaTeX; code in it stays."""
    pieces = CODE.split(text)
    return "".join(piece if i % 2 else _with_formulas(piece, wrap) for i, piece in enumerate(pieces))


def _with_formulas(text: str, wrap: Callable[[str], str]) -> str:
    parts = re.split(r"(\s+)", text)
    out, run = [], []
    for i in range(0, len(parts), 2):
        word, space = parts[i], parts[i + 1] if i + 1 < len(parts) else ""
        opened = " ".join(run).count("(") - " ".join(run).count(")")
        core = word.rstrip(",.;:")
        if opened + core.count("(") - core.count(")") > 0:
            core = word  # the comma is inside
        if run and not (_is_formula(core) and _goes_on(run, core)):
            out.append(_run(run, wrap) + " ")
            run = []
        if core and _is_formula(core):
            run.append(core)
            if len(word) == len(core) and i + 2 < len(parts) and parts[i + 2]:
                continue
            out.append(_run(run, wrap) + word[len(core) :] + space)
            run = []
        else:
            out.append(word + space)
    return "".join(out) + (_run(run, wrap) if run else "")


def _goes_on(run: list[str], word: str) -> bool:
    """Return whether a formula goes on with this word: there is a sign between, or an open bracket."""
    last = tokens(run[-1])[-1]
    first = tokens(word)[0]
    opened = " ".join(run).count("(") > " ".join(run).count(")")
    ends = last.kind == "sign" and last.text not in (")", "]", "|", "'", *POWERS)
    begins = first.kind == "sign" and first.text not in ("(", "[", "|", "√", *SUMS)
    return (
        opened
        or ends
        or begins
        or is_function(last.text)
        or run[-1][0] in SUMS
        or ("∫" in " ".join(run) and is_differential(word))
    )


def _is_formula(word: str) -> bool:
    """Return whether a word can be a piece of a formula: its names are all variables or functions."""
    try:
        return all(token.text != "." and (token.kind != "name" or is_variable(token.text)) for token in tokens(word))
    except NotAFormula:
        return False


def _run(run: list[str], wrap: Callable[[str], str]) -> str:
    """Return words that may be a formula, wrapped if they are one."""
    text = " ".join(run)
    outer = ("", "")
    if text.startswith("(") and text.endswith(")") and text.count("(") == 1:
        text, outer = text[1:-1], ("(", ")")
    elif text.startswith("(") and text.count("(") > text.count(")"):
        text, outer = text[1:], ("(", "")
    elif text.endswith(")") and text.count(")") > text.count("("):
        text, outer = text[:-1], ("", ")")
    plain = re.fullmatch(r"[\d.,\s()-]*", text) or text in NOT_ALONE
    try:
        return " ".join(run) if plain else outer[0] + wrap(Parser(text).statement().strip()) + outer[1]
    except NotAFormula:
        return " ".join(run)
