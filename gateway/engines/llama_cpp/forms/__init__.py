"""Answers that must have a form: a grammar from the first token on, or a call of an offered tool.

answer_start    where an answer begins, after a prompt that leads to reasoning
call_format     how a model writes a tool call, from its template
forced_call     an answer that has to be a call
boolean_schemas schemas that are true or false, for llama.cpp
"""
