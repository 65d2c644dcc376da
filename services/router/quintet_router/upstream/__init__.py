"""One server behind the router: its connections, its health, its models."""
