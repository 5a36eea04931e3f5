"""Asks a served model with the official `openai` client: `python serving/client_example.py http://127.0.0.1:8000 "Why is the sky blue?"`."""

from __future__ import annotations

import sys

from openai import OpenAI


def main(url: str, question: str) -> None:
    """Prints the answer as it comes, from whatever model the server names first."""
    with OpenAI(base_url=f"{url}/v1", api_key="unused") as client:
        model = next(iter(client.models.list())).id
        messages = [{"role": "user", "content": question}]
        for chunk in client.chat.completions.create(model=model, messages=messages, max_tokens=128, stream=True):
            print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
