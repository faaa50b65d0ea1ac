"""The program as plain functions and frozen values; knows neither Celery nor the command line."""
