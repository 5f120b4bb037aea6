"""The house holds to its rules: a test for every module, nothing imported where nothing should be, files of a size."""

import ast
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE, TESTS = ROOT / "fastdiff", ROOT / "tests"
# Modules without a test file of their name, and what tests them.
TESTED_ELSEWHERE = {
    "engine/cuda/kernels.py": "imports alone",
    "compat/lucidrains/unet.py": "it hands on fastdiff.nets.lucidrains, which has its own",
    "serving/answers.py": "what it gives is asked for throughout tests/serving/test_engine.py",
    "evaluation/feature_values.py": "tests/evaluation/test_features.py and test_feature_files.py are about its values",
    "sampling/callbacks.py": "what it holds is given by every run: tests/sampling/test_runner.py",
    "samplers/two_stage_method.py": "its methods are built and tested as tables: tests/samplers/test_two_stage.py",
    "version.py": "tests/test_package.py holds it to the installed metadata",
}
# What stands on one floor: fastdiff/ holds folders, and these few files beside them.
MAX_FILES_BESIDE_FOLDERS = 6
EMPTY_PACKAGES = ("process", "nets", "files", "sampling", "training", "ops/reference", "cli/demo")
MAX_LINES = 600
# Longer files, each with its reason.
LONG_FILES: dict[str, str] = {}
# A kernel without a reference, a benchmark or a test of its own stem, and why.
KERNEL_EXCEPTIONS: dict[str, str] = {
    "add": "a part of the CUDA engine's plans, no op; tests/engine/cuda/interpreter runs it in networks",
    "select": "no op: the CUDA executor alone launches it, and its test holds it to plain indexing",
    "norm_factors": "a part of conv2d_fused, whose reference, tests and benchmark are its own as well",
}


def python_files(*folders):
    return sorted(chain.from_iterable(folder.rglob("*.py") for folder in folders))


def name(path):
    return path.relative_to(ROOT).as_posix()


def modules():
    return [path for path in python_files(PACKAGE) if path.name not in ("__init__.py", "__main__.py")]


def homes_of(module):
    """Where the tests of a module may be: in the folder that mirrors its own, under its stem without underscore."""
    inside = module.relative_to(PACKAGE)
    stem = inside.stem.removeprefix("_")
    folders = [TESTS / inside.parent]
    # What launches Triton's kernels is tested in a process of its own.
    if inside.parent == Path("engine/cuda"):
        folders.append(folders[0] / "interpreter")
    # An op's tests run its reference beside the other implementations, so they may be the reference's as well.
    if inside.parent == Path("ops/reference"):
        folders.append(TESTS / "ops")
    return [folder / f"test_{stem}.py" for folder in folders]


def imports(path):
    """The modules that a file imports, by name, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "."


@pytest.mark.parametrize("module", modules(), ids=name)
def test_module_has_a_test_file_of_its_name(module):
    inside = module.relative_to(PACKAGE).as_posix()
    found = any(path.is_file() for path in homes_of(module))
    wanted = " or ".join(name(path) for path in homes_of(module))
    assert found != (inside in TESTED_ELSEWHERE), f"expected {wanted}, or a reason in TESTED_ELSEWHERE, not both"


def test_reasons_are_about_files_that_exist():
    assert all((PACKAGE / inside).is_file() for inside in TESTED_ELSEWHERE)
    assert all((ROOT / path).is_file() for path in LONG_FILES)
    assert all((ROOT / "kernels" / f"{stem}.py").is_file() for stem in KERNEL_EXCEPTIONS)


def launchers():
    """Stems of the kernel files that launch something; a backward is its op's second half."""
    stems = [path.stem for path in (ROOT / "kernels").glob("*.py") if "\ndef launch_" in path.read_text()]
    return sorted({stem.removesuffix("_backward") for stem in stems})


@pytest.mark.parametrize("stem", launchers())
def test_kernel_has_an_op_a_reference_tests_and_a_benchmark(stem):
    wanted = [
        f"fastdiff/ops/_{stem}.py",
        f"fastdiff/ops/reference/{stem}.py",
        f"tests/ops/test_{stem}.py",
        f"tests/kernels/interpreter/test_{stem}.py",
        f"bench/bench_{stem}.py",
    ]
    missing = [path for path in wanted if not (ROOT / path).is_file()]
    assert bool(missing) == (stem in KERNEL_EXCEPTIONS), missing


def test_tests_import_no_test_file():
    tests = {path.stem for path in python_files(TESTS) if path.name.startswith("test_")}
    found = [
        f"{name(path)} imports {module}"
        for path in python_files(TESTS)
        for module in imports(path)
        if module.split(".")[-1] in tests and not module.startswith(("fastdiff", "torch"))
    ]
    assert not found, "what tests share belongs into tests/support"


def test_few_files_stand_beside_the_folders():
    found = sorted(path.name for path in PACKAGE.glob("*.py"))
    assert len(found) <= MAX_FILES_BESIDE_FOLDERS, found


@pytest.mark.parametrize("folder", EMPTY_PACKAGES)
def test_package_holds_a_docstring_and_no_import(folder):
    """So that `import fastdiff` and `fastdiff --help` load no torch through it."""
    body = ast.parse((PACKAGE / folder / "__init__.py").read_text()).body
    assert len(body) == 1
    assert ast.get_docstring(ast.Module(body, []))


def test_files_are_no_longer_than_they_may_be():
    files = python_files(PACKAGE, ROOT / "kernels", TESTS, ROOT / "bench")
    lines = {name(path): len(path.read_text().splitlines()) for path in files}
    long = {path for path, count in lines.items() if count > MAX_LINES}
    assert long == set(LONG_FILES), "split the file, or give the reason in LONG_FILES"


# What pytest, NumPy and PyTorch call the limits of a comparison.
LIMITS = {"atol", "rtol", "abs", "rel"}
# Upper limits below it are tolerances; above, they are what a test is about.
SMALL = 5e-3


def literals(node, largest):
    """Whether a literal that could be a tolerance stands in an expression."""
    return any(
        isinstance(n, ast.Constant) and isinstance(n.value, float) and 0 < n.value <= largest for n in ast.walk(node)
    )


def bare_tolerances(path):
    """Lines of statements with a tolerance as a number, and no comment in the three lines above."""
    text = path.read_text()
    lines = text.splitlines()
    for statement in ast.walk(ast.parse(text)):
        if not isinstance(statement, ast.Assert | ast.Expr | ast.Assign | ast.Return):
            continue
        keywords = [n.value for n in ast.walk(statement) if isinstance(n, ast.keyword) and n.arg in LIMITS]
        bounds = [
            n.comparators[-1]
            for n in ast.walk(statement)
            if isinstance(statement, ast.Assert)
            and isinstance(n, ast.Compare)
            and isinstance(n.ops[-1], ast.Lt | ast.LtE)
        ]
        found = any(literals(value, 1) for value in keywords) or any(literals(bound, SMALL) for bound in bounds)
        above = lines[max(0, statement.lineno - 4) : statement.lineno - 1]
        if found and not any(line.strip().startswith("#") for line in above):
            yield statement.lineno


def test_tolerances_have_names_or_reasons():
    """tests/support/tolerances.py has the names; a special number has its reason on a line above."""
    paths = [path for path in python_files(TESTS) if path.name != "tolerances.py"]
    assert not [f"{name(path)}:{line}" for path in paths for line in bare_tolerances(path)]


def test_tolerances_of_the_table_have_their_reasons():
    lines = (TESTS / "support" / "tolerances.py").read_text().splitlines()
    for i, line in enumerate(lines):
        if "=" in line and not line.startswith("#"):
            assert lines[i - 1].startswith("# "), line
