"""A real browser driven over WebDriver's own protocol: chromedriver answers JSON over HTTP, so no package is needed."""

import base64
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

INSTALLED = shutil.which("chromium") is not None and shutil.which("chromedriver") is not None
KEYS = {
    "enter": "\ue007", "shift": "\ue008", "control": "\ue009", "escape": "\ue00c", "tab": "\ue004",
    "backspace": "\ue003", "release": "\ue000",
}  # fmt: skip


@dataclass(frozen=True)
class Browser:
    """One window of a headless Chromium."""

    session: str  # its URL at the driver

    def ask(self, path: str, body: dict[str, Any]) -> Any:
        return ask(f"{self.session}/{path}", body)

    def open(self, url: str) -> None:
        self.ask("url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        """What the body of a function returns, its arguments as `arguments`."""
        return self.ask("execute/sync", {"script": script, "args": list(arguments)})

    def type(self, text: str) -> None:
        """Into whatever has the focus, key by key; KEYS's values are keys that no letter is, "\\n" is Enter."""
        actions, held = [], []
        for letter in text.replace("\n", KEYS["enter"]):
            if letter == KEYS["release"]:
                actions += [{"type": "keyUp", "value": key} for key in held]
                held.clear()
            elif letter in (KEYS["shift"], KEYS["control"]):
                actions.append({"type": "keyDown", "value": letter})
                held.append(letter)
            else:
                actions += [{"type": "keyDown", "value": letter}, {"type": "keyUp", "value": letter}]
        self.ask("actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def click(self, selector: str) -> None:
        """Where a pointer would: fails where something else lies above the element, or it is not to be seen."""
        (element,) = self.ask("element", {"using": "css selector", "value": selector}).values()
        self.ask(f"element/{element}/click", {})

    def tap(self, selector: str) -> None:
        """A finger's touch on the middle of the element."""
        element = self.ask("element", {"using": "css selector", "value": selector})
        actions = [
            {"type": "pointerMove", "duration": 0, "origin": element, "x": 0, "y": 0},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerUp", "button": 0},
        ]
        finger = {"type": "pointer", "id": "finger", "parameters": {"pointerType": "touch"}, "actions": actions}
        self.ask("actions", {"actions": [finger]})

    def text(self, selector: str) -> str:
        """Of the last element that the selector finds, as it is seen; "" where there is none."""
        return self.run("return [...document.querySelectorAll(arguments[0])].at(-1)?.innerText ?? ''", selector)

    def wait(self, fact: Callable[[], Any], seconds: float = 20.0) -> Any:
        """The first true value of `fact`; raises TimeoutError."""
        end = time.monotonic() + seconds
        while not (value := fact()):
            if time.monotonic() > end:
                raise TimeoutError(f"not true within {seconds:g} s; the page reads: {self.text('body')}")
            time.sleep(0.03)
        return value

    def look_like(self, width: int, height: int, scheme: str, motion: str = "no-preference") -> None:
        """A window of so many pixels whose user prefers the scheme (light or dark) and motion (or reduce)."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": motion},
        ]
        for command, given in (
            ("Emulation.setDeviceMetricsOverride", metrics),
            ("Emulation.setEmulatedMedia", {"features": features}),
        ):
            self.ask("goog/cdp/execute", {"cmd": command, "params": given})

    def picture(self, path: Path) -> None:
        with urllib.request.urlopen(f"{self.session}/screenshot") as answered:
            path.write_bytes(base64.b64decode(json.load(answered)["value"]))

    def complaints(self) -> list[str]:
        """What the console has held since the last call: errors of scripts, loads that a policy refused."""
        return [entry["message"] for entry in self.ask("se/log", {"type": "browser"})]


def ask(url: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answered:
            return json.load(answered)["value"]
    except urllib.error.HTTPError as error:
        raise RuntimeError(json.load(error)["value"]["message"]) from error


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser of its own, ended afterwards; `profile` is a folder for what it keeps."""
    driver = subprocess.Popen(["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert driver.stdout is not None
    try:
        port = next(line.rsplit(" ", 1)[1].strip(".\n") for line in driver.stdout if "started successfully" in line)
        options = {
            "goog:chromeOptions": {
                "args": ["--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"],
                "binary": shutil.which("chromium"),
            },
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        made = ask(f"http://127.0.0.1:{port}/session", {"capabilities": {"alwaysMatch": options}})
        window = Browser(f"http://127.0.0.1:{port}/session/{made['sessionId']}")
        try:
            yield window
        finally:
            urllib.request.urlopen(urllib.request.Request(window.session, method="DELETE")).close()
    finally:
        driver.terminate()
        driver.wait()
