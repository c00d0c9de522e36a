"""Looks at the status page of a system under load, in a real browser.

usage: page.py URL AXE PICTURES: URL is the page, AXE the file axe.min.js, PICTURES a directory for screenshots.
"""

import json
import os
import signal
import sys
import time
import urllib.request

from webdriver import Browser

ACCEPTED = "return Number(document.querySelector('.equation .value').textContent.replaceAll(',', ''))"
LIVE = "return document.body.classList.contains('live')"


def status(url):
    with urllib.request.urlopen(f"{url}/status.json") as response:
        return json.load(response)


def is_live_and_its_numbers_change(browser, url):
    browser.go(url)
    browser.until("live", LIVE)
    for change in range(2):
        before = browser.run(ACCEPTED)
        browser.until("more jobs", f"{ACCEPTED} > arguments[0]", before)
    browser.until("lines in the charts", "return document.querySelectorAll('figure path.rate, figure path.half')"
                  ".length == 2 && document.querySelector('figure path.half').getAttribute('d').includes('l')")
    assert browser.run("return document.title").endswith("OSPS")


def tells_of_a_death_at_once(browser, url):
    """Returns how long it took until the page showed the obituary, in milliseconds."""
    victim = next(server for server in status(url)["servers"] if server["role"] == "secondary")
    browser.run("""
        const pid = String(arguments[0]), obituaries = document.getElementById("obituaries");
        new MutationObserver((_, observer) => {
            const pids = [...obituaries.querySelectorAll("td.number")].map((cell) => cell.textContent);
            if (pids.includes(pid)) { window.seen = Date.now(); observer.disconnect(); }
        }).observe(obituaries, { childList: true });
    """, victim["pid"])
    killed = time.time()
    os.kill(victim["pid"], signal.SIGKILL)
    seen = browser.until("the obituary", "return window.seen")
    row = browser.run("""
        const rows = [...document.querySelectorAll("#obituaries tbody tr")];
        return rows.find((row) => row.textContent.includes(arguments[0])).innerText;
    """, str(victim["pid"]))
    assert f"secondary {victim['slot']}" in row and "signal 9" in row, row
    browser.until("the successor", "return document.querySelector('h1').textContent.startsWith('All')")
    return round(seen - killed * 1000)


def comes_back_by_itself(browser, url):
    """The observer is killed: the page says that it has lost it, and is live again with the next one."""
    browser.run("""
        window.same = true;
        window.told = [];
        const link = document.getElementById("link");
        new MutationObserver(() => window.told.push([link.textContent, document.body.className]))
            .observe(link, { childList: true, characterData: true, subtree: true });
    """)
    os.kill(status(url)["observer"]["pid"], signal.SIGKILL)
    told = browser.until("live again", "return window.told.length > 1 && window.told")
    assert told[0][0].startswith("connection lost since ") and "stale" in told[0][1], told
    assert told[-1][0] == "live" and "live" in told[-1][1], told
    assert browser.run("return window.same"), "the page was loaded again"
    # That a connection has failed is for the console to tell.
    browser.complaints()


def tells_what_is_below_the_pointer(browser):
    at = browser.run("""
        const box = document.querySelector("figure.times svg").getBoundingClientRect();
        return [Math.round(box.right) - 2, Math.round(box.top + box.height / 2)];
    """)
    move = {"type": "pointerMove", "duration": 0, "origin": "viewport", "x": at[0], "y": at[1]}
    mouse = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": [move]}
    browser.ask("/actions", {"actions": [mouse]})
    told = browser.until("a figure", "return document.querySelector('figure.times .marker')?.textContent")
    assert "median" in told and "ms" in told, told
    mouse["actions"] = [{**move, "x": 1, "y": 1}]
    browser.ask("/actions", {"actions": [mouse]})
    browser.until("no figure", "return !document.querySelector('.marker')")


def fits(browser, width):
    wide = browser.run("return [document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1] == width, f"the page is {wide[0]} px wide on a screen of {wide[1]}"


def is_accessible(browser, axe):
    with open(axe, encoding="utf-8") as file:
        browser.run(file.read())
    found = browser.run_later("axe.run().then(arguments[0])")
    wrong = [
        f"{rule['id']}: {rule['help']}: {node['html'][:200]} {node['failureSummary']}"
        for rule in found["violations"] for node in rule["nodes"]
    ]
    assert not wrong, "\n".join(wrong)
    assert len(found["passes"]) > 20, "axe has looked at little"


def is_complete_without_scripts(browser, url, pictures):
    browser.cdp("Emulation.setScriptExecutionDisabled", value=True)
    browser.look(1280, 800, "light")
    browser.go(url)
    page = browser.run("return document.body.innerText")
    for words in ["All 4 secondaries serve.", "accepted", "echo", "watchdog", "secondary 4", "observer", "signal 9"]:
        assert words in page, f"{words!r} is missing in:\n{page}"
    assert "live" not in page and "refreshed every 5 seconds" in page, page
    assert browser.run("return document.querySelector('noscript meta, head > meta[http-equiv=refresh]') != null")
    assert browser.run("return document.querySelectorAll('svg path.rate').length") > 1
    browser.picture(f"{pictures}/without-scripts.png")


def main(url, axe, pictures):
    with Browser() as browser:
        browser.look(1280, 800, "light")
        is_live_and_its_numbers_change(browser, url)
        print(f"a killed secondary has its obituary on the page after {tells_of_a_death_at_once(browser, url)} ms")
        tells_what_is_below_the_pointer(browser)
        assert not (complaints := browser.complaints()), complaints
        comes_back_by_itself(browser, url)
        # So that there is something on the charts.
        time.sleep(float(os.environ.get("OSPS_BROWSER_SECONDS", "3")))
        for name, width, height, scheme in [
            ("light", 1280, 800, "light"),
            ("dark", 1280, 800, "dark"),
            ("tablet", 820, 1180, "light"),
            ("phone", 360, 740, "light"),
            ("phone-dark", 360, 740, "dark"),
        ]:
            browser.look(width, height, scheme)
            browser.until("live", LIVE)
            fits(browser, width)
            is_accessible(browser, axe)
            browser.picture(f"{pictures}/{name}.png")
        assert not (complaints := browser.complaints()), complaints
        is_complete_without_scripts(browser, url, pictures)


main(*sys.argv[1:])
