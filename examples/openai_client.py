"""Any OpenAI client on `ilis-guard serve`: an answer, or a refusal with its reason and perhaps a ticket.

OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=... python examples/openai_client.py "What is 7 times 8?"
"""

import sys

from openai import OpenAI


def ask(question: str) -> str:
    """Ask, and say what became of it."""
    client = OpenAI()
    completion = client.chat.completions.create(model="ilis-guard", messages=[{"role": "user", "content": question}])
    message, decision = completion.choices[0].message, (completion.model_extra or {})["ilis_guard"]
    if message.refusal is None:
        return f"{message.content} (uncertainty {decision['uncertainty']:.2f})"
    ticket = decision["ticket"]
    return f"no answer: {message.refusal}" + (f" Ticket {ticket['id']}." if ticket else "")


def stream(question: str) -> None:
    """Ask, and print pieces as they come. A stream may withdraw them: then nothing of `content` counts."""
    for chunk in OpenAI().chat.completions.create(
        model="ilis-guard", messages=[{"role": "user", "content": question}], stream=True
    ):
        told = (chunk.model_extra or {}).get("ilis_guard", {})
        for choice in chunk.choices:
            print(choice.delta.content or choice.delta.refusal or "", end="")
        if told.get("retracted"):
            print("\n(withdrawn)", told.get("text") or "")


if __name__ == "__main__":
    print(ask(sys.argv[1]))
    stream(sys.argv[1])
