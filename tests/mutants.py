"""Which changes of the code no test notices: ``make mutants ARGS=tcprepl/protocol``.

Each mutant is a module with one small change: a comparison turned round, a number one more, a
statement left out. It runs with the unit test that mirrors the module (`tests.mirror`) and those
that `MORE` names, in a copy of the checkout, up to the first failure; one that none of them notices
survives. What came of each is kept in ``build/mutants.jsonl``, so that a run goes on where one
ended: what a test noticed is not tried again until the module changes or something of ``tests``
that its tests import, what survived not until the module, those or its tests do.
``mutants_equivalent.txt`` names survivors that change nothing that anybody could see, each with the
reason. ``--sample 40`` tries so many of each module, chosen by ``--seed``.
"""

from __future__ import annotations

import argparse
import ast
import atexit
import hashlib
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from tests.mirror import ROOT, test_of

REPORT = ROOT / "build" / "mutants.jsonl"
CONFTEST = ROOT / "tests" / "conftest.py"
EQUIVALENT = Path(__file__).with_name("mutants_equivalent.txt")
#: A mutant that takes so much longer than the tests do hangs: that is noticed.
TIMES, THEN_SOME_S = 4, 10
#: How long tests that hang may take to end what they have started.
END_S = 10.0
#: A mutant that takes more address space than this runs away: that is noticed, too.
MOST_BYTES = 4 << 30

#: What pytest says of the libraries that are imported once for all mutants.
_PRELOADED = "ignore::pytest.PytestAssertRewriteWarning"

#: What every log promises, of the one in memory.
_KIT = "tests/unit/streams/test_log.py::test_the_kit_runs_all_checks_in_one_call"
#: Tests beside the mirrored one, where a module's promise is kept by others.
MORE = {
    "tcprepl/streams/base.py": [_KIT],
    "tcprepl/streams/blocks.py": [_KIT],
    "tcprepl/streams/memory.py": [_KIT],
    "tcprepl/streams/durable.py": ["tests/unit/streams/test_stored.py"],
    "tcprepl/streams/group_commit.py": [
        "tests/unit/streams/test_stored.py",
        "tests/unit/streams/test_producing.py",
    ],
    "tcprepl/streams/stored.py": [
        "tests/unit/streams/test_group_commit.py",
        "tests/unit/streams/test_producing.py",
    ],
    "tcprepl/streams/registry.py": ["tests/unit/streams/test_rows.py"],
    "tcprepl/streams/postgres_database.py": ["tests/unit/streams/test_postgresql.py"],
    "tcprepl/streams/postgres_gate.py": ["tests/unit/streams/test_postgresql.py"],
    "tcprepl/streams/postgres_news.py": ["tests/unit/streams/test_postgresql.py"],
    "tcprepl/streams/ring.py": ["tests/unit/streams/test_memory.py"],
    "tcprepl/streams/history.py": ["tests/unit/streams/test_cursor.py"],
    "tcprepl/protocol/parsing.py": [
        "tests/unit/protocol/test_serializing.py",
        "tests/property/test_protocol_codec.py",
    ],
    "tcprepl/protocol/serializing.py": ["tests/property/test_protocol_codec.py"],
    "tcprepl/protocol/session.py": [
        "tests/unit/protocol/test_server_session.py",
        "tests/unit/protocol/test_client_session.py",
    ],
    "tcprepl/protocol/server_session.py": ["tests/property/test_protocol_sessions.py"],
    "tcprepl/replication/following/delivery.py": [
        "tests/unit/replication/following/test_client.py",
        "tests/unit/replication/following/test_pulling.py",
        "tests/unit/replication/following/test_runs.py",
    ],
    "tcprepl/replication/following/connection.py": [
        "tests/unit/replication/following/test_client.py"
    ],
    "tcprepl/federation/sending/stored.py": ["tests/unit/federation/sending/test_outbox.py"],
    "tcprepl/federation/sending/writes.py": ["tests/unit/federation/sending/test_sender.py"],
    "tcprepl/federation/sending/attempts.py": ["tests/unit/federation/sending/test_sender.py"],
    "tcprepl/federation/sending/sender.py": ["tests/unit/federation/sending/test_attempts.py"],
    "tcprepl/federation/sending/destination.py": ["tests/unit/federation/sending/test_sender.py"],
    "tcprepl/protocol/client_session.py": ["tests/property/test_protocol_sessions.py"],
    "tcprepl/protocol/batches.py": ["tests/unit/protocol/test_client_session.py"],
}
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}
#: What is tried if nothing is named.
PATHS = [
    ROOT / "tcprepl" / name
    for name in ("protocol", "streams", "replication/following", "federation/sending")
]
#: How much of a statement names it.
LONG = 160
#: Calls that say something to people, and nothing to the program.
LOGGERS = {"logger", "log"}


class Mutant(NamedTuple):
    """A change.

    Attributes:
        key: What it is called: the function, the statement before and what became of it.
        text: The module with it.
    """

    key: str
    text: str


def mutants(text: str) -> Iterator[Mutant]:
    """Yield every mutant of a module."""
    tree = ast.parse(text)
    for key in _changed(tree):
        yield Mutant(key, ast.unparse(tree))


def keys(text: str) -> set[str]:
    """Return what every mutant of a module is called, in a tenth of the time."""
    return set(_changed(ast.parse(text)))


def _changed(tree: ast.AST) -> Iterator[str]:
    """Change *tree* in one place after another; yield what each change is called, while it is."""
    seen: dict[str, int] = {}
    for name, function in _functions(tree):
        for statement, node in _nodes(function):
            for what, fields in _changes(node):
                before = _first_line(statement)
                was = {field: getattr(node, field) for field in fields}
                node.__dict__.update(fields)
                key = f"{name}: {what or _cut(before, _first_line(statement))}"
                seen[key] = seen.get(key, 0) + 1
                yield key if seen[key] == 1 else f"{key} #{seen[key]}"
                node.__dict__.update(was)


def _functions(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, ast.AST]]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield prefix + node.name, node
            yield from _functions(node, f"{prefix}{node.name}.")
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node, f"{prefix}{node.name}.")


def _nodes(function: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Yield each node of a function, but those of functions in it, with its statement."""

    def below(statement: ast.AST, node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
        yield statement, node
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                continue
            if child in (getattr(node, "returns", 0), getattr(node, "annotation", 0)):
                continue
            if isinstance(child, ast.arguments):
                continue
            if isinstance(child, ast.keyword) and child.arg == "strict":
                continue  # of zip: what is parted together has one length
            if isinstance(child, ast.Expr) and _is_logged(child):
                continue
            if isinstance(child, ast.Raise):
                yield child, child  # not into its words
                continue
            yield from below(child if isinstance(child, ast.stmt) else statement, child)

    return below(function, function)


def _first_line(node: ast.AST) -> str:
    return ast.unparse(node).partition("\n")[0]


def _cut(before: str, after: str) -> str:
    """Return two long lines short: where they begin or, if that is the same, where they part."""
    begin = 0
    if before[:LONG] == after[:LONG]:
        parts = (
            at for at, (one, other) in enumerate(zip(before, after, strict=False)) if one != other
        )
        begin = max(0, next(parts, 0) - LONG // 2)
    return f"{before[begin : begin + LONG]} -> {after[begin : begin + LONG]}"


def _changes(node: ast.AST) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield what can be changed of *node*: a description if need be, and its new fields."""
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        yield "", {"ops": [COMPARISONS[type(node.ops[0])]()]}
    elif isinstance(node, ast.BoolOp):
        yield "", {"op": ast.And() if isinstance(node.op, ast.Or) else ast.Or()}
    elif isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in OPERATORS:
        yield "", {"op": OPERATORS[type(node.op)]()}
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield "", {"value": not node.value}
    elif isinstance(node, ast.Constant) and isinstance(node.value, int):
        yield "", {"value": node.value + 1}
    elif isinstance(node, (ast.If, ast.While, ast.IfExp)):
        if not isinstance(node.test, ast.Compare):  # which is turned round by itself
            yield "", {"test": ast.UnaryOp(ast.Not(), node.test)}
    elif isinstance(node, ast.Return) and _says_something(node.value):
        yield "", {"value": ast.Constant(None)}
    for name in ("body", "orelse", "finalbody"):
        block = getattr(node, name, None)
        for index, statement in enumerate(block if isinstance(block, list) else ()):
            if _may_go(statement):
                left = [*block[:index], ast.Pass(), *block[index + 1 :]]
                yield f"without {_first_line(statement)[:LONG]}", {name: left}


def _says_something(value: ast.expr | None) -> bool:
    return value is not None and not (isinstance(value, ast.Constant) and not value.value)


def _may_go(statement: ast.stmt) -> bool:
    """Return whether leaving a statement out may matter; what is only logged does not."""
    if isinstance(statement, (ast.AugAssign, ast.Delete, ast.Raise)):
        return True
    if isinstance(statement, ast.Assign):
        return any(not isinstance(target, ast.Name) for target in statement.targets)
    if not isinstance(statement, ast.Expr):
        return False
    return isinstance(statement.value, (ast.Call, ast.Await)) and not _is_logged(statement)


def _is_logged(statement: ast.Expr) -> bool:
    return ast.unparse(statement).split(".")[0] in LOGGERS


# --- running them -----------------------------------------------------------------------------


class Module(NamedTuple):
    """A module with its tests.

    Attributes:
        name: Its path.
        tests: Its tests: paths, or single ones in them.
        code: The digest of its text and of what its tests import from ``tests``.
        digest: That of these and its tests.
    """

    name: str
    tests: tuple[str, ...]
    code: str
    digest: str

    def keys(self) -> set[str]:
        """Return what all of its mutants are called, behind its own name."""
        every = keys((ROOT / self.name).read_text(encoding="utf-8"))
        return {f"{self.name}: {key}" for key in every}

    def sample(self, most: int, seed: int) -> list[Mutant]:
        """Return its mutants; at most so many, the same ones for the same seed."""
        every = list(mutants((ROOT / self.name).read_text(encoding="utf-8")))
        if most and most < len(every):
            return random.Random(f"{seed} {self.name}").sample(every, most)
        return every


def module_of(path: Path) -> Module | None:
    """Return a module with its tests; None if it has none."""
    name, test = str(path.relative_to(ROOT)), test_of(path)
    if test is None:
        return None
    tests = (str(test.relative_to(ROOT)), *MORE.get(name, ()))
    own = sorted({ROOT / one.partition("::")[0] for one in tests})
    kits = [CONFTEST, *sorted(set().union(*map(imported_by, own)) - {CONFTEST, *own})]
    code, every = (
        _digest(b"".join(file.read_bytes() for file in files))
        for files in ([path, *kits], [path, *kits, *own])
    )
    return Module(name, tests, code, every)


@cache
def imported_by(path: Path) -> frozenset[Path]:
    """Return the files of ``tests`` that a test imports, and those that these import."""
    found: set[Path] = set()
    left = [path]
    while left:
        for node in ast.walk(ast.parse(left.pop().read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [one.name for one in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                names = [node.module, *(f"{node.module}.{one.name}" for one in node.names)]
            files = {
                ROOT / f"{name.replace('.', '/')}.py" for name in names if name[:6] == "tests."
            }
            files = {file for file in files - found if file.exists()}
            found |= files
            left += files
    return frozenset(found)


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()[:16]


def run_tests(where: Path, tests: Sequence[str], limit_s: float) -> bool:
    """Run *tests* in the copy in *where*, in a child of this process; return whether they pass."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        atexit._clear()  # what is the parent's to end
        signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the parent does
        try:
            nowhere = os.open(os.environ.get("MUTANTS_SAY", os.devnull), os.O_RDWR)
            for number in range(3):
                os.dup2(nowhere, number)
            resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
            os.chdir(where)
            sys.path[:0] = [str(where)]
            options = ["-x", "-q", "-p", "no:cacheprovider", "-W", _PRELOADED]
            code = importlib.import_module("pytest").main([*options, *tests])
            atexit._run_exitfuncs()  # servers that tests share
            os._exit(code)
        except BaseException:  # noqa: BLE001 - it must not go on as the parent
            os._exit(3)
    deadline = time.monotonic() + limit_s
    interrupted = False
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status) == 0
        if time.monotonic() > deadline + END_S:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return False
        if not interrupted and time.monotonic() > deadline:
            os.killpg(child, signal.SIGINT)
            interrupted = True
        time.sleep(0.01)


def work(number: int, jobs: int, asked: Sequence[tuple[Module, list[Mutant]]]) -> int:
    """Try every mutant that is this worker's, and note what came of it.

    Returns:
        How many modules could not be tried, as their tests fail without any change.
    """
    failing = 0
    for name in (
        "pytest",
        "hypothesis",
        "twisted.internet.task",
        "msgspec",
        "msgpack",
        "structlog",
    ):
        importlib.import_module(name)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("tcprepl", "tests")]:
        del sys.modules[name]  # the child is to import those of the copy
    sys.path[:] = [one for one in sys.path if one not in ("", str(ROOT))]
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    with tempfile.TemporaryDirectory() as where_name, REPORT.open("a", encoding="utf-8") as report:
        where = Path(where_name)
        for part in ("tcprepl", "tests", "twisted"):
            without = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / part, where / part, ignore=without)
        for part in ("pyproject.toml", "protocol.md", "README.md", "CHANGELOG.md"):
            shutil.copy(ROOT / part, where)
        for module, chosen in asked:
            text = (ROOT / module.name).read_text(encoding="utf-8")
            took_s = 0.0
            for mutant in chosen[number::jobs]:
                if not took_s:
                    began = time.monotonic()
                    if not run_tests(where, module.tests, 600):
                        print(f"{module.name}: its tests fail without any change", flush=True)
                        failing += 1
                        break
                    took_s = time.monotonic() - began
                (where / module.name).write_text(mutant.text, encoding="utf-8")
                survived = run_tests(where, module.tests, TIMES * took_s + THEN_SOME_S)
                line = {
                    "module": module.name,
                    "code": module.code,
                    "digest": module.digest,
                    "mutant": mutant.key,
                    "survived": survived,
                }
                report.write(json.dumps(line) + "\n")
                report.flush()
                if survived:
                    print(f"survived: {module.name}: {mutant.key}", flush=True)
            (where / module.name).write_text(text, encoding="utf-8")
    return failing


def verdicts() -> dict[tuple[str, str], bool]:
    """Return whether each mutant that was tried survived.

    One that did is named by the digest of its module and its tests, one that was noticed by that of
    its module and of what its tests import: more tests do not notice less.
    """
    if not REPORT.exists():
        return {}
    found: dict[tuple[str, str], bool] = {}
    for line in map(json.loads, REPORT.read_text(encoding="utf-8").splitlines()):
        found[line["digest" if line["survived"] else "code"], line["mutant"]] = line["survived"]
    return found


def verdict(module: Module, key: str, found: dict[tuple[str, str], bool]) -> bool | None:
    """Return whether a mutant survived; None if that is not known."""
    return found.get((module.code, key), found.get((module.digest, key)))


def equivalents() -> set[str]:
    """Return the mutants that are known to change nothing: lines of the file that are indented."""
    lines = EQUIVALENT.read_text(encoding="utf-8").splitlines()
    return {line.strip() for line in lines if line.startswith("    ")}


def report_of(
    asked: Sequence[tuple[Module, list[Mutant]]], found: dict[tuple[str, str], bool]
) -> float:
    """Print figures for each module; return the percentage that survives, equivalents aside."""
    known, total, left, every = equivalents(), 0, 0, 0
    for module, chosen in asked:
        tried = {one.key: verdict(module, one.key, found) for one in chosen}
        count = sum(live is not None for live in tried.values())
        living = [key for key, live in tried.items() if live]
        survive = [key for key in living if f"{module.name}: {key}" not in known]
        all_keys = module.keys()
        gone = {one for one in known if one.startswith(f"{module.name}: ")} - all_keys
        of = len(all_keys)
        total, left, every = total + count, left + len(survive), every + of
        print(f"{count:5} of {of:3} tried, {len(survive):3} survive", end="")
        print(f", {len(living) - len(survive):3} change nothing  {module.name}")
        for key in survive:
            print(f"          {key}")
        for key in sorted(gone):
            print(f"          no mutant any more, but in the list: {key}")
    share = 100 * left / max(1, total)
    print(f"{total} of {every} mutants tried, {left} survive: {share:.1f} %")
    return share


def main(argv: Sequence[str] | None = None) -> int:
    """Try the mutants of what is named.

    Returns:
        1 if more than *share* of them survive, 2 if not all could be tried.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="how many at once")
    parser.add_argument("--share", type=float, default=8.0, help="percent that may survive")
    parser.add_argument("--report", action="store_true", help="only what is known already")
    parser.add_argument("--sample", type=int, default=0, help="most mutants of a module; 0: all")
    parser.add_argument("--seed", type=int, default=1, help="which are chosen")
    parser.add_argument("paths", nargs="*", type=Path, default=PATHS, help="modules, packages")
    given = parser.parse_args(argv)
    paths = [path.resolve() for path in given.paths]
    files = [file for path in paths for file in (sorted(path.rglob("*.py")) or [path])]
    if strangers := [
        path for path in files if not path.is_file() or ROOT / "tcprepl" not in path.parents
    ]:
        parser.error(f"no module or package of tcprepl: {', '.join(map(str, strangers))}")
    modules = [module for file in files if (module := module_of(file)) is not None]
    if not modules:
        parser.error(f"without a unit test: {', '.join(map(str, files))}")
    asked = [(module, module.sample(given.sample, given.seed)) for module in modules]
    REPORT.parent.mkdir(exist_ok=True)
    if not given.report:
        found = verdicts()
        untried = [
            (module, [one for one in chosen if verdict(module, one.key, found) is None])
            for module, chosen in asked
        ]
        children: list[int] = []
        for number in range(given.jobs):
            pid = os.fork()
            if pid == 0:
                code = 3
                try:
                    code = 2 if work(number, given.jobs, untried) else 0
                except BaseException:  # noqa: BLE001 - said, and told by the code
                    traceback.print_exc()
                finally:
                    os._exit(code)
            children.append(pid)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
        if any(codes):
            report_of(asked, verdicts())
            print("not all of them could be tried")
            return 2
    return 1 if report_of(asked, verdicts()) > given.share else 0


if __name__ == "__main__":
    sys.exit(main())
