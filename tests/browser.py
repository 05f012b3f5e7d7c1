"""Chromium without a window, told what to do over a pair of pipes (the DevTools protocol, JSON ended by a NUL)."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import selectors
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

PATIENCE_S = 60.0
FLAGS = (
    "--headless",
    "--no-sandbox",  # it runs as root, and shows nothing but our own page
    "--remote-debugging-pipe",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)


@dataclass
class Browser:
    """One page of a browser. `requested` are the addresses that it asked for since it was opened, in order."""

    commands: int
    replies: int
    session: str = ""
    requested: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    _number: int = 0
    _received: bytes = b""
    _events: list[dict[str, Any]] = field(default_factory=list)

    def tell(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE_S
        while True:
            reply = self._next(deadline)
            if reply.get("id") == self._number:
                assert "error" not in reply, (method, reply["error"])
                result: dict[str, Any] = reply["result"]
                return result
            self._note(reply)

    def wait(self, event: str) -> None:
        """Until it has happened, be it before this call."""
        deadline = time.monotonic() + PATIENCE_S
        while not any(seen["method"] == event for seen in self._events):
            self._note(self._next(deadline))

    def _note(self, event: dict[str, Any]) -> None:
        self._events.append(event)
        if event["method"] == "Network.requestWillBeSent":
            self.requested.append(event["params"]["request"]["url"])
        if event["method"] in ("Log.entryAdded", "Runtime.exceptionThrown"):
            self.said.append(json.dumps(event["params"]))

    def _next(self, deadline: float) -> dict[str, Any]:
        with selectors.DefaultSelector() as selector:
            selector.register(self.replies, selectors.EVENT_READ)
            while b"\0" not in self._received:
                assert selector.select(max(0, deadline - time.monotonic())), "the browser says nothing"
                got = os.read(self.replies, 1 << 20)
                assert got, "the browser has ended"
                self._received += got
        message, _, self._received = self._received.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found

    def open(self, path: Path) -> None:
        self.session = ""
        target = self.tell("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.tell("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.tell(f"{domain}.enable")
        self._events.clear()
        self.tell("Page.navigate", url=path.as_uri())
        self.wait("Page.loadEventFired")

    def look(self, width: int, height: int, scheme: str = "light", media: str = "screen") -> None:
        """As a screen of that size, or as paper; below 600 as a phone's."""
        self.tell(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme_asked = {"name": "prefers-color-scheme", "value": scheme}
        self.tell("Emulation.setEmulatedMedia", media=media, features=[scheme_asked])

    def value(self, expression: str) -> Any:
        return self.tell("Runtime.evaluate", expression=expression, returnByValue=True)["result"]["value"]

    def picture(self) -> bytes:
        """A PNG of the whole page, also of what is below the screen."""
        return base64.b64decode(self.tell("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def print(self) -> bytes:
        """A PDF on A4."""
        found = self.tell("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, printBackground=False)
        return base64.b64decode(found["data"])


@contextlib.contextmanager
def chromium() -> Iterator[Browser]:
    """Skips the test where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("chromium is not installed (Debian: apt install chromium)")
    told, commands = os.pipe()
    replies, telling = os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # It reads descriptor 3 and writes 4.
        process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{told} 4>&{telling}', "bash", program, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(told, telling), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=os.environ | {"HOME": profile},
        )  # fmt: skip
        os.close(told)
        os.close(telling)
        try:
            yield Browser(commands, replies)
        finally:
            os.close(commands)  # at which it ends
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(replies)
