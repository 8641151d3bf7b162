"""Send an uncertain answer to a review desk by webhook, and wait for the desk's signed verdict.

python examples/review_webhook.py
"""

import asyncio
import os
import subprocess
import sys
from base64 import b64encode
from pathlib import Path

from ilis_guard import Guard

HERE = Path(__file__).parent
CONFIG, PAGE, DESK = sys.argv[1:4] if len(sys.argv) > 1 else (str(HERE / "guard.yaml"), "8000", "8001")
"""The path of guard.yaml, and the ports of the reviewers' page and of the desk."""

if __name__ == "__main__":
    os.environ["DESK_URL"] = f"http://127.0.0.1:{DESK}/"
    os.environ["DESK_SECRET"] = "whsec_" + b64encode(os.urandom(32)).decode()
    programs = [
        subprocess.Popen([sys.executable, str(HERE / "review_desk.py"), DESK]),
        # Delivers the webhooks, and receives the verdicts.
        subprocess.Popen([str(Path(sys.executable).with_name("ilis-guard")), "serve", "-c", CONFIG, "--port", PAGE]),
    ]
    try:
        with Guard.from_config(CONFIG) as guard:
            decision = guard.decide("Which chemical element has the symbol He?")
            print(f"{decision.action}: {decision.text}", flush=True)
            if decision.ticket is not None:
                ticket = asyncio.run(decision.ticket.wait(timeout=60))
                print(f"{ticket.verdict}: {ticket.text}")
    finally:
        for program in programs:
            program.terminate()
