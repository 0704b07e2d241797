"""A stand-in for `sglang serve`, run as a script by tests of the process helper and of the demo.

It takes the flags that matter and answers /health and /generate like SGLang. What it does wrong is
chosen with FAKE_* variables: a number of seconds before it is healthy, a death, a deaf child, other
tokens under speculation, missing counters.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FLAGS = sys.argv[1:]
SPECULATES = "--speculative-algorithm" in FLAGS
HEALTHY_AT = time.monotonic() + float(os.environ.get("FAKE_SECONDS", "0"))


def flag(name: str) -> str:
    """As argparse takes it: the last one, in either spelling."""
    parser = argparse.ArgumentParser()
    parser.add_argument(name)
    return vars(parser.parse_known_args(FLAGS)[0]).popitem()[1]


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def do_GET(self):
        self.send_response(200 if time.monotonic() >= HEALTHY_AT else 503)
        self.end_headers()

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        answer = self.answer(body["text"], body["sampling_params"]["max_new_tokens"])
        self.send_response(200)
        if not body.get("stream"):
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())
            return
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for end in (4, len(answer["text"])):
            chunk = {**answer, "text": answer["text"][:end]}
            self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def answer(self, prompt: str, max_new_tokens: int) -> dict:
        ids = [len(prompt) + i for i in range(min(8, max_new_tokens))]
        meta = {
            "completion_tokens": len(ids),
            "prompt_tokens": 5,
            "finish_reason": {"type": "length"},
        }
        if SPECULATES and "differs" in os.environ.get("FAKE_ANSWERS", "") and "code" in prompt:
            ids[5] += 1
        if SPECULATES and "uncounted" not in os.environ.get("FAKE_ANSWERS", "") and len(ids) > 1:
            # 7 tokens after the first: 4 verifications, 3 drafts accepted.
            meta |= {"spec_verify_ct": 4, "spec_num_correct_drafts": 3, "spec_accept_length": 2.0}
        if not SPECULATES:
            time.sleep(0.01)
        return {"text": " ".join(map(str, ids)), "output_ids": ids, "meta_info": meta}


def main() -> None:
    print("fake server with", *FLAGS, flush=True)
    if refusal := os.environ.get("FAKE_REFUSES"):
        sys.exit(f"error: {refusal}")
    if os.environ.get("FAKE_DIES"):
        print("ValueError: this flag is wrong", file=sys.stderr)
        sys.exit(3)
    if os.environ.get("FAKE_DEAF_CHILD"):
        deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(120)"
        child = subprocess.Popen([sys.executable, "-c", deaf])
        print("child", child.pid, flush=True)
    if os.environ.get("FAKE_IGNORES_TERM"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if seconds := os.environ.get("FAKE_DIES_AFTER"):
        threading.Timer(float(seconds), os._exit, [5]).start()
    ThreadingHTTPServer(("127.0.0.1", int(flag("--port"))), Handler).serve_forever()


if __name__ == "__main__":
    main()
