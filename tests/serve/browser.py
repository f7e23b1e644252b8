"""A headless Chromium by its own protocol, over two pipes: pages as people see them, without a package for it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

PROGRAM = shutil.which("chromium") or shutil.which("google-chrome")
_SECONDS = 60


class Page:
    """A page that is open.

    Attributes:
        requested: addresses that it asked for.
        errors: what it threw, or logged as an error.
    """

    def __init__(self, to: BinaryIO, back: BinaryIO) -> None:
        self.requested: list[str] = []
        self.errors: list[str] = []
        self._to, self._back, self._number = to, back, 0
        self._session: str | None = None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self._call(f"{domain}.enable")

    def open(self, url: str) -> None:
        self._call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of JavaScript."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until JavaScript is true."""
        end = time.monotonic() + _SECONDS
        while not self.run(condition):
            assert time.monotonic() < end, f"never: {condition}"
            time.sleep(0.05)

    def size(self, width: int, height: int) -> None:
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def picture(self) -> str:
        """A screenshot, PNG in base64."""
        return str(self._call("Page.captureScreenshot", format="png")["data"])

    def _call(self, method: str, **params: Any) -> Any:
        self._number += 1
        session = {"sessionId": self._session} if self._session else {}
        self._to.write(json.dumps({"id": self._number, "method": method, "params": params, **session}).encode() + b"\0")
        self._to.flush()
        while (message := self._read()).get("id") != self._number:
            self._note(message)
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']['message']}")
        return message["result"]

    def _read(self) -> Any:
        content = bytearray()
        while (byte := self._back.read(1)) != b"\0":
            assert byte, "the browser ended"
            content += byte
        return json.loads(content)

    def _note(self, message: Any) -> None:
        method, told = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requested.append(told["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(str(told["exceptionDetails"]))
        elif method == "Log.entryAdded" and told["entry"]["level"] == "error":
            self.errors.append(told["entry"]["text"])


@contextmanager
def browser(folder: Path) -> Iterator[Page]:
    """A page of a browser whose files are in ``folder``."""
    assert PROGRAM is not None
    theirs_in, to = os.pipe()
    back, theirs_out = os.pipe()
    quiet = (
        "--headless=new",
        "--no-first-run",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-dev-shm-usage",
    )
    words = [PROGRAM, *quiet, "--no-sandbox", f"--user-data-dir={folder}", "--remote-debugging-pipe"]
    # the protocol's pipes are files 3 and 4
    script = f'exec 3<&{theirs_in} 4>&{theirs_out}; exec "$@"'
    with subprocess.Popen(
        ["bash", "-c", script, "bash", *words], pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL
    ) as process:
        os.close(theirs_in)
        os.close(theirs_out)
        try:
            with os.fdopen(to, "wb") as writing, os.fdopen(back, "rb") as reading:
                yield Page(writing, reading)
        finally:
            process.terminate()
