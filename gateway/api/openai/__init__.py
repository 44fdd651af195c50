"""OpenAI's dialect: requests become domain requests, and answers become OpenAI's JSON.

In reading order: `routes` (thin handlers), `schema` over `parameters`, `inputs`, `content`, `tools`,
`template_settings` and `response_format` (what a body may contain, and its translation), `choices` (several answers to
one request), `tolerance` (bodies that the schema refuses as they are) with `parameter_rows` (every parameter),
`parameter_table` (their kinds), `parameter_values` and `history` (other values, messages), `abilities` (what a backend
may be asked for), `encode`, `logprobs` and `chunks` (whole and streamed answers), `text_bodies`
(rerank and tokens: bodies and answers), `errors` (the envelope).
"""
