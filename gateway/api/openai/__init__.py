"""OpenAI's dialect: its requests become domain requests, and answers become its JSON.

In reading order: `routes` (thin handlers), `schema` over `parameters`, `content` and `tools` (what a body may say),
`encode` and `chunks` (whole and streamed answers), `errors` (the envelope), `weight` (what is kept of a body).
"""
