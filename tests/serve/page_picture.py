"""The picture of the chat page in README: a real one, of a packed folder behind ``potq serve``, as Chromium shows it.

``python tests/serve/page_picture.py FOLDER docs/pictures/serve.png`` (``apt-get install chromium``).
"""

from __future__ import annotations

import argparse
import base64
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from browser import PROGRAM, browser

ASKED = "What is the capital of France?", "What is photosynthesis?"
SIZE = 760, 480  # points
PORT = 8763


@contextmanager
def serving(folder: str) -> Iterator[str]:
    """The address of ``potq serve FOLDER``, while the block runs."""
    url = f"http://127.0.0.1:{PORT}"
    with subprocess.Popen([sys.executable, "-m", "potq", "serve", folder, "--port", str(PORT)]) as process:
        try:
            while True:
                time.sleep(0.5)
                if process.poll() is not None:
                    raise SystemExit("potq serve ended, see above")
                try:
                    urllib.request.urlopen(f"{url}/health", timeout=5).close()
                except OSError:
                    continue
                break
            yield url
        finally:
            process.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a packed model with a chat template")
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()

    if PROGRAM is None:
        raise SystemExit("a browser shows the page; apt-get install chromium")
    with serving(options.folder) as url, tempfile.TemporaryDirectory() as files, browser(Path(files)) as page:
        page.size(*SIZE)
        page.open(url)
        page.wait("at('model').textContent !== 'potq'")
        page.run("at('most').value = 60; at('temperature').value = 0")
        for said in ASKED:
            page.run(f"at('said').value = {said!r}; at('ask').requestSubmit()")
            page.wait("running === null")
        if page.errors:
            raise SystemExit(f"the page failed: {page.errors}")
        partial = options.picture.with_suffix(".tmp")
        partial.write_bytes(base64.b64decode(page.picture()))
        partial.replace(options.picture)


if __name__ == "__main__":
    main()
