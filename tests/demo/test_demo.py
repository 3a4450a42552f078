"""The whole demo as its user starts it, what it leaves behind, and a person on its site."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx2
import pytest
from playwright.sync_api import sync_playwright

from sidecar.demo import checks
from sidecar.demo.children import Child, ended, listen, url_of
from sidecar.demo.drive import drive
from sidecar.demo.errors import DemoError
from sidecar.demo.shop import build_shop, serve_shop
from sidecar.demo.traffic import JSON, Beacon, Step
from sidecar.store.database import rows
from tests.browser import launch

ROOT = Path(__file__).parents[2]
TRACKER = ROOT / "sidecar" / "tracker"
AGREE = "sidecar and upstream agree: yes"
TABLE = {
    "beacons sent": 549,
    "beacons acknowledged": 549,
    "items accepted": 1286,
    "items duplicate": 390,
    "items superseded": 78,
    "foreign key errors": 0,
    "sessions": 40,
    "sessions provisional: vitals came first": 36,
    "sessions enriched by their events": 36,
    "sessions confirmed upstream": 40,
    "sessions shipped again for a late vital": 1,
}


def _start(folder: Path, *flags: str) -> subprocess.Popen[str]:
    """The demo with its files in `folder`, and with settings in its environment that must not matter."""
    hostile = {"SIDECAR_PORT": "1", "SIDECAR_UPSTREAM_URL": "https://example.invalid/", "SIDECAR_NO_SUCH": "1"}
    proxies = {"HTTP_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "http://127.0.0.1:9"}
    return subprocess.Popen(
        [sys.executable, "-m", "sidecar", "demo", *flags],
        cwd=ROOT,
        env=os.environ | hostile | proxies | {"TMPDIR": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _left_behind(folder: Path) -> list[str]:
    """Files in the folder, and programs that know it."""
    found = [str(path) for path in folder.iterdir()]
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"={folder}/".encode() in environ.read_bytes():
                found.append(environ.parent.name)
        except OSError:
            continue  # it has just ended, or is somebody else's
    return found


def _read_table(text: str) -> dict[str, tuple[int, ...]]:
    """Row -> the count, and what was expected where something was."""
    found = re.findall(r"^  (\S.*?) {2,}([\d,]+)(?: +([\d,]+))?$", text, re.MULTILINE)
    return {what: tuple(int(each.replace(",", "")) for each in counts if each) for what, *counts in found}


def test_once(tmp_path: Path) -> None:
    with _start(tmp_path, "--once") as demo:
        out, err = demo.communicate(timeout=60)
    assert (demo.returncode, err) == (0, "")
    lines = out.splitlines()
    assert lines[-1] == AGREE
    assert max(map(len, lines)) <= 80
    table = _read_table(out.partition("expected\n")[2])
    (batches,) = table.pop("batches shipped")
    assert batches >= 2
    assert table == {what: (count, count) for what, count in TABLE.items()}
    assert _left_behind(tmp_path) == []


def test_it_stays_up_until_it_is_stopped(tmp_path: Path) -> None:
    with _start(tmp_path) as demo:
        assert demo.stdout
        text = ""
        for line in demo.stdout:
            text += line
            if line.startswith("sidecar and upstream"):
                break
        assert line == AGREE + "\n"
        shop, sidecar, upstream = re.findall(r"^  (http://127\.0\.0\.1:\d+/) ", text, re.MULTILINE)
        with httpx2.Client(trust_env=False, verify=False) as client:
            page = client.get(shop).text
            assert f'src="{sidecar}sidecar.js"' in page
            for dashboard in (sidecar, upstream):
                overview = client.get(f"{dashboard}api/overview").json()
                assert (overview["sessions"], overview["provisionalSessions"]) == (40, 0)
                assert client.get(dashboard).status_code == 200
        demo.send_signal(signal.SIGINT)
        out, err = demo.communicate(timeout=15)
    assert (demo.returncode, out, err) == (0, "", "")
    assert _left_behind(tmp_path) == []


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGHUP])
def test_nothing_is_left_when_it_is_stopped_in_the_middle(tmp_path: Path, stop: signal.Signals) -> None:
    with _start(tmp_path) as demo:
        assert demo.stdout
        demo.stdout.readline()  # the parts are up, and the first beacons under way
        assert len(_left_behind(tmp_path)) > 2
        demo.send_signal(stop)
        err = demo.communicate(timeout=15)[1]
    assert (demo.returncode, err) == (130, "")
    assert _left_behind(tmp_path) == []


def test_a_sidecar_that_dies_ends_the_demo_with_the_end_of_its_log(tmp_path: Path) -> None:
    with _start(tmp_path) as demo:
        assert demo.stdout
        demo.stdout.readline()
        found = (int(pid) for pid in _left_behind(tmp_path) if pid.isdigit())
        os.kill(next(pid for pid in found if b"UPSTREAM_URL" in _environ(pid)), signal.SIGKILL)
        err = demo.communicate(timeout=60)[1]
    assert demo.returncode == 1
    assert err.startswith("sidecar demo: the sidecar ended with exit code -9\nthe last lines of the sidecar's log:\n")
    assert "Traceback" not in err
    assert _left_behind(tmp_path) == []


def _environ(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


# --- parts -----------------------------------------------------------------------------------------------------------


def _free_port() -> int:
    with listen(0) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def _running(folder: Path) -> Iterator[Child]:
    with ended() as children:
        children.append(Child("sidecar", folder, _free_port(), {"SITE": "test"}))
        children[0].wait_ready()
        yield children[0]


def test_a_child_that_does_not_start_shows_its_log(tmp_path: Path) -> None:
    with ended() as children:
        children.append(Child("upstream", tmp_path, _free_port(), {"SITE": "not a site"}))
        with pytest.raises(DemoError, match="the upstream ended with exit code 1") as caught:
            children[0].wait_ready()
    assert "SIDECAR_SITE='not a site': must be 1 to 64 of" in caught.value.detail


def test_a_refused_beacon_is_an_error_with_the_answer(tmp_path: Path) -> None:
    bad = Beacon("web-vitals", b'[{"sessionId": "s"}]', JSON, "Mozilla/5.0 Firefox/144.0", "http://127.0.0.1/")
    with _running(tmp_path) as sidecar, pytest.raises(DemoError, match="did not take a beacon") as caught:
        drive(sidecar.url, Step("bad", ((bad,),), Counter()))
    assert caught.value.detail.startswith("HTTP 422: ")


def test_no_answer_is_an_error() -> None:
    beacon = Beacon("web-vitals", b"{}", JSON, "Mozilla/5.0", "http://127.0.0.1/")
    with pytest.raises(DemoError, match="did not answer a beacon"):
        drive(url_of(_free_port()), Step("nobody there", ((beacon,),), Counter()))


def test_a_person_on_the_site(tmp_path: Path) -> None:
    """Every page shows what its note promises, and no page says a word in the console."""
    subprocess.run([sys.executable, str(TRACKER / "build.py")], check=True, stdout=subprocess.DEVNULL)
    listener = listen(0)
    shop = url_of(listener.getsockname()[1])
    words: list[str] = []
    with (
        _running(tmp_path) as sidecar,
        listener,
        serve_shop(build_shop(sidecar.url, sidecar.url), listener),
        sync_playwright() as playwright,
        closing(launch(playwright)) as browser,
    ):
        context = browser.new_context()
        context.on("console", lambda message: words.append(message.text))
        context.on("weberror", lambda error: words.append(str(error.error)))
        page = context.new_page()
        page.goto(shop + "/")
        page.fill("[name=name]", "Ada Byron")
        page.fill("[name=email]", "ada@shop.example")
        page.click("#letter button")
        page.click("nav >> text=Gallery")
        page.wait_for_timeout(3000)  # the offer comes after 1.5 s and shrinks 0.8 s later
        page.click("nav >> text=Configurator")
        page.wait_for_timeout(500)
        page.click("text=Brick")
        page.wait_for_timeout(1700)  # INP is known when the next frame has been painted
        page.click("nav >> text=In stock")
        page.click("nav >> text=Catalogue")
        page.click("h3 >> text=Malmö")
        page.click("text=Put in the cart")
        page.go_back()
        page.click("main >> text=Kiruna")
        page.wait_for_timeout(300)
        page.click("nav >> text=Checkout")
        page.fill("[name=name]", "Ada Byron")
        page.click("text=Order and pay nothing")
        page.wait_for_timeout(300)
        page.goto("about:blank")
        _wait_for_events(sidecar.database, "conversion")
        context.close()
        time.sleep(0.5)
        with checks.reading(sidecar.database) as conn:
            (session,) = rows(conn, "SELECT * FROM session_list")
            worst = dict(
                conn.execute(
                    """SELECT v.metric || ' ' || p.path, max(v.value) FROM web_vitals AS v JOIN pages AS p
                    ON p.page_key = v.page_key GROUP BY v.metric, p.path"""
                )
            )
            paths = [row[0] for row in conn.execute(_VIEWED)]
    assert words == []
    assert paths == [
        "/",
        "/gallery",
        "/configurator",
        "/stock",
        "/catalogue",
        "/catalogue/malmo",
        "/catalogue",
        "/catalogue/kiruna",
        "/checkout",
    ]
    assert (session["display_name"], session["converted"], session["conversion_value"]) == ("Ada Byron", 1, 129)
    assert worst["CLS /gallery"] > 0.25
    assert worst["CLS /"] <= 0.1
    assert worst["INP /configurator"] > 200
    assert worst["TTFB /stock"] > 800
    assert worst["LCP /checkout"] > 0


_VIEWED = """
SELECT p.path FROM events AS e JOIN pages AS p ON p.page_key = e.page_key
WHERE e.event_name = 'page_view' ORDER BY e.timestamp"""


def _wait_for_events(database: Path, name: str, timeout_s: float = 20) -> None:
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        with checks.reading(database) as conn:
            if conn.execute("SELECT count(*) FROM events WHERE event_name = ?", (name,)).fetchone()[0]:
                return
        time.sleep(0.1)
    pytest.fail(f"no {name} within {timeout_s} s")
