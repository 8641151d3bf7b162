"""Another team's review desk, which review_webhook.py starts: webhooks come in, verdicts go out, both signed."""

import json
import sys
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from os import environ
from typing import Any

import httpx
from standardwebhooks import Webhook

SECRET = Webhook(environ["DESK_SECRET"])


class Desk(BaseHTTPRequestHandler):
    """Takes webhooks."""

    def do_POST(self) -> None:
        """Check who sent it, which raises unless it is signed, say that it was heard, and look at the ticket."""
        message: Any = SECRET.verify(self.rfile.read(int(self.headers["content-length"])), dict(self.headers))
        self.send_response(204)
        self.end_headers()
        if message["type"] == "ticket.created":
            print("the desk sees:", message["data"]["record"]["attempts"][-1]["text"], flush=True)
            give(message["data"], verdict="correct", text="Helium", reviewer="zoe")


def give(about: Any, **verdict: str) -> None:
    """Send a verdict to the page that the ticket's link leads to."""
    body, now = json.dumps({"ticket": about["ticket"]} | verdict), datetime.now(UTC)
    signed = {"webhook-id": about["ticket"], "webhook-timestamp": str(int(now.timestamp()))}
    signed["webhook-signature"] = SECRET.sign(about["ticket"], now, body)
    address = about["link"].replace("/tickets/", "/v1/tickets/") + "/verdict"
    httpx.post(address, content=body, headers=signed).raise_for_status()


if __name__ == "__main__":
    HTTPServer(("127.0.0.1", int(sys.argv[1])), Desk).serve_forever()
