"""Use `ilis-guard serve` with OpenAI's client: get an answer, or a refusal and perhaps a ticket.

OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=... python examples/openai_client.py "What is 7 times 8?"
"""

import sys

from openai import OpenAI


def ask(question: str) -> str:
    """Return the answer, or the refusal, for one question."""
    client = OpenAI()
    completion = client.chat.completions.create(model="ilis-guard", messages=[{"role": "user", "content": question}])
    message, decision = completion.choices[0].message, (completion.model_extra or {})["ilis_guard"]
    if message.refusal is None:
        return f"{message.content} (uncertainty {decision['uncertainty']:.2f})"
    ticket = decision["ticket"]
    return f"no answer: {message.refusal}" + (f" Ticket {ticket['id']}." if ticket else "")


def stream(question: str) -> None:
    """Print the text as it comes. A stream may retract it: then all `content` is void."""
    for chunk in OpenAI().chat.completions.create(
        model="ilis-guard", messages=[{"role": "user", "content": question}], stream=True
    ):
        decision = (chunk.model_extra or {}).get("ilis_guard", {})
        for choice in chunk.choices:
            print(choice.delta.content or choice.delta.refusal or "", end="")
        if decision.get("retracted"):
            print("\n(withdrawn)", decision.get("text") or "")


if __name__ == "__main__":
    print(ask(sys.argv[1]))
    stream(sys.argv[1])
