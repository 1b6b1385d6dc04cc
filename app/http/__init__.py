"""What HTTP needs beside the business: problems, health, idempotency, body limits, paging."""
