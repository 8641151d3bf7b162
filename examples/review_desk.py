"""A review desk that receives signed webhooks and sends signed verdicts; review_webhook.py starts it."""

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
    """Receives webhooks."""

    def do_POST(self) -> None:
        """Verify the signature, which raises if it is wrong, acknowledge the webhook, and review the ticket."""
        message: Any = SECRET.verify(self.rfile.read(int(self.headers["content-length"])), dict(self.headers))
        self.send_response(204)
        self.end_headers()
        if message["type"] == "ticket.created":
            print("the desk sees:", message["data"]["record"]["attempts"][-1]["text"], flush=True)
            send_verdict(message["data"], verdict="correct", text="Helium", reviewer="zoe")


def send_verdict(ticket: Any, **verdict: str) -> None:
    """Send a verdict to the page of the ticket's link."""
    body, now = json.dumps({"ticket": ticket["ticket"]} | verdict), datetime.now(UTC)
    signed = {"webhook-id": ticket["ticket"], "webhook-timestamp": str(int(now.timestamp()))}
    signed["webhook-signature"] = SECRET.sign(ticket["ticket"], now, body)
    address = ticket["link"].replace("/tickets/", "/v1/tickets/") + "/verdict"
    httpx.post(address, content=body, headers=signed).raise_for_status()


if __name__ == "__main__":
    HTTPServer(("127.0.0.1", int(sys.argv[1])), Desk).serve_forever()
