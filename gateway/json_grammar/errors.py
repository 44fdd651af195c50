"""The error of a schema that no grammar can be made from."""

Step = str | int
Path = tuple[Step, ...]


class SchemaError(Exception):
    """A schema is wrong, or asks for what a grammar cannot promise. `path` leads there from the schema's root."""

    def __init__(self, path: Path, message: str) -> None:
        super().__init__(message)
        self.path = path
        self.message = message
