"""Headless Chromium, where one is installed."""

import json
import queue
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-sync",
    "--disable-background-networking",
    "--disable-component-update",
    "--autoplay-policy=no-user-gesture-required",
    "--window-size=1280,5000",  # tall enough for every card of a report: cards out of sight are not drawn
    "--remote-debugging-port=0",  # keeps the page open until the process is ended
)


def probe_page(page: str, script: str, folder: Path, seconds: float = 60) -> Any:
    """Open a page of ``folder``, run a script in it once it is loaded, and return what it hands to ``done(value)``."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium is installed: pages and videos are only played where one is")
    probe = f"""<script>addEventListener("load", () => {{
      const done = (value) => fetch("/done", {{method: "POST", body: JSON.stringify(value)}});
      {script}
    }});</script></body>"""
    (folder / "probed.html").write_text(page.replace("</body>", probe), encoding="utf-8")
    answers: queue.Queue[Any] = queue.Queue()

    class Handler(SimpleHTTPRequestHandler):
        def do_POST(self):
            answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/probed.html"
        command = [browser, *FLAGS, f"--user-data-dir={folder / 'profile'}", url]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            return answers.get(timeout=seconds)
        finally:
            process.kill()
            process.wait()
            server.shutdown()
