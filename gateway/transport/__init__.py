"""What joins a worker on another machine to a gateway: registration, credential, session stream."""
