"""Asks a gateway with OpenAI's Python package. Usage: python3 chat.py [MODEL]."""

import os
import sys

from openai import OpenAI

url = os.environ.get("GATEWAY_URL", "http://127.0.0.1:8080")
client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("GATEWAY_API_KEY", "none"))
model = sys.argv[1] if len(sys.argv) > 1 else "demo"

print("models:", ", ".join(each.id for each in client.models.list()))

# A whole answer.
answer = client.chat.completions.create(model=model, messages=[{"role": "user", "content": "What is a replica?"}])
print(answer.choices[0].message.content)

# A streamed answer, printed as it is generated.
stream = client.chat.completions.create(
    model=model, messages=[{"role": "user", "content": "What is a lease?"}], stream=True
)
for chunk in stream:
    print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
