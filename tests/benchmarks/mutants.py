"""How many small changes of the code the tests notice: cosmic-ray's mutations, a random sample.

    pip install cosmic-ray
    python tests/benchmarks/mutants.py mcbn/metrics.py tests/test_metrics.py --sample 100

Prints one line a mutant, then the share that was killed. The checkout itself is never changed.
Each mutant is tested in a fork of one process that has torch already, which saves its import; a
place in the code is changed once, by one of the operators that apply there.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import cosmic_ray.plugins
import lightning.pytorch  # noqa: F401
import pytest
import scipy.stats  # noqa: F401
import sklearn.metrics  # noqa: F401
import torchvision  # noqa: F401
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code

ROOT = Path(__file__).resolve().parents[2]
Place = tuple[tuple[int, int], tuple[int, int]]
Mutation = tuple[str, int]


def places(source: str) -> dict[Place, list[Mutation]]:
    """For each place that can be changed, the operators that apply and which in turn it is."""
    found: dict[Place, list[Mutation]] = {}
    tree, unused = get_ast(source), list(annotations(source))
    for name in cosmic_ray.plugins.operator_names():
        if "Variable" in name:  # they need arguments
            continue
        operator = cosmic_ray.plugins.get_operator(name)()
        positions = [p for node in ast_nodes(tree) for p in operator.mutation_positions(node)]
        for occurrence, position in enumerate(positions):
            place = position[0] if isinstance(position[0][0], tuple) else position
            if not any(start <= place[0] < stop for start, stop in unused):
                found.setdefault(place, []).append((name, occurrence))
    return found


def annotations(source: str) -> Iterator[Place]:
    """Where the annotations are: they are not evaluated."""
    for node in ast.walk(ast.parse(source)):
        for name in ("annotation", "returns"):
            if (hint := getattr(node, name, None)) is not None:
                yield (hint.lineno, hint.col_offset), (hint.end_lineno, hint.end_col_offset)


def run_tests(tests: list[str], cpu: float, wall: float) -> tuple[str, float]:
    """What became of one run of the tests, and the CPU time that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    child = os.fork()
    if not child:
        resource.setrlimit(resource.RLIMIT_CPU, (int(cpu), int(cpu)))
        os.setsid()
        log = os.open("log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code: int = 3
        try:
            code = int(pytest.main(["-xq", "-n0", "--tb=line", "-p", "no:cacheprovider", *tests]))
        finally:
            os._exit(code)
    end = time.monotonic() + wall
    while not (waited := os.waitpid(child, os.WNOHANG))[0]:
        time.sleep(0.05)
        if time.monotonic() > end:
            os.killpg(child, signal.SIGKILL)
            end += 60
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if os.WIFSIGNALED(waited[1]):
        return "timeout", used
    return ("killed" if os.WEXITSTATUS(waited[1]) else "survived"), used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("module", help="the file to change")
    parser.add_argument("tests", nargs="+", help="what is given to pytest")
    parser.add_argument("-k", default="", help="which of these tests, as for pytest")
    parser.add_argument("--sample", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tests = options.tests + (["-k", options.k] if options.k else [])
    with tempfile.TemporaryDirectory() as folder:
        for name in ("mcbn", "tests", "docs/guide"):
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, Path(folder, name), ignore=ignore)
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, folder)
        os.chdir(folder)
        sys.path.insert(0, folder)
        sys.dont_write_bytecode = True
        os.environ["PYTHONPATH"] = folder
        module = Path(options.module)
        source = module.read_text(encoding="utf-8")
        outcome, cpu = run_tests(tests, 1e6, 1e6)
        if outcome != "survived":
            sys.exit(f"the tests fail as it is:\n{Path('log').read_text()}")
        found = places(source)
        rng = random.Random(options.seed)
        chosen = rng.sample(sorted(found), min(options.sample, len(found)))
        print(f"{module}: {len(chosen)} of {len(found)} places; the tests take {cpu:.0f} s of CPU")
        counts: Counter[str] = Counter()
        for place in sorted(chosen):
            name, occurrence = rng.choice(found[place])
            operator = cosmic_ray.plugins.get_operator(name)()
            module.write_text(mutate_code(source, operator, occurrence), encoding="utf-8")
            outcome, _ = run_tests(tests, 4 * cpu + 10, 20 * cpu + 60)
            counts[outcome] += 1
            line = source.splitlines()[place[0][0] - 1].strip()
            print(f"{outcome}: line {place[0][0]}, {place[0][1]}: {name}: {line}", flush=True)
        killed = counts["killed"] + counts["timeout"]
        print(f"{killed} of {len(chosen)} killed ({killed / len(chosen):.1%}); {dict(counts)}")


if __name__ == "__main__":
    main()
