"""The service inside the confidential VM."""
