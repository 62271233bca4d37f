"""The house's own rules: sizes, names, layers, and documents that name files which exist."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PRODUCT = (
    *("app", "core", "workers", "mpo", "mpo_client", "embedded"),
    *("examples", "experiments", "bench", "scripts"),
)
LONGEST_FUNCTION = 80
USUAL_FUNCTION = 40
LONGEST_MODULE = 300
DEFINITIONS = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
FOLDERS = "app|core|workers|mpo|mpo_client|embedded|migrations|examples|experiments|bench|docs|tests"
DOCUMENTS = ["README.md", *sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]
TELLING_THE_WAY = {"docs/architecture.md", "docs/engine.md", "docs/method.md"}
NAMING_FILES = {*TELLING_THE_WAY, "README.md", "docs/reliability.md"}
BANNED_NAMES = re.compile(r"(^|_)(utils?|helpers?|common|managers?|misc)(_|$)", re.IGNORECASE)


def product_files() -> list[Path]:
    return [f for folder in PRODUCT for f in sorted((ROOT / folder).rglob("*.py")) if "peers" not in f.parts]


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """Name and length in lines, docstring not counted, of every function of a file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body
            said = ast.get_docstring(node, clean=False)
            quoted = (body[0].end_lineno or 0) - body[0].lineno + 1 if said is not None else 0
            yield node.name, (node.end_lineno or 0) - node.lineno + 1 - quoted


def test_no_function_is_longer_than_a_screen_and_nearly_all_are_short() -> None:
    sizes = {
        f"{path.relative_to(ROOT)}:{name}": size for path in product_files() for name, size in functions(path)
    }
    too_long = {name: size for name, size in sizes.items() if size > LONGEST_FUNCTION}
    assert not too_long, f"split these functions: {too_long}"
    long = {name: size for name, size in sizes.items() if size > USUAL_FUNCTION}
    assert len(long) <= len(sizes) * 0.05, f"over {USUAL_FUNCTION} lines: {long}"


def test_no_module_holds_two_rooms() -> None:
    sizes = {str(path.relative_to(ROOT)): path.read_text().count("\n") for path in product_files()}
    too_long = {name: size for name, size in sizes.items() if size > LONGEST_MODULE}
    assert not too_long, f"which two things live here? {too_long}"
    ordered = sorted(size for size in sizes.values() if size > 1)
    assert ordered[len(ordered) // 2] <= 120


def test_nothing_is_named_for_nothing() -> None:
    names = [path.stem for path in product_files()]
    for path in product_files():
        names += [n.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ClassDef)]
    assert [name for name in names if BANNED_NAMES.search(name)] == []


def test_the_library_s_init_files_import_nothing() -> None:
    # The import linter does not see that `import mpo.config` runs these files too.
    for path in sorted((ROOT / "mpo").rglob("__init__.py")):
        assert path.read_text() == "", f"{path.relative_to(ROOT)} must stay empty"


@pytest.mark.parametrize(
    "module", ["app.main", "mpo.plan", "mpo.split", "mpo.records", "mpo.diversity", "workers.child_main"]
)
def test_torch_and_sacrebleu_stay_out_of_the_service_side(module: str) -> None:
    heavy = {"torch", "transformers", "trl", "sacrebleu"}
    code = f"import sys, {module}; print(*sorted({heavy} & set(sys.modules)))"
    environment = {
        "MPO_DATABASE_URL": "postgresql+psycopg://nobody@localhost/none",
        "MPO_REDIS_URL": "redis://localhost:1/0",
        "MPO_STORE_URL": "file:///nowhere",
        "PYTHONPATH": str(ROOT),
    }
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT, check=False
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.strip() == "", f"import {module} loads {found.stdout.strip()}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_name_files_that_exist(document: str) -> None:
    named = set(re.findall(rf"`((?:{FOLDERS})/[\w./-]*)`", (ROOT / document).read_text()))
    missing = sorted(name for name in named if not (ROOT / name).exists())
    assert named or document not in NAMING_FILES, "the document names no file at all"
    assert missing == []


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_name_functions_that_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    called = re.findall(rf"`((?:{FOLDERS})/[\w./-]+\.py):\s+([\w.]+)`", text)
    assert len(called) >= 10 or document not in TELLING_THE_WAY, "it tells the way by `file.py: function`"
    missing = [f"{file}: {name}" for file, name in called if name not in definitions(ROOT / file)]
    assert missing == []


def definitions(path: Path) -> set[str]:
    """Names of a file's functions and classes, and of classes' methods as `Class.method`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, DEFINITIONS):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, DEFINITIONS)}
    return found
