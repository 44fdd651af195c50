"""Turns a JSON schema into a grammar (GBNF, the form of llama.cpp) that admits only what the schema admits. Pure.

The grammar may admit less than the schema, never more. A schema that asks for more than a grammar can promise is
refused with the path of the keyword. Both sides use it: the API for the format of an answer, the engine for the
arguments of a tool call that is forced.

errors      the error of a schema, with its path
text        the parts of grammars: literals, repetitions, and the rules of JSON itself
numbers     integers and numbers within bounds
references  where a schema refers to
combine     schemas that hold at the same time, and those that exclude each other
objects     objects and arrays
keywords    the keywords of one schema: types, constants, numbers, lengths
writer      the grammar of whole schemas
"""
