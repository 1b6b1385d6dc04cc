"""What the service tells Prometheus: its HTTP requests, and figures read from the database."""
