"""What this gateway and the other gateways of its fleet tell each other."""
