"""OpenAI's dialect: requests become domain requests, and answers become OpenAI's JSON.

In reading order: `routes` (thin handlers), `schema` over `parameters`, `content` and `tools` (what a body may contain,
and its translation), `encode` and `chunks` (whole and streamed answers), `errors` (the envelope).
"""
