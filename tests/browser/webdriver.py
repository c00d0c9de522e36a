"""As much of WebDriver (https://www.w3.org/TR/webdriver2/) as the tests need, with Python's standard library alone."""

import base64
import json
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

PATIENCE = 60

FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--force-prefers-reduced-motion", "--hide-scrollbars",
]


class Browser:
    """A Chromium without a window, driven by chromedriver; both are gone when the `with` ends."""

    def __enter__(self):
        self.home = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True)
        for line in self.driver.stdout:
            if "successfully on port" in line:
                self.at = f"http://127.0.0.1:{line.rsplit(' ', 1)[1].strip().rstrip('.')}"
                break
        options = {"args": [*FLAGS, f"--user-data-dir={self.home.name}"], "binary": "/usr/bin/chromium"}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self.session = ""
        answer = self.ask("", {"capabilities": {"alwaysMatch": wanted}})
        self.session = f"/{answer['sessionId']}"
        return self

    def __exit__(self, *_):
        try:
            self.ask("", method="DELETE")
        finally:
            self.driver.terminate()
            self.driver.wait()
            self.home.cleanup()

    def ask(self, path, body=None, method=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.at}/session{self.session}{path}", data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=2 * PATIENCE) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None

    def cdp(self, command, **parameters):
        """A command of the DevTools protocol."""
        return self.ask("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def go(self, url):
        self.ask("/url", {"url": url})

    def run(self, script, *arguments):
        """What a script in the page returns."""
        return self.ask("/execute/sync", {"script": script, "args": arguments})

    def run_later(self, script, *arguments):
        """What a script in the page gives to its last argument, a function, once it knows."""
        return self.ask("/execute/async", {"script": script, "args": arguments})

    def text(self, selector):
        return self.run("return document.querySelector(arguments[0])?.textContent", selector)

    def until(self, what, script, *arguments):
        """Waits until a script in the page returns something that is true."""
        give_up_at = time.monotonic() + PATIENCE
        while time.monotonic() < give_up_at:
            if value := self.run(script, *arguments):
                return value
            time.sleep(0.02)
        raise AssertionError(f"not within {PATIENCE} s: {what}\n{self.run('return document.body.innerText')}")

    def look(self, width, height, scheme):
        """A screen of that size, and the scheme of colours that its owner likes."""
        size = {"width": width, "height": height, "deviceScaleFactor": 2 if width < 500 else 1, "mobile": width < 500}
        self.cdp("Emulation.setDeviceMetricsOverride", **size)
        self.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def picture(self, path):
        """The whole page as PNG, also what is below the screen."""
        size = self.cdp("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        answer = self.cdp("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        with open(path, "wb") as file:
            file.write(base64.b64decode(answer["data"]))

    def complaints(self):
        """What the console got since the last call."""
        return [entry["message"] for entry in self.ask("/se/log", {"type": "browser"})]
