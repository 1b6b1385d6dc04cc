"""Celery worker: joins the rows of `app` to the functions of `core`."""
