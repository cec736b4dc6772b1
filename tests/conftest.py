pytest_plugins = ["tests.small_job"]
