import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", README, flags=re.MULTILINE | re.DOTALL)


def test_the_example_prints_what_is_said():
    [example], [output] = blocks("python"), blocks("text")
    assert len([line for line in example.splitlines() if line]) <= 12
    command = [sys.executable, "-W", "error", "-c", example]
    run = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    assert run.stderr == ""
    # The digits of a training differ from processor to processor; what is said of them does not.
    for text in (output, run.stdout):
        clear, doubtful = text.splitlines()
        assert re.fullmatch(r"0 0 0 0 0 0 0 0   (99|100)%", clear)
        *readings, percent = doubtful.split()
        assert len(readings) == 8
        assert int(percent.removesuffix("%")) < 95
    assert len(set(output.splitlines()[1].split()[:8])) > 1  # rarely, all agree in another training


def test_the_two_commands_are_one_line_each_and_name_what_exists():
    site, tests = (block.strip() for block in blocks("sh"))
    start = "python3 -m venv .venv && . .venv/bin/activate && pip install -e "
    assert site == start + '".[docs]" && sphinx-build -W --keep-going docs docs/_build/html'
    assert tests == start + '".[test]" && pytest'
    extras = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert "\ndocs = [" in extras
    assert "\ntest = [" in extras


def test_the_readme_opens_with_a_small_figure_that_says_what_it_shows():
    alt, path = re.search(r"!\[(.+?)\]\((.+?)\)", README).groups()
    assert README.index("![") < 100
    assert len(alt) > 40
    assert (ROOT / path).stat().st_size <= 100_000
