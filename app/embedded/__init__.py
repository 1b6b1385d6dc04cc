"""Real servers on one machine: PostgreSQL and Valkey from wheels, API and worker as processes."""
