"""`icve curate pipelines/edit_pairs.yaml` as a user runs it: real clips, tiny models, a vision-language endpoint."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml

from icve.cli.curate import main
from icve.data.manifest import read_manifest, write_manifest
from icve.data.paired_edits import PairedEditsDataModule


class Endpoint(BaseHTTPRequestHandler):
    """Chat completions that know what each kind of question is answered with."""

    prompts: list[str]

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = request["messages"][-1]["content"]
        prompt = next(part["text"] for part in content if part["type"] == "text")
        self.prompts.append(prompt)
        message = {"role": "assistant", "content": _reply(prompt)}
        body = {"id": "1", "object": "chat.completion", "created": 0, "model": request["model"]}
        body |= {"choices": [{"index": 0, "finish_reason": "stop", "message": message}]}
        body |= {"usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments) -> None:
        """Not to the test's output."""


def _reply(prompt: str) -> str:
    if "what an editor could change" in prompt:
        return '{"items": [{"phrase": "red ball", "layer": "foreground", "clear": true}]}'
    if "blacked out" in prompt:
        return "An empty street lies in even light under a grey wall."
    if "Give two marks" in prompt:
        return '{"instruction": 5, "quality": 5}'
    return "Remove the red ball from the street."


@pytest.fixture
def endpoint(monkeypatch):
    prompts: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Recording", (Endpoint,), {"prompts": prompts}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("VLM_URL", f"http://127.0.0.1:{server.server_port}/v1")
    monkeypatch.setenv("VLM_MODEL", "tiny")
    yield prompts
    server.shutdown()
    thread.join()


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.timeout(600)
def test_raw_videos_become_pairs_that_train(
    repository, shared_data, tmp_path, monkeypatch, endpoint, tiny_detector, tiny_segmenter, tiny_vace
):
    pytest.importorskip("openai")
    raw, public, output = tmp_path / "raw", tmp_path / "public", tmp_path / "run"
    for folder, name in ((raw, "src_black_dog.mp4"), (public, "src_monkey.mp4")):
        folder.mkdir()
        (folder / name).write_bytes((shared_data / "videos" / "sources" / name).read_bytes())
    style = {"source_path": "src_monkey.mp4", "target_path": "src_monkey.mp4", "instruction": "Make it a painting."}
    monkeypatch.setenv("STYLES", str(write_manifest([style], public / "styles.jsonl")))
    for name, folder in (("GROUNDING_DINO", tiny_detector), ("SAM2", tiny_segmenter), ("VACE", tiny_vace)):
        monkeypatch.setenv(name, str(folder))
    pipeline = repository / "pipelines" / "edit_pairs.yaml"
    overrides = ["frames=5", "fps=8", "sizes=[[48,80]]"]
    for number, stage in enumerate(yaml.safe_load(pipeline.read_text())["stages"]):
        if stage["class_path"].endswith(".Inpaint"):
            overrides.append(f"stages.{number}.init_args.steps=2")
        elif stage["class_path"].endswith(".Balance"):
            overrides.append(f"stages.{number}.init_args.max_ratio=2")
    command = [str(pipeline), *overrides, "--workers", "1"]
    command += ["--input", str(raw), "--output", str(output)]

    assert main(command) == 0
    rows = read_manifest(output / "manifest")
    own = [row for row in rows if row["edit_type"] != "style"]
    assert len(own) == 2
    assert len(rows) == 3
    assert all(row["judge_quality"] == 5 for row in rows)
    data = PairedEditsDataModule(str(output / "manifest"), buckets=[[48, 80, 5]], batch_size=1)
    data.setup("fit")
    assert len(data.train.pairs) == len(rows)
    batch = next(iter(data.train_dataloader()))
    assert batch["source"].shape == batch["target"].shape == (1, 3, 5, 48, 80)

    asked = len(endpoint)
    assert main(command) == 0  # nothing is left to do
    assert len(endpoint) == asked
    assert read_manifest(output / "manifest") == rows
