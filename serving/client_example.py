"""Asks a served model with the official `openai` client: `python serving/client_example.py http://127.0.0.1:8000 "Why is the sky blue?"`.

Where the server wants a key, put it into the variable OPENAI_API_KEY.
"""

from __future__ import annotations

import os
import sys

from openai import OpenAI


def main(url: str, question: str) -> None:
    """Prints the answer as it comes, from whatever model the server names first."""
    key = os.environ.get("OPENAI_API_KEY", "unused")
    with OpenAI(base_url=f"{url}/v1", api_key=key) as client:
        model = next(iter(client.models.list())).id
        messages = [{"role": "user", "content": question}]
        options = {"include_usage": True}
        usage = None
        for chunk in client.chat.completions.create(model=model, messages=messages, max_tokens=128, stream=True, stream_options=options):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                print(choice.delta.content or "", end="", flush=True)
    print()
    if usage is not None:
        print(f"{usage.completion_tokens} tokens from {model}", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
