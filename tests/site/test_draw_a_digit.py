"""The page "Draw a digit": its network against PyTorch, its drawing pad, and what works without."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from mcbn import MCBatchNorm, lenet
from mcbn.predictive import probabilities, summarise_classification

PAGE = "draw_a_digit.html"
NETWORK = "_static/draw_a_digit_network.js"
PAD = "#digit-pad"


def array(text: str, dtype: str) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype).copy())


@pytest.fixture(scope="module")
def network(site: Path) -> dict:
    text = (site / NETWORK).read_text(encoding="utf-8")
    return json.loads(text.removeprefix("globalThis.mcbnNetwork = ").rstrip().removesuffix(";"))


@pytest.fixture(scope="module")
def digits(network: dict) -> torch.Tensor:
    return array(network["digits"], "u1").view(-1, 28, 28)


SIZES = (8, 16, 128)  # of the mini-batches


def computed(network: dict, digits: torch.Tensor, mc_batch_size: int) -> torch.Tensor:
    """PyTorch's logits, (estimators and the plain network, digits, classes)."""
    encoded = network["state"] | network["statistics"][str(mc_batch_size)]
    size = len(array(encoded["model.1.mc_mean"], "<f4")) // 6
    mc = MCBatchNorm(lenet(1, 10), num_estimators=size).eval()
    shapes = {name: tensor.shape for name, tensor in mc.state_dict().items()}
    shapes |= {
        f"model.{i}.mc_{n}": (size, 1, c) for i, c in ((1, 6), (5, 16)) for n in ("mean", "var")
    }
    state = {name: array(t, "<f4").view(shapes[name]) for name, t in encoded.items()}
    mc.load_state_dict(state)
    images = (digits[:, None] / 255 - network["mean"]) / network["std"]
    with torch.no_grad(), mc.deterministic():
        plain = mc(images)
    with torch.no_grad():
        return torch.cat([mc(images), plain[None]])


@pytest.fixture(scope="module")
def expected(network: dict, digits: torch.Tensor) -> torch.Tensor:
    """What the page computes at first."""
    return computed(network, digits, 16)


@pytest.fixture(scope="module")
def open_page(browser, server: str):
    """Open the page in a new context; afterwards no script may have failed."""
    contexts, failed = [], []

    def open_page(address: str = server + PAGE, **options):
        contexts.append(browser.new_context(**options))
        tab = contexts[-1].new_page()
        tab.on("pageerror", lambda error: failed.append(str(error)))
        tab.goto(address, wait_until="load")
        return tab

    yield open_page
    for context in contexts:
        context.close()
    assert not failed


@pytest.fixture(scope="module")
def tab(open_page):
    return open_page()


def settle(tab) -> None:
    """Wait until the page has drawn what the last event asked for."""
    frame = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
    tab.evaluate(frame)


def status(tab) -> str:
    settle(tab)
    return tab.inner_text("#digit-status")


def draw(tab, points: list[tuple[float, float]]) -> None:
    """A stroke with the mouse, in shares of the pad's sides."""
    tab.locator(PAD).scroll_into_view_if_needed()
    box = tab.locator(PAD).bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    tab.mouse.move(*places[0])
    tab.mouse.down()
    for place in places[1:]:
        tab.mouse.move(*place, steps=10)
    tab.mouse.up()


@pytest.mark.parametrize("size", SIZES)
def test_agrees_with_pytorch(tab, network: dict, digits: torch.Tensor, size: int) -> None:
    expected = computed(network, digits, size)
    given = tab.evaluate(
        """([digits, size]) => digits.map(pixels => drawADigit
            .logits(pixels, [...Array(drawADigit.numEstimators + 1).keys()], size)
            .map(logits => [...logits]))""",
        [digits.flatten(1).tolist(), size],
    )
    logits = torch.tensor(given).transpose(0, 1)
    assert logits.shape == expected.shape == (33, 100, 10)
    assert expected[:-1].std(0).min() > 0, "the estimators are all the same"
    assert (probabilities(logits) - probabilities(expected)).abs().max() < 1e-4
    largest = expected.abs().amax(-1, keepdim=True)
    assert ((logits - expected).abs() / largest).max() < 1e-4


@pytest.mark.parametrize("count", [1, 2, 16, 32])
def test_shows_what_the_package_computes(tab, network, expected, count: int) -> None:
    tab.locator("#digit-count").fill(str(count))
    for index in (0, 1, 60):
        tab.locator("#digit-test").fill(str(index + 1))
        shown = status(tab)
        summary = summarise_classification(expected[:count, index : index + 1])
        readings = expected[:count, index].argmax(-1)
        digit = int(summary.label)
        agree = f"{int((readings == digit).sum())} of {count} estimators agree"
        if count == 1:
            agree = "there is one estimator"
        assert shown == (
            f"Reads {digit} with {round(100 * summary.confidence.item())} %; {agree}. "
            f"The test digit is a {network['labels'][index]}."
        )
        nats = [float(tab.inner_text(f"#digit-{i}").split()[0]) for i in ("entropy", "information")]
        assert nats == pytest.approx(
            [float(summary.entropy), float(summary.mutual_information)], abs=6e-4
        )
        lines = tab.locator(".digit-estimator:visible .digit-reading")
        assert lines.all_inner_texts() == [str(int(reading)) for reading in readings]
        plain = probabilities(expected[-1, index])
        for line, probs in (("mean", summary.probs[0]), ("plain", plain)):
            bars = tab.locator(f".digit-{line} .digit-bar").evaluate_all(
                "bars => bars.map(bar => Number(bar.style.transform.match(/\\((.*)\\)/)[1]))"
            )
            assert bars == pytest.approx(probs.tolist(), abs=1e-4)
        assert tab.inner_text(".digit-true") == str(network["labels"][index])


@pytest.mark.parametrize("size", SIZES)
def test_the_size_of_the_mini_batches_can_be_switched(open_page, network, digits, size) -> None:
    tab = open_page()
    tab.get_by_role("radio", name=str(size), exact=True).check()
    settle(tab)
    summary = summarise_classification(computed(network, digits, size)[:16, :1])
    shown = float(tab.inner_text("#digit-information").split()[0])
    assert shown == pytest.approx(float(summary.mutual_information), abs=6e-4)


def test_a_link_shows_the_same_drawing(open_page) -> None:
    tab = open_page()
    draw(tab, [(0.3, 0.3), (0.7, 0.3), (0.4, 0.8)])
    tab.get_by_role("radio", name="8", exact=True).check()
    tab.click("#digit-link")
    tab.wait_for_function("document.getElementById('digit-link-said').textContent")
    seen = """[...document.getElementById("digit-seen")
        .getContext("2d").getImageData(0, 0, 28, 28).data]"""
    drawn, said, address = tab.evaluate(seen), status(tab), tab.url
    assert "#drawing=" in address
    assert len(address) < 2000
    other = open_page(address)
    assert status(other) == said
    assert other.evaluate(seen) == drawn
    assert max(drawn[::4]) > 200
    assert other.get_by_role("radio", name="8", exact=True).is_checked()
    draw(other, [(0.5, 0.2), (0.48, 0.8)])  # a stroke begins a drawing of its own
    assert "Reads 1" in status(other)


def test_a_link_that_carries_no_image_shows_the_first_digit(open_page, server, network) -> None:
    for wrong in ("#drawing=AAAA", "#drawing=%%%", "#m=7"):
        assert f"The test digit is a {network['labels'][0]}." in status(
            open_page(server + PAGE + wrong)
        )


def overlap(start: float, scale: float, size: int, cells: int) -> np.ndarray:
    """How much of each of the cells each of the scaled pixels covers, ``(cells, size)``."""
    left = (np.arange(size) - start) * scale
    cell = np.arange(cells)[:, None]
    return np.clip(np.minimum(left + scale, cell + 1) - np.maximum(left, cell), 0, None)


@pytest.mark.parametrize("shape", [(35, 80), (64, 90), (7, 5), (100, 100)])
def test_drawing_is_scaled_and_centred(tab, shape: tuple[int, int]) -> None:
    side, (height, width) = 100, shape
    rng = np.random.default_rng(0)
    ink = np.zeros((side, side), np.uint8)
    top, left = (side - height) // 3, (side - width) // 2
    ink[top : top + height, left : left + width] = rng.integers(1, 256, shape)
    scale = 20 / max(shape)
    box = overlap(top, scale, side, 20) @ ink @ overlap(left, scale, side, 20).T
    rows, columns = box.sum(1) @ np.arange(20) / box.sum(), box.sum(0) @ np.arange(20) / box.sum()

    centre = "([ink, side]) => [...drawADigit.centre(ink, side)]"
    image = np.reshape(tab.evaluate(centre, [ink.ravel().tolist(), side]), (28, 28))
    ys, xs = image.nonzero()
    down, over = (int(np.floor(14 - c + 0.5)) for c in (rows, columns))
    frame = np.pad(box, 28)  # (28, 28) is its corner: a long, thin drawing's box may stand out
    wanted = frame[28 - down : 56 - down, 28 - over : 56 - over]
    assert np.abs(image - wanted).max() <= 0.5 + 1e-6
    assert max(np.ptp(ys), np.ptp(xs)) == 19


def test_test_digits_come_back_when_drawn_large(tab, digits: torch.Tensor) -> None:
    """MNIST's images are the fixed points of what MNIST did to make them."""
    large = digits.repeat_interleave(2, 1).repeat_interleave(2, 2).flatten(1)
    given = tab.evaluate(
        "digits => digits.map(ink => Array.from(drawADigit.centre(ink, 56)))", large.tolist()
    )
    back = (torch.tensor(given) == digits.flatten(1)).all(1)
    assert back.sum() >= 99, f"{int(back.sum())} of {len(back)}"


def test_no_ink_is_no_image(tab) -> None:
    assert tab.evaluate("drawADigit.centre(new Uint8Array(100), 10)") is None


def test_mouse_draws_and_clear_clears(tab) -> None:
    tab.locator("#digit-test").fill("1")
    draw(tab, [(0.5, 0.2), (0.48, 0.8)])
    assert re.match(r"Reads 1 with \d+ %; \d+ of \d+ estimators agree\.$", status(tab))
    assert tab.inner_text("#digit-test-shown") == "none shown"
    draw(tab, [(0.2, 0.22), (0.5, 0.2)])  # a second stroke adds to the first
    assert "Reads 7" in status(tab)
    tab.click("#digit-clear")
    assert status(tab) == "Draw a digit, or step through the test digits."
    assert tab.inner_text("#digit-entropy") == "0.000 nats"


def test_finger_draws(open_page) -> None:
    tab = open_page(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    tab.locator(PAD).scroll_into_view_if_needed()
    box = tab.locator(PAD).bounding_box()
    middle, scrolled = box["x"] + box["width"] / 2, tab.evaluate("scrollY")
    touch = tab.context.new_cdp_session(tab)
    for step in range(12):
        point = {"x": middle, "y": box["y"] + box["height"] * (0.2 + 0.05 * step)}
        kind = "touchMove" if step else "touchStart"
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": [point]})
    touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    assert "Reads 1" in status(tab)
    assert tab.evaluate("scrollY") == scrolled, "the page scrolls under the finger"
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390


def test_keyboard_alone_steps_through_the_digits(open_page, network: dict) -> None:
    tab = open_page()
    reached = []
    for _ in range(60):
        tab.keyboard.press("Tab")
        name = tab.evaluate("document.activeElement.id")
        if not name.startswith("digit-"):
            continue
        reached.append(name)
        outline = tab.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert outline != "none", f"no focus is shown on {name}"
        if name == "digit-test":
            tab.keyboard.press("ArrowRight")
            assert f"The test digit is a {network['labels'][1]}." in status(tab)
            assert tab.locator("#digit-test").get_attribute("aria-valuetext") == (
                f"2 of 100, a {network['labels'][1]}"
            )
        if name == "digit-next":
            tab.keyboard.press("Space")
            assert f"The test digit is a {network['labels'][2]}." in status(tab)
        if name == "digit-count":
            tab.keyboard.press("Home")
            assert "there is one estimator" in status(tab)
            break
    assert reached == [f"digit-{i}" for i in ("clear", "previous", "test", "next", "count")]


def test_screen_readers_are_told_when_a_stroke_is_done(tab) -> None:
    line = tab.locator("#digit-status")
    assert line.get_attribute("role") == "status"
    box = tab.locator(PAD).bounding_box()
    tab.mouse.move(box["x"] + 50, box["y"] + 50)
    tab.mouse.down()
    assert line.get_attribute("aria-busy") == "true"
    tab.mouse.up()
    settle(tab)
    assert line.get_attribute("aria-busy") is None
    assert tab.locator("#digit-chart").get_attribute("aria-label").startswith("Mean probabilities:")


def test_an_update_is_faster_than_two_frames(tab) -> None:
    tab.locator("#digit-count").fill("16")
    tab.locator("#digit-test").fill("1")
    settle(tab)
    times = tab.evaluate(
        """() => Array.from({length: 31}, () => {
            const start = performance.now(); drawADigit.update(); return performance.now() - start;
        }).sort((a, b) => a - b)"""
    )
    assert 0 < times[15] < 30, f"{times[15]:.1f} ms for 16 estimators"


def test_works_from_a_disk(open_page, site: Path, network: dict) -> None:
    tab = open_page((site / PAGE).as_uri())
    assert f"The test digit is a {network['labels'][0]}." in status(tab)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_still_figure_where_scripts_are_off(open_page, theme: str) -> None:
    tab = open_page(java_script_enabled=False, color_scheme=theme)
    assert not tab.is_visible(".digit-lab")
    figure = tab.locator("noscript img.mcbn-figure:visible")
    assert figure.get_attribute("alt").startswith("Four test digits, a ")
    drawn = figure.evaluate("image => [image.currentSrc, image.naturalWidth / image.width]")
    assert drawn[0].endswith(f"draw_a_digit_{theme}.png")
    assert drawn[1] >= 1.5, "not sharp on a HiDPI screen"


def test_trained_again_only_when_something_changed(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "docs/_ext")
    monkeypatch.setenv("MCBN_DATA", str(tmp_path / "no data"))
    import draw_a_digit

    folder, root, made = tmp_path / "_static", tmp_path / "project", []
    (root / "mcbn").mkdir(parents=True)
    (root / "mcbn/__init__.py").write_text("answer = 41")

    def make(folder: Path, root: Path) -> None:
        made.append(folder)
        for name in draw_a_digit.FIGURES:
            (folder / name).touch()
        content = json.dumps({"key": draw_a_digit.current_key(root)})
        (folder / draw_a_digit.NETWORK).write_text(f"globalThis.mcbnNetwork = {content};\n")

    monkeypatch.setattr(draw_a_digit, "make", make)
    for _ in range(2):
        draw_a_digit.make_if_needed(folder, root)
    assert len(made) == 1
    (root / "mcbn/__init__.py").write_text("answer = 42")
    draw_a_digit.make_if_needed(folder, root)
    assert len(made) == 2
    (tmp_path / "no data/MNIST/raw").mkdir(parents=True)
    (tmp_path / "no data/MNIST/raw/train-labels-idx1-ubyte").touch()
    draw_a_digit.make_if_needed(folder, root)
    assert len(made) == 3
    (folder / draw_a_digit.FIGURES[0]).unlink()
    draw_a_digit.make_if_needed(folder, root)
    assert len(made) == 4
