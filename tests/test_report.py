"""The page: nothing is loaded, nothing of the input is code, the numbers in it are right."""

from __future__ import annotations

import hashlib
import html.parser
import io
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

import nnpcalc.report
from browser import PROGRAM, Browser
from nnpcalc.report import viewer, write_report
from nnpcalc.report.collect import MOST_ATOMS, MOST_REPLICAS, collect
from nnpcalc.report.svg import Panel, draw, ticks

NASTY = "</script><script>document.title='broken'</script><img src=x onerror=alert(1)> & \"'"


@pytest.fixture(autouse=True)
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A short text in the place of the viewer: no network; the browser gets the real one."""
    if "browser" not in request.fixturenames and "viewer" not in request.node.name:
        monkeypatch.setattr(nnpcalc.report, "load_viewer", lambda: ("var $3Dmol = {};", "BSD-3"))


def dynamics(count: int = 12, replicas: int = 1, periodic: bool = False) -> list[Atoms]:
    """Water whose first bond is stretched by 0.01 Å a frame."""
    frames = []
    for k in range(count):
        for replica in range(replicas):
            atoms = molecule("H2O", vacuum=3.0 if periodic else None, pbc=periodic)
            atoms.set_distance(0, 1, 1.0 + 0.01 * k, fix=0)
            atoms.info = {"time": 50.0 * k, "step": 100 * k, "replica": replica + 3,
                          "temperature": 300.0 + k, "conserved_energy": -2000.0}  # fmt: skip
            atoms.calc = SinglePointCalculator(
                atoms, energy=-2001.0 + 0.5 * k, forces=np.ones((3, 3))
            )
            frames.append(atoms)
    return frames


class Page(html.parser.HTMLParser):
    """The elements of a page, the text of its title, and of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = tag

    def handle_endtag(self, tag: str) -> None:
        self._open = ""

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self._open, []).append(data)

    def names(self) -> list[str]:
        return [name for name, _ in self.elements]

    @property
    def data(self) -> dict[str, Any]:
        """What the viewer reads."""
        found: dict[str, Any] = json.loads(self.texts["script"][0])
        return found


def page_of(tmp_path: Path, frames: list[Atoms], **options: Any) -> Page:
    write_report(tmp_path / "page.html", frames, **{"title": "water", **options})
    return Page((tmp_path / "page.html").read_text())


def test_nothing_is_loaded(tmp_path: Path) -> None:
    page = page_of(tmp_path, dynamics(), distances=[(0, 1)])
    for _, attributes in page.elements:
        assert not {"src", "href", "srcset", "action", "data"} & set(attributes)
        for value in attributes.values():
            assert "url(" not in (value or "") and "http" not in (value or "")
    assert "url(" not in "".join(page.texts["style"]) and "@import" not in page.texts["style"][0]
    (policy,) = [a["content"] for _, a in page.elements if a.get("http-equiv")]
    assert policy is not None and policy.startswith("default-src 'none'")
    assert page.names().count("script") == 3  # data, viewer, ours
    assert "$3Dmol" in page.texts["script"][1]


def test_the_input_is_not_code(tmp_path: Path) -> None:
    page = page_of(
        tmp_path, dynamics(), title=NASTY, facts={NASTY: NASTY}, notes=[NASTY], distances=[(0, 1)]
    )
    plain = page_of(tmp_path, dynamics(), facts={"a": "b"}, notes=["c"], distances=[(0, 1)])
    assert page.names() == plain.names()
    assert page.texts["title"][0] == NASTY == page.texts["h1"][0] == page.texts["li"][0]
    assert NASTY in page.texts["th"] and NASTY in page.texts["td"]


def test_frames_of_the_viewer(tmp_path: Path) -> None:
    frames = dynamics(5, replicas=2, periodic=True)
    data = page_of(tmp_path, frames).data
    assert [replica["name"] for replica in data["replicas"]] == [3, 4]
    pictures = data["replicas"][1]["frames"]
    assert [picture["at"] for picture in pictures] == [0.0, 0.05, 0.1, 0.15, 0.2]  # ps
    for picture, atoms in zip(pictures, frames[1::2], strict=True):
        count, _, *rows = picture["xyz"].splitlines()
        assert int(count) == 3 and [row.split()[0] for row in rows] == ["O", "H", "H"]
        positions = np.array([row.split()[1:] for row in rows], dtype=float)
        assert np.allclose(positions, atoms.positions, atol=1e-3)
        assert np.allclose(picture["cell"], atoms.cell.array)


def test_free_molecules_stay_in_view(tmp_path: Path) -> None:
    frames = dynamics(2)
    frames[1].positions += 100.0
    pictures = page_of(tmp_path, frames).data["replicas"][0]["frames"]
    assert pictures[1]["cell"] is None
    rows = [row.split()[1:] for row in pictures[1]["xyz"].splitlines()[2:]]
    assert np.abs(np.array(rows, dtype=float)).max() < 2.0


def test_numbers_of_the_plots() -> None:
    frames = dynamics(4, periodic=True)
    assert "volume" not in [name for name, _, _ in collect(frames, []).panels()]
    frames[2].set_cell(frames[2].cell * 1.01)
    found = collect(frames, [(0, 1)])
    panels = {name: (unit, lines[0][1], lines[0][2]) for name, unit, lines in found.panels()}
    assert found.axis == "time / ps"
    names = ["potential energy, change since the first frame",
             "conserved energy, change since the first frame",
             "temperature", "volume", "distance O0 to H1"]  # fmt: skip
    assert list(panels) == names
    assert panels[names[0]] == ("eV", [0.0, 0.05, 0.1, 0.15], [0.0, 0.5, 1.0, 1.5])
    assert panels[names[2]][::2] == ("K", [300.0, 301.0, 302.0, 303.0])
    assert panels[names[4]][2] == pytest.approx([1.0, 1.01, 1.02, 1.03])


def test_an_optimisation_and_bare_structures() -> None:
    frames = dynamics(3)
    for k, atoms in enumerate(frames):
        atoms.info = {"step": k}
    found = collect(frames, [])
    assert found.axis == "step"
    assert [name for name, _, _ in found.panels()][1] == "largest force"
    assert found.panels()[1][2][0][2] == pytest.approx([3**0.5] * 3)
    bare = collect([molecule("H2O"), molecule("CH4")], [])
    assert bare.axis == "frame" and bare.panels() == []


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    count = 2 * MOST_ATOMS // 3 + 10
    water = molecule("H2O")
    found = collect((water for _ in range(count)), [])
    (replica,) = found.replicas
    assert replica.stride == 4 and len(replica.pictures) * 3 <= MOST_ATOMS
    assert [p["at"] for p in replica.pictures[:3]] == [0.0, 4.0, 8.0]
    assert len(replica.axis) == count
    assert found.remarks == ["The viewer has every 4th frame."]
    page = page_of(tmp_path, dynamics(2, replicas=MOST_REPLICAS + 2))
    assert f"{MOST_REPLICAS} of {MOST_REPLICAS + 2} replicas are shown." in page.texts["li"]
    assert len(page.data["replicas"]) == MOST_REPLICAS


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no frames"):
        write_report(tmp_path / "x.html", [], title="x")
    with pytest.raises(ValueError, match="atoms 0 to 2 only"):
        write_report(tmp_path / "x.html", dynamics(1), title="x", distances=[(0, 7)])
    with pytest.raises(OSError, match=r"no/x\.html"):
        write_report(tmp_path / "no" / "x.html", dynamics(1), title="x")


def test_svg() -> None:
    """A point is where the axes say: the ticks' labels read back the values."""
    text = draw(Panel("a < b", "eV", "t", [("one", [0.0, 10.0], [-1.0, 1.0])]))
    assert "a &lt; b" in text and "tspan" not in text
    two = draw(Panel("n", "eV", "t", [("replica 3", [0], [1]), ("replica 9", [0], [2])]))
    assert re.findall(r"<tspan[^>]*>(\d)<", two) == ["3", "9"]
    (line,) = re.findall(r'points="([^"]*)"', text)
    (x0, y0), (x1, y1) = (map(float, point.split(",")) for point in line.split())
    labels = re.findall(r'<text x="66" y="([\d.]+)" dy="4" text-anchor="end">([^<]*)<', text)
    places = {float(value): float(y) for y, value in labels}
    assert places[-1.0] == pytest.approx(y0) and places[1.0] == pytest.approx(y1)
    assert (x0, x1) == (72.0, 626.0)
    assert 'data-low="0.0" data-high="10.0"' in text


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0.0, 1.0, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (147.0, 246.0, ["160", "180", "200", "220", "240"]),
        (-0.0004, 0.0004, ["-0.0004", "-0.0002", "0.0000", "0.0002", "0.0004"]),
        (1e7, 1.00001e7, ["1.00000e+07", "1.00000e+07"]),
        (-3e-9, 3e-9, ["-2e-09", "0e+00", "2e-09"]),
    ],
)
def test_ticks(low: float, high: float, texts: list[str]) -> None:
    found = ticks(low, high, 5)
    if low < 1e6:
        assert [text for _, text in found] == texts
    assert len({text for _, text in found}) == len(found) <= 6
    assert all(low - 1e-9 <= tick <= high + 1e-9 * abs(high) for tick, _ in found)


def test_a_constant_is_a_line_in_the_middle() -> None:
    for value in (0.0, 5.0, -1e6):
        text = draw(Panel("n", "u", "t", [("one", [0.0, 1.0], [value, value])]))
        assert "nan" not in text and "inf" not in text
        draw(Panel("n", "u", "t", [("one", [0.0], [value])]))


# --- the viewer ----------------------------------------------------------------------------------


def test_the_viewer_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as package:
        for name, text in ((viewer.LIBRARY, "library"), (viewer.LICENCE, "licence")):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            package.addfile(member, io.BytesIO(text.encode()))
    calls = []

    def answer(source: str, timeout: float) -> io.BytesIO:
        calls.append(source)
        return io.BytesIO(packed.getvalue())

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(viewer.urllib.request, "urlopen", answer)
    with pytest.raises(OSError, match="not the file it was"):
        viewer.load_viewer()
    assert not list(tmp_path.rglob("*.tgz"))
    monkeypatch.setattr(viewer, "SHA256", hashlib.sha256(packed.getvalue()).hexdigest())
    assert viewer.load_viewer() == viewer.load_viewer() == ("library", "licence")
    assert calls == [viewer.SOURCE] * 2
    viewer.cache_file().write_bytes(b"torn")
    with pytest.raises(ValueError, match=r"is not what .* holds: delete it"):
        viewer.load_viewer()


def test_no_viewer_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: str, timeout: float) -> None:
        raise OSError("no route to host")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(viewer.urllib.request, "urlopen", fail)
    with pytest.raises(OSError, match=r"cannot be fetched \(no route to host\): bring https"):
        write_report(tmp_path / "page.html", dynamics(2), title="t")


# --- in a browser --------------------------------------------------------------------------------


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    if PROGRAM is None:
        pytest.skip("no Chromium here")
    try:
        viewer.load_viewer()
    except OSError as error:
        pytest.skip(str(error))
    found = Browser(tmp_path / "profile")
    try:
        if not found.value("!!document.createElement('canvas').getContext('webgl')"):
            pytest.skip("this Chromium has no WebGL")
        yield found
    finally:
        found.close()


@pytest.mark.slow
def test_the_viewer_draws(browser: Browser, tmp_path: Path) -> None:
    """Red oxygen on white, nothing in the console; slider, plots and replicas do what they say."""
    image = pytest.importorskip("matplotlib.image")
    frames = dynamics(replicas=2, periodic=True)
    write_report(tmp_path / "page.html", frames, title=NASTY, distances=[(0, 1)])
    browser.open(tmp_path / "page.html")
    browser.wait_for("document.body && document.body.dataset.ready === 'drawn'")
    assert browser.value("document.title") == NASTY
    browser.screenshot(tmp_path / "page.png")
    picture = image.imread(tmp_path / "page.png")[:, :600, :3]
    red = (picture[..., 0] > 0.5) & (picture[..., 1] < 0.2) & (picture[..., 2] < 0.2)
    assert red.sum() > 300

    frame, cursors = "document.body.dataset.frame", "document.querySelectorAll('.cursor')"
    browser.value(
        "(s => { s.value = 11; s.dispatchEvent(new Event('input')); })"
        "(document.getElementById('slider'))"
    )
    browser.wait_for(f"{frame} === '11'")
    assert browser.value("document.getElementById('place').textContent") == "time / ps: 0.55000"
    places = browser.value(f"Array.from({cursors}, c => +c.getAttribute('x1'))")
    assert places == [626.0] * 4
    # a click on the left end of a plot's axis goes back to the start
    browser.value(
        "(f => { const b = f.getBoundingClientRect(); f.dispatchEvent(new MouseEvent('click',"
        "{bubbles: true, clientX: b.left + 1, clientY: b.top + 5})); })"
        "(document.querySelector('.plot .frame'))"
    )
    browser.wait_for(f"{frame} === '0'")
    browser.value("document.getElementById('play').click()")
    browser.wait_for(f"+{frame} >= 3")
    browser.value(
        "(s => { s.value = 1; s.dispatchEvent(new Event('change')); })"
        "(document.getElementById('replica'))"
    )
    browser.wait_for(f"{frame} === '0'")
    assert browser.console == []
