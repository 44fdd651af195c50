"""Sessions of workers at this gateway: desired sets go out, reports come in."""
