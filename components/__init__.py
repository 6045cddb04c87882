"""The work: plain typed functions from log to service. Never imports prefect or dvc."""
